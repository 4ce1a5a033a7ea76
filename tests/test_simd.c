/* The vector kernels against the reference, products, pointwise operations and rows: every instruction set
 * that the processor has, sizes with and without whole vectors, strides, broadcasts, dtypes, one thread and
 * three. */
#include "simd_helpers.h"

#include "ops/desc.h"

#if defined(TAPER_CUSTOM_KERNELS) && defined(__x86_64__)

/* ---- products ---- */

static void check_matmul(tp_dtype da, tp_dtype db, int64_t m, int64_t n, int64_t k, bool ta, bool tb) {
    trial t = {.tolerance = 1e-5 * sqrt((double)k + 1.0)};
    t.operands[0] = strided(da, DIMS(m, k), ta ? SHAPE(1, m) : NULL);
    t.operands[1] = strided(db, DIMS(k, n), tb ? SHAPE(1, k) : NULL);
    t.operands[2] = dense(da, DIMS(m, n));
    begin(&t, TPI_MATMUL, 2, 1, NULL);
    must(&t);
}

Test(simd, matmul) {
    const int64_t sizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 33, 50, 67};
    const int n = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < n * n; i++) {
        int64_t m = sizes[i % n], k = sizes[i / n], w = sizes[(i * 7 + 3) % n];
        for (int turned = 0; turned < 4; turned++) {
            check_matmul(TP_F32, TP_F32, m, w, k, turned & 1, turned & 2);
            check_matmul(TP_F32, TP_BF16, m, w, k, turned & 1, turned & 2);
        }
        check_matmul(TP_BF16, TP_F16, m, w, k, i & 1, i & 2);
    }
}

Test(simd, matmul_larger_than_blocks) {
    for (int turned = 0; turned < 4; turned++) {
        check_matmul(TP_F32, TP_F32, 353, 1100, 530, turned & 1, turned & 2);
        check_matmul(TP_BF16, TP_BF16, 90, 1061, 300, turned & 1, turned & 2);
        check_matmul(TP_F32, TP_F32, 700, 9, 531, turned & 1, turned & 2);
        check_matmul(TP_F32, TP_F32, 5, 1300, 601, turned & 1, turned & 2);
    }
}

/* Products of bf16: steps that fill no pair, no tile; every orientation; rows an odd number of elements
 * apart; few rows; more steps than a slab has. */
Test(simd, matmul_bf16) {
    const int64_t sizes[][3] = {{9, 1, 1},     {9, 2, 33},   {13, 3, 5},   {31, 31, 31},  {32, 64, 32},
                                {33, 65, 66},  {47, 97, 1},  {70, 30, 99}, {300, 63, 77}, {40, 2100, 50},
                                {20, 5000, 9}, {1, 896, 40}, {1, 67, 33},  {3, 160, 7},   {8, 33, 50}};
    const int n = sizeof sizes / sizeof *sizes;
    for (int i = 0; i < 4 * n; i++) {
        int64_t m = sizes[i / 4][0], k = sizes[i / 4][1], w = sizes[i / 4][2], pad = i / 4 % 2;
        trial t = {.tolerance = 1e-5 * sqrt((double)k + 1.0)};
        t.operands[0] = strided(TP_BF16, DIMS(m, k), i & 1 ? SHAPE(1, m + pad) : SHAPE(k + pad, 1));
        t.operands[1] = strided(TP_BF16, DIMS(k, w), i & 2 ? SHAPE(1, k + pad) : SHAPE(w + pad, 1));
        t.operands[2] = dense(i & 1 ? TP_F32 : TP_BF16, DIMS(m, w));
        begin(&t, TPI_MATMUL, 2, 1, NULL);
        must(&t);
    }
    trial t = {.tolerance = 1e-4}; /* neither rows nor columns are contiguous */
    t.operands[0] = strided(TP_BF16, DIMS(35, 41), SHAPE(3 * 41, 3));
    t.operands[1] = strided(TP_BF16, DIMS(41, 37), SHAPE(2 * 37, 2));
    t.operands[2] = dense(TP_F32, DIMS(35, 37));
    begin(&t, TPI_MATMUL, 2, 1, NULL);
    must(&t);
}

/* x, w and y are bf16, the adapter is or is not: its term is one of bf16, of high parts or of high and low
 * ones. */
Test(simd, linear_lora_bf16) {
    const int64_t ranks[] = {1, 7, 8, 16, 33, 100},
                  sizes[][3] = {{45, 300, 131}, {130, 33, 66}, {33, 1090, 35}};
    for (int i = 0; i < 6 * 3 * 4; i++) {
        tpi_attr_scalar attr = {0.5};
        int64_t r = ranks[i % 6], rows = sizes[i / 6 % 3][0], in = sizes[i / 6 % 3][1],
                out = sizes[i / 6 % 3][2];
        tp_dtype adapter = i / 18 & 1 ? TP_BF16 : TP_F32;
        bool turned = i / 18 & 2;
        trial t = {.tolerance = 1e-3, .low = -1.0f, .high = 1.0f};
        t.operands[0] = dense(TP_BF16, DIMS(rows, in));
        t.operands[1] = strided(TP_BF16, DIMS(in, out), turned ? SHAPE(1, in) : NULL);
        t.operands[2] = strided(adapter, DIMS(in, r), turned ? SHAPE(1, in) : NULL);
        t.operands[3] = strided(adapter, DIMS(r, out), turned ? SHAPE(1, r) : NULL);
        t.operands[4] = dense(TP_F32, DIMS(out));
        t.operands[5] = dense(i & 1 ? TP_F32 : TP_BF16, DIMS(rows, out));
        begin(&t, TPI_LINEAR_LORA, 5, 1, &attr);
        must(&t);
    }
}

Test(simd, matmul_batched) {
    trial t = {.tolerance = 1e-4};
    t.operands[0] =
        strided(TP_F32, DIMS(2, 3, 19, 21), SHAPE(19 * 3 * 21, 21, 3 * 21, 1)); /* [2, 19, 3, 21] */
    t.operands[1] = strided(TP_F32, DIMS(3, 21, 18), SHAPE(21 * 18, 1, 21));
    t.operands[2] = dense(TP_F32, DIMS(2, 3, 19, 18));
    begin(&t, TPI_MATMUL, 2, 1, NULL);
    must(&t);
    trial u = {.tolerance = 1e-4};
    u.operands[0] = dense(TP_F32, DIMS(1, 5, 7));
    u.operands[1] = dense(TP_F32, DIMS(4, 7, 40));
    u.operands[2] = dense(TP_F32, DIMS(4, 5, 40));
    begin(&u, TPI_MATMUL, 2, 1, NULL);
    must(&u);
}

Test(simd, linear) {
    const int activations[] = {0, TPI_RELU, TPI_SILU, TPI_GELU, TPI_GELU_TANH};
    for (int i = 0; i < 10; i++) {
        tpi_attr_linear attr = {activations[i % 5]};
        trial t = {.tolerance = 1e-4};
        int64_t rows = i < 5 ? 23 : 1, in = 61, out = 1050;
        t.operands[0] = dense(TP_F32, DIMS(2, rows, in));
        t.operands[1] = strided(i & 1 ? TP_BF16 : TP_F32, DIMS(in, out), SHAPE(1, in));
        t.operands[2] = dense(TP_F32, DIMS(out));
        t.operands[3] = dense(i == 3 ? TP_BF16 : TP_F32, DIMS(2, rows, out));
        begin(&t, TPI_LINEAR, 3, 1, &attr);
        must(&t);
    }
}

Test(simd, lora) {
    const int64_t ranks[] = {1, 4, 8, 16, 33, 64, 100};
    for (int i = 0; i < 14; i++) {
        tpi_attr_scalar attr = {0.5};
        int64_t r = ranks[i % 7], rows = i < 7 ? 45 : 2, in = 300, out = 131;
        const int64_t *turned = i & 1 ? SHAPE(1, in) : NULL, *b_turned = i & 1 ? SHAPE(1, r) : NULL;
        trial t = {.tolerance = 1e-3};
        t.operands[0] = dense(TP_F32, DIMS(rows, in));
        t.operands[1] = strided(TP_F32, DIMS(in, r), turned);
        t.operands[2] = strided(TP_F32, DIMS(r, out), b_turned);
        t.operands[3] = dense(TP_F32, DIMS(rows, out));
        begin(&t, TPI_LORA, 3, 1, &attr);
        must(&t);
        trial u = {.tolerance = 1e-3};
        u.operands[0] = t.operands[0];
        u.operands[1] = strided(i & 2 ? TP_BF16 : TP_F32, DIMS(in, out), SHAPE(1, in));
        u.operands[2] = t.operands[1], u.operands[3] = t.operands[2];
        u.operands[4] = dense(TP_F32, DIMS(out));
        u.operands[5] = t.operands[3];
        begin(&u, TPI_LINEAR_LORA, 5, 1, &attr);
        must(&u);
    }
}

/* All is bf16, or what takes part in one product; features that fill no pair, no vector. */
Test(simd, lora_bf16) {
    const int64_t ranks[] = {1, 4, 8, 11, 16, 33},
                  sizes[][3] = {{101, 300, 131}, {97, 33, 66}, {128, 70, 35}};
    for (int i = 0; i < 6 * 3 * 4; i++) {
        tpi_attr_scalar attr = {0.5};
        int64_t r = ranks[i % 6], rows = sizes[i / 6 % 3][0], in = sizes[i / 6 % 3][1],
                out = sizes[i / 6 % 3][2];
        bool turned = i / 18 & 1;
        bool all = i / 36 == 0; /* h, of some units, is rounded to 2⁻⁹ of it then */
        trial t = {.tolerance = all ? 5e-2 : 1e-3, .low = -1.0f, .high = 1.0f};
        t.operands[0] = dense(TP_BF16, DIMS(rows, in));
        t.operands[1] = strided(TP_BF16, DIMS(in, r), turned ? SHAPE(1, in) : NULL);
        t.operands[2] = strided(all ? TP_BF16 : TP_F32, DIMS(r, out), turned ? SHAPE(1, r) : NULL);
        t.operands[3] = dense(TP_BF16, DIMS(rows, out));
        begin(&t, TPI_LORA, 3, 1, &attr);
        must(&t);
    }
}

/* ---- pointwise ---- */

static const tp_dtype float_types[] = {TP_F32, TP_BF16, TP_F16};

Test(simd, pointwise_same_shape) {
    for (int op = TPI_NEG; op <= TPI_GELU_TANH_GRAD; op++) {
        if (op == TPI_WHERE || op == TPI_CAST || !(tpi_ops[op].flags & TPI_FLAG_POINTWISE)) continue;
        bool unary = op < TPI_ADD;
        tpi_attr_scalar scalar = {1.25};
        tpi_attr_index how = {TP_LT};
        for (int64_t n = 1; n <= 67; n += 3) {
            for (int d = 0; d < 3; d++) {
                trial t = {.low = op == TPI_LOG || op == TPI_SQRT || op == TPI_RSQRT ? 0.01f : -6.0f,
                           .high = 6.0f};
                t.tolerance = op == TPI_DIV ? 1e-3 : 0.0;
                int in = unary ? 1 : 2;
                for (int k = 0; k <= in; k++) t.operands[k] = dense(float_types[d], DIMS(n));
                if (op == TPI_COMPARE) t.operands[in] = dense(TP_U8, DIMS(n));
                begin(&t, (tpi_op)op, in, 1, op == TPI_COMPARE ? (void *)&how : (void *)&scalar);
                must(&t);
            }
        }
    }
}

Test(simd, pointwise_extremes) {
    static const float values[] = {0.0f,   -0.0f,   1e-40f, 1e-8f,    -1e-4f,    0.3f,  0.99f,
                                   -1.01f, 3.9f,    -4.1f,  20.0f,    -20.0f,    87.0f, -87.0f,
                                   100.0f, -104.0f, 1e30f,  INFINITY, -INFINITY, NAN};
    const tpi_op ops[] = {TPI_EXP,  TPI_LOG,  TPI_TANH,      TPI_SIGMOID, TPI_RELU,
                          TPI_SILU, TPI_GELU, TPI_GELU_TANH, TPI_SQRT,    TPI_NEG};
    const int64_t n = sizeof values / sizeof *values;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        trial t = {.tolerance = 1e-6};
        t.operands[0] = t.operands[1] = dense(TP_F32, DIMS(n));
        t.data[0] = malloc(sizeof values);
        memcpy(t.data[0], values, sizeof values);
        begin(&t, ops[i], 1, 1, NULL);
        must(&t);
    }
}

Test(simd, pointwise_broadcast) {
    for (int d = 0; d < 3; d++) {
        trial t = {0}; /* outer, strided, last-dimension and scalar operands at once */
        tpi_attr_chain chain = {.length = 4};
        chain.steps[0] = (tpi_chain_step){.op = TPI_MUL, .dst = 4, .a = 0, .b = 1};
        chain.steps[1] = (tpi_chain_step){.op = TPI_ADD, .dst = 3, .a = 4, .b = 2};
        chain.steps[2] = (tpi_chain_step){.op = TPI_SILU_MUL, .dst = 5, .a = 3, .b = 0};
        chain.steps[3] = (tpi_chain_step){.op = TPI_MUL_SCALAR, .dst = 5, .a = 5, .s = 3.0};
        t.operands[0] = strided(float_types[d], DIMS(3, 35, 29), SHAPE(1, 3, 3 * 35));
        t.operands[1] = strided(TP_F32, DIMS(3, 35, 29), SHAPE(0, 1, 0));
        t.operands[2] = strided(TP_F32, DIMS(3, 35, 29), SHAPE(0, 0, 1));
        t.operands[3] = strided(TP_F32, DIMS(3, 35, 29), SHAPE(0, 0, 0));
        t.operands[4] = dense(float_types[d], DIMS(3, 35, 29));
        begin(&t, TPI_POINTWISE_CHAIN, 4, 1, &chain);
        must(&t);
        trial u = {0};
        u.operands[0] = dense(TP_U8, DIMS(1000));
        u.operands[1] = dense(float_types[d], DIMS(1000));
        u.operands[2] = strided(float_types[d], DIMS(1000), SHAPE(0));
        u.operands[3] = dense(float_types[d], DIMS(1000));
        begin(&u, TPI_WHERE, 3, 1, NULL);
        must(&u);
    }
}

Test(simd, cast) {
    const tp_dtype types[] = {TP_F32, TP_BF16, TP_F16, TP_I32, TP_U8};
    for (int i = 0; i < 25; i++) {
        if (i / 5 == i % 5) continue;
        tpi_attr_cast attr = {types[i % 5]};
        trial t = {.ids = 300, .low = -300.0f, .high = 300.0f};
        t.operands[0] = dense(types[i / 5], DIMS(77));
        t.operands[1] = dense(types[i % 5], DIMS(77));
        begin(&t, TPI_CAST, 1, 1, &attr);
        must(&t);
    }
}

/* ---- rows ---- */

Test(simd, softmax) {
    for (int64_t n = 1; n <= 300; n += n < 67 ? 3 : 101) {
        for (int d = 0; d < 3; d++) {
            tpi_attr_dim attr = {1};
            trial t = {.low = -9.0f, .high = 9.0f};
            for (int k = 0; k < 3; k++) t.operands[k] = dense(float_types[d], DIMS(61, n));
            begin(&t, TPI_SOFTMAX, 1, 1, &attr);
            must(&t);
            trial u = t;
            memset(u.data, 0, sizeof u.data);
            begin(&u, TPI_SOFTMAX_GRAD, 2, 1, &attr);
            u.low = -1.0f, u.high = 1.0f, u.tolerance = 1e-4;
            must(&u);
        }
    }
}

Test(simd, softmax_extremes) {
    static const float values[3][17] = {{[0] = -1e4f, [16] = 1e4f}, {[3] = -INFINITY}, {[5] = NAN}};
    tpi_attr_dim attr = {1};
    trial t = {0};
    t.operands[0] = t.operands[1] = dense(TP_F32, DIMS(4, 17));
    float *x = malloc(4 * 17 * sizeof *x);
    memcpy(x, values, sizeof values);
    for (int i = 0; i < 17; i++) x[3 * 17 + i] = -INFINITY;
    t.data[0] = x;
    begin(&t, TPI_SOFTMAX, 1, 1, &attr);
    must(&t);
}

static void check_softmax_dim(tp_dtype dtype, int dim, int rank, const int64_t *shape) {
    tpi_attr_dim attr = {dim};
    trial t = {.low = -9.0f, .high = 9.0f};
    for (int k = 0; k < 3; k++) t.operands[k] = dense(dtype, rank, shape);
    begin(&t, TPI_SOFTMAX, 1, 1, &attr);
    must(&t);
    trial u = {.low = -1.0f, .high = 1.0f, .tolerance = 1e-4};
    memcpy(u.operands, t.operands, sizeof u.operands);
    begin(&u, TPI_SOFTMAX_GRAD, 2, 1, &attr);
    must(&u);
}

Test(simd, softmax_across) {
    for (int d = 0; d < 3; d++)
        for (int64_t inner = 1; inner <= 40; inner += 3) {
            check_softmax_dim(float_types[d], 0, DIMS(37, inner));
            check_softmax_dim(float_types[d], 1, DIMS(3, 16, inner));
        }
    check_softmax_dim(TP_F32, 0, DIMS(40, 700));
    check_softmax_dim(TP_F32, 0, DIMS(9000, 5));
    check_softmax_dim(TP_F32, 1, DIMS(2, 17, 7, 111));
}

/* Columns: huge, NaN, rising block by block from -inf, all -inf, +inf. */
Test(simd, softmax_across_extremes) {
    const int64_t n = 50, columns = 5;
    tpi_attr_dim attr = {0};
    trial t = {0};
    t.operands[0] = t.operands[1] = dense(TP_F32, DIMS(n, columns));
    float *x = calloc((size_t)(n * columns), sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        x[i * columns + 2] = i < 20 ? -INFINITY : 10.0f * (float)i;
        x[i * columns + 3] = -INFINITY;
    }
    x[0] = 1e4f, x[30 * columns] = -1e4f;
    x[17 * columns + 1] = NAN, x[33 * columns + 4] = INFINITY;
    t.data[0] = x;
    begin(&t, TPI_SOFTMAX, 1, 1, &attr);
    must(&t);
}

static void check_norm(tpi_op op, int n_in, int n_out, int rows_in, tp_dtype dtype, int64_t n,
                       unsigned missing) {
    tpi_attr_norm attr = {1e-5};
    trial t = {.tolerance = 1e-4};
    const int64_t rows = 300;
    for (int k = 0; k < n_in; k++)
        t.operands[k] = k < rows_in ? dense(dtype, DIMS(rows, n)) : dense(k & 1 ? TP_F32 : dtype, DIMS(n));
    for (int k = 0; k < n_out; k++)
        t.operands[n_in + k] =
            k == 0 || op == TPI_ADD_RMS_NORM ? dense(dtype, DIMS(rows, n)) : dense(TP_F32, DIMS(n));
    begin(&t, op, n_in, n_out, &attr);
    t.step.optional_missing = (uint8_t)missing;
    must(&t);
}

Test(simd, norms) {
    for (int64_t n = 1; n <= 67; n += n < 30 ? 3 : 37) {
        for (int d = 0; d < 2; d++) {
            tp_dtype dtype = float_types[d];
            check_norm(TPI_RMS_NORM, 1, 1, 1, dtype, n, 0);
            check_norm(TPI_RMS_NORM, 2, 1, 1, dtype, n, 0);
            check_norm(TPI_ADD_RMS_NORM, 3, 2, 2, dtype, n, 0);
            check_norm(TPI_ADD_RMS_NORM, 2, 2, 2, dtype, n, 2);
            if (n == 1) continue; /* layer_norm of one element is a rounding error divided by √eps */
            check_norm(TPI_LAYER_NORM, 3, 1, 1, dtype, n, 0);
            check_norm(TPI_LAYER_NORM, 1, 1, 1, dtype, n, 0);
            check_norm(TPI_RMS_NORM_GRAD, 3, 2, 2, dtype, n, 0);
            check_norm(TPI_RMS_NORM_GRAD, 2, 2, 2, dtype, n, 2);
            check_norm(TPI_LAYER_NORM_GRAD, 3, 3, 2, dtype, n, 0);
            check_norm(TPI_LAYER_NORM_GRAD, 3, 3, 2, dtype, n, 1);
        }
    }
}

#endif
