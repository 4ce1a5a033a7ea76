/* The vector kernels against the reference: every instruction set that the processor has, sizes with and
 * without whole vectors, strides, broadcasts, dtypes, one thread and three. */
#include "backend/cpu/cpu.h"
#include "core/alloc.h"
#include "core/convert.h"
#include "taper/ops.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#if defined(TAPER_CUSTOM_KERNELS) && defined(__x86_64__)

#define OPERANDS 12

typedef struct trial {
    tpi_step step;
    tpi_operand operands[OPERANDS];
    uint32_t slots[OPERANDS + 1];
    void *data[OPERANDS + 1]; /* the reference's outputs; inputs */
    double tolerance;         /* relative to 1 + |reference| */
    int ids;                  /* i32 inputs are in [0, ids) */
    float low, high;          /* f32 inputs */
} trial;

#define SHAPE(...)                                                                                           \
    (const int64_t[]) {                                                                                      \
        __VA_ARGS__                                                                                          \
    }
#define COUNT(...) (int)(sizeof(SHAPE(__VA_ARGS__)) / sizeof(int64_t))
#define DIMS(...)  COUNT(__VA_ARGS__), SHAPE(__VA_ARGS__)

static tpi_operand strided(tp_dtype dtype, int rank, const int64_t *shape, const int64_t *stride) {
    tpi_operand x = {.dtype = (uint8_t)dtype, .rank = (uint8_t)rank, .contiguous = true, .count = 1};
    for (int d = rank - 1; d >= 0; d--) {
        x.shape[d] = shape[d];
        x.stride[d] = stride ? stride[d] : x.count;
        if (shape[d] != 1 && x.stride[d] != x.count) x.contiguous = false;
        x.count *= shape[d];
    }
    return x;
}
static tpi_operand dense(tp_dtype dtype, int rank, const int64_t *shape) {
    return strided(dtype, rank, shape, NULL);
}

static int64_t extent(const tpi_operand *x) {
    int64_t last = 0;
    for (int d = 0; d < x->rank; d++) last += (x->shape[d] - 1) * x->stride[d];
    return x->count ? last + 1 : 0;
}

static uint32_t state = 1;
static double uniform(void) {
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / (double)(1 << 24);
}

static size_t bytes_of(const tpi_operand *x) {
    size_t size = x->dtype == TP_U8 ? 1 : x->dtype == TP_F32 || x->dtype == TP_I32 ? 4 : 2;
    return (size_t)extent(x) * size;
}

/* Exactly as large as the operand: the address sanitizer sees a step beyond. */
static void *filled(const trial *t, const tpi_operand *x) {
    void *data = malloc(bytes_of(x) + 1);
    for (int64_t i = 0; i < extent(x); i++) {
        double v = t->low + (t->high - t->low) * uniform();
        if (x->dtype == TP_I32)
            ((int32_t *)data)[i] = (int32_t)(uniform() * t->ids);
        else
            tpi_store_f32(data, (tp_dtype)x->dtype, i, x->dtype == TP_U8 ? (float)(v > 0.0) : (float)v);
    }
    return data;
}

static void begin(trial *t, tpi_op op, int n_in, int n_out, const void *attr) {
    t->step = (tpi_step){.op = (uint16_t)op, .n_in = (uint8_t)n_in, .n_out = (uint8_t)n_out, .attr = attr};
    t->step.operands = t->operands, t->step.slots = t->slots;
    for (uint32_t i = 0; i <= OPERANDS; i++) t->slots[i] = i;
    if (t->tolerance == 0.0) t->tolerance = 2e-5;
    if (t->low == t->high) t->low = -2.0f, t->high = 2.0f;
}

static tp_status launch(trial *t, const tpi_kernel *kernel, void **data, tpi_threads *threads) {
    t->step.kernel = kernel;
    size_t scratch = kernel->scratch ? kernel->scratch(&t->step, tpi_threads_count(threads)) : 0;
    void *space = tpi_aligned_alloc(scratch);
    memset(space, 0xff, scratch);
    data[t->step.n_in + t->step.n_out] = space;
    tpi_launch l = {&t->step, data, threads};
    tp_status status = kernel->run(&l);
    tpi_free(space);
    return status;
}

static const tpi_kernel *find(const tpi_kernel_entry *list, const tpi_step *step) {
    for (; list->kernel.run; list++)
        if (list->op == (tpi_op)step->op && (!list->kernel.accepts || list->kernel.accepts(step)))
            return &list->kernel;
    return NULL;
}

static const tpi_kernel *reference(const tpi_step *step) {
    const tpi_kernel_entry *lists[] = {tpi_reference_pointwise, tpi_reference_reduce,
                                       tpi_reference_shape,     tpi_reference_linalg,
                                       tpi_reference_nn,        tpi_reference_attention};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (find(lists[i], step)) return find(lists[i], step);
    return NULL;
}

static void compare_output(const trial *t, const tpi_kernel *kernel, int k, const void *expected,
                           const void *got) {
    const tpi_operand *y = &t->operands[t->step.n_in + k];
    double ulp = y->dtype == TP_BF16 ? 8e-3 : y->dtype == TP_F16 ? 1e-3 : 0.0;
    for (int64_t i = 0; i < y->count; i++) {
        double e = (double)tpi_load_f32(expected, (tp_dtype)y->dtype, i);
        double g = (double)tpi_load_f32(got, (tp_dtype)y->dtype, i);
        bool same = e == g || (e != e && g != g) || fabs(e - g) <= (t->tolerance + ulp) * (1.0 + fabs(e));
        cr_assert(same, "%s op %d output %d [%lld]: expected %.9g, got %.9g", kernel->name, t->step.op, k,
                  (long long)i, e, g);
    }
}

static void check_kernel(trial *t, const tpi_kernel *kernel, int threads) {
    tpi_threads *pool;
    void *data[OPERANDS + 1] = {NULL};
    cr_assert_eq(tpi_threads_create(&pool, threads), TP_OK);
    for (int i = 0; i < t->step.n_in + t->step.n_out; i++) {
        bool copied = i < t->step.n_in;
        size_t bytes = bytes_of(&t->operands[i]);
        if (!copied && (t->step.optional_missing >> (i - t->step.n_in) & 1)) continue;
        data[i] = malloc(bytes + 1);
        memcpy(data[i], t->data[copied ? i : 0], copied ? bytes : 0);
    }
    bool in_place = t->step.op == TPI_ADAMW;
    for (int k = 0; in_place && k < t->step.n_out; k++) {
        free(data[t->step.n_in + k]);
        data[t->step.n_in + k] = data[k];
    }
    cr_assert_eq(launch(t, kernel, data, pool), TP_OK);
    for (int k = 0; k < t->step.n_out; k++)
        if (data[t->step.n_in + k])
            compare_output(t, kernel, k, t->data[t->step.n_in + k], data[t->step.n_in + k]);
    for (int i = 0; i < t->step.n_in + (in_place ? 0 : t->step.n_out); i++) free(data[i]);
    tpi_threads_destroy(pool);
}

static bool has_isa(const char *isa) {
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return strcmp(isa, "avx2") == 0
               ? avx2
               : avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("avx512vl");
}

/* Fills the inputs, computes the reference, and compares each list's kernel. Returns how many accepted. */
static int check(trial *t) {
    const tpi_kernel_entry *lists[] = {tpi_avx512_kernels, tpi_avx2_kernels};
    const tpi_kernel *oracle = reference(&t->step);
    tpi_threads *one;
    int accepted = 0, n = t->step.n_in + t->step.n_out;
    cr_assert_not_null(oracle);
    cr_assert_eq(tpi_threads_create(&one, 1), TP_OK);
    for (int i = 0; i < n; i++)
        if (!t->data[i]) t->data[i] = filled(t, &t->operands[i]);
    cr_assert_eq(launch(t, oracle, t->data, one), TP_OK);
    for (size_t l = 0; l < sizeof lists / sizeof *lists; l++) {
        const tpi_kernel *kernel = lists[l]->kernel.run ? find(lists[l], &t->step) : NULL;
        if (!kernel || !has_isa(kernel->name)) continue;
        check_kernel(t, kernel, 1);
        check_kernel(t, kernel, 3);
        accepted++;
    }
    for (int i = 0; i < n; i++) free(t->data[i]);
    tpi_threads_destroy(one);
    return accepted;
}

/* check, and that some kernel took it. */
static void must(trial *t) {
    int available = has_isa("avx2");
    int accepted = check(t);
    cr_assert(!available || accepted > 0, "op %d: no vector kernel accepted", t->step.op);
}

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

/* ---- pointwise ---- */

static const tp_dtype float_types[] = {TP_F32, TP_BF16, TP_F16};

Test(simd, pointwise_same_shape) {
    for (int op = TPI_NEG; op <= TPI_GELU_TANH_GRAD; op++) {
        if (op == TPI_WHERE || op == TPI_CAST) continue;
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

/* ---- losses, rotary embedding, optimizer, dropout ---- */

Test(simd, cross_entropy) {
    for (int d = 0; d < 3; d++) {
        for (int64_t n = 3; n < 600; n = n * 2 + 1) {
            tpi_attr_ignore attr = {1};
            trial t = {.ids = (int)n, .tolerance = 1e-5};
            t.operands[0] = dense(float_types[d], DIMS(5, 7, n));
            t.operands[1] = dense(TP_I32, DIMS(5, 7));
            t.operands[2] = t.operands[3] = dense(TP_F32, DIMS(5, 7));
            begin(&t, TPI_CROSS_ENTROPY, 2, 2, &attr);
            must(&t);
            for (int64_t uniform = 0; uniform < 2; uniform++) {
                trial u = {.ids = (int)n, .low = 1.0f, .high = 3.0f};
                u.operands[0] = u.operands[4] = t.operands[0];
                u.operands[1] = t.operands[1], u.operands[2] = t.operands[2];
                u.operands[3] = strided(TP_F32, DIMS(5, 7), uniform ? SHAPE(0, 0) : NULL);
                begin(&u, TPI_CROSS_ENTROPY_GRAD, 4, 1, &attr);
                must(&u);
            }
        }
    }
}

Test(simd, rope) {
    for (int i = 0; i < 12; i++) {
        tpi_attr_rope attr = {i & 1 ? TP_ROPE_HALF : TP_ROPE_INTERLEAVED, i & 2 ? 1 : 0};
        tp_dtype dtype = float_types[i / 4];
        trial t = {.ids = 3000, .low = -1.0f, .high = 1.0f, .tolerance = 2e-5};
        int64_t size = i & 1 ? 70 : 32, turned = i & 1 ? 33 : 16;
        t.operands[0] = t.operands[3] = dense(dtype, DIMS(2, 9, 3, size));
        t.operands[1] = strided(TP_I32, DIMS(2, 9), i & 4 ? SHAPE(0, 1) : NULL);
        t.operands[2] = dense(TP_F32, DIMS(turned));
        begin(&t, TPI_ROPE, 3, 1, &attr);
        must(&t);
    }
}

Test(simd, adamw) {
    for (int i = 0; i < 6; i++) {
        tpi_attr_adamw attr = {0.9, 0.99, 1e-6, 0.1};
        trial t = {.low = 0.1f, .high = 0.9f};
        t.operands[0] = t.operands[6] = dense(float_types[i % 3], DIMS(1037));
        t.operands[1] = t.operands[2] = t.operands[7] = t.operands[8] = dense(TP_F32, DIMS(1037));
        t.operands[3] = dense(float_types[i / 2], DIMS(1037));
        t.operands[4] = dense(TP_F32, DIMS(3));
        t.operands[5] = dense(TP_F32, DIMS(1));
        if (i == 3) {
            t.data[5] = malloc(sizeof(float));
            *(float *)t.data[5] = INFINITY;
        }
        begin(&t, TPI_ADAMW, 6, 3, &attr);
        must(&t);
    }
}

Test(simd, dropout) {
    for (int i = 0; i < 6; i++) {
        tpi_attr_dropout attr = {0.1 * i, 77 + (uint64_t)i * 5000000000u};
        trial t = {.ids = 1 << 30};
        t.operands[0] = t.operands[2] = dense(float_types[i % 3], DIMS(7, 1033));
        t.operands[1] = dense(TP_I32, DIMS(2));
        begin(&t, TPI_DROPOUT, 2, 1, &attr);
        must(&t);
    }
}

/* ---- reductions ---- */

static void check_reduce(tpi_op op, tp_dtype dtype, int rank, const int64_t *shape, uint32_t dims,
                         bool accepted) {
    tpi_attr_reduce attr = {dims, 1};
    int64_t kept[TP_MAX_RANK];
    for (int d = 0; d < rank; d++) kept[d] = dims >> d & 1u ? 1 : shape[d];
    trial t = {.tolerance = 1e-4, .low = -1.0f, .high = 1.1f};
    t.operands[0] = dense(dtype, rank, shape);
    t.operands[1] = dense(op == TPI_ARGMAX ? TP_I32 : dtype, rank, kept);
    begin(&t, op, 1, 1, &attr);
    accepted ? must(&t) : (void)check(&t);
}

Test(simd, reductions) {
    const tpi_op ops[] = {TPI_SUM, TPI_MEAN, TPI_MAX, TPI_ARGMAX, TPI_LOGSUMEXP};
    for (int i = 0; i < 5; i++) {
        for (int d = 0; d < 2; d++) {
            for (int64_t n = 1; n < 300; n += n < 67 ? 5 : 101)
                check_reduce(ops[i], float_types[d], DIMS(3, 4, n), 4, true);
            check_reduce(ops[i], float_types[d], DIMS(2, 70001), 3, true);
            check_reduce(ops[i], float_types[d], DIMS(5, 6, 129), 6, true);
            check_reduce(ops[i], float_types[d], DIMS(5, 6, 129), 3, i < 2);
            check_reduce(ops[i], float_types[d], DIMS(3, 300, 1040), 2, i < 2);
        }
    }
}

/* ---- moves ---- */

Test(simd, fill) {
    const tp_dtype types[] = {TP_F32, TP_BF16, TP_F16, TP_I32, TP_U8};
    for (int i = 0; i < 5; i++) {
        TPI_ATTR(tpi_attr_fill, attr);
        attr.value = 3.0;
        trial t = {.tolerance = 1e-9};
        t.operands[0] = dense(types[i], DIMS(90001));
        begin(&t, TPI_FILL, 0, 1, &attr);
        must(&t);
    }
}

static void check_copy(tp_dtype dtype, int rank, const int64_t *shape, const int64_t *stride) {
    trial t = {.ids = 1000, .tolerance = 1e-9};
    t.operands[0] = strided(dtype, rank, shape, stride);
    t.operands[1] = dense(dtype, rank, shape);
    begin(&t, TPI_COPY, 1, 1, NULL);
    must(&t);
}

Test(simd, copy) {
    const tp_dtype types[] = {TP_F32, TP_BF16, TP_I32, TP_U8};
    for (int i = 0; i < 4; i++) {
        check_copy(types[i], DIMS(1), NULL);
        check_copy(types[i], DIMS(70000), NULL);
        check_copy(types[i], DIMS(67, 300), SHAPE(1, 67));
        check_copy(types[i], DIMS(300, 512), SHAPE(1, 300));
        check_copy(types[i], DIMS(2, 5, 19, 33), SHAPE(5 * 19 * 33, 33, 5 * 33, 1)); /* heads forward */
        check_copy(types[i], DIMS(2, 19, 33, 5), SHAPE(5 * 19 * 33, 33, 1, 19 * 33));
        check_copy(types[i], DIMS(4, 17, 35), SHAPE(0, 1, 17));
        check_copy(types[i], DIMS(4, 17, 35), SHAPE(35, 0, 1));
        check_copy(types[i], DIMS(9, 11), SHAPE(33, 3));
    }
}

Test(simd, concat) {
    for (int64_t dim = 0; dim < 3; dim++) {
        tpi_attr_dim attr = {dim};
        trial t = {0};
        int64_t shape[3] = {3, 5, 7}, total = 0;
        for (int k = 0; k < 3; k++) {
            shape[dim] = 2 + 3 * k, total += shape[dim];
            t.operands[k] = dense(TP_BF16, 3, shape);
        }
        shape[dim] = total;
        t.operands[3] = dense(TP_BF16, 3, shape);
        begin(&t, TPI_CONCAT, 3, 1, &attr);
        must(&t);
    }
}

Test(simd, rows_by_index) {
    trial t = {.ids = 50};
    t.operands[0] = dense(TP_BF16, DIMS(50, 131));
    t.operands[1] = dense(TP_I32, DIMS(9, 40));
    t.operands[2] = dense(TP_BF16, DIMS(9, 40, 131));
    begin(&t, TPI_GATHER, 2, 1, NULL);
    must(&t);
    trial u = {.ids = 50};
    u.operands[0] = u.operands[3] = dense(TP_F32, DIMS(50, 131));
    u.operands[1] = dense(TP_I32, DIMS(9, 40));
    u.operands[2] = dense(TP_F32, DIMS(9, 40, 131));
    begin(&u, TPI_SCATTER_ADD, 3, 1, NULL);
    must(&u);
    trial w = {.ids = 15};
    w.operands[0] = w.operands[3] = dense(TP_F32, DIMS(3, 20, 2, 9));
    w.operands[1] = dense(TP_F32, DIMS(3, 5, 2, 9));
    w.operands[2] = dense(TP_I32, DIMS(3));
    begin(&w, TPI_CACHE_WRITE, 3, 1, NULL);
    must(&w);
}

/* Data out of range fails before anything is written. */
Test(simd, bad_indices) {
    const struct {
        tpi_op op;
        int n_in, n_out;
    } cases[] = {
        {TPI_GATHER, 2, 1}, {TPI_SCATTER_ADD, 3, 1}, {TPI_CACHE_WRITE, 3, 1}, {TPI_CROSS_ENTROPY, 2, 2}};
    tpi_attr_ignore ignore = {-100};
    tpi_threads *one;
    cr_assert_eq(tpi_threads_create(&one, 1), TP_OK);
    for (int i = 0; i < 4; i++) {
        trial t = {0};
        int32_t bad[8] = {0, 0, 0, i == 2 ? 1 : 8, -1, 0, 0, 0};
        float base[8 * 8] = {0}, values[8 * 8] = {0}, out[8 * 8], lse[8];
        for (int j = 0; j < 64; j++) out[j] = 7.0f;
        t.operands[0] = dense(TP_F32, DIMS(8, 8));
        t.operands[1] = dense(TP_I32, DIMS(8));
        t.operands[2] = dense(TP_F32, DIMS(8, 8));
        t.operands[3] = dense(TP_F32, DIMS(8, 8));
        if (i == 2) t.operands[1] = dense(TP_F32, DIMS(8, 8)), t.operands[2] = dense(TP_I32, DIMS(8));
        if (i == 3) t.operands[2] = t.operands[3] = dense(TP_F32, DIMS(8));
        begin(&t, cases[i].op, cases[i].n_in, cases[i].n_out, &ignore);
        void *data[OPERANDS + 1] = {base, bad, values, out};
        if (cases[i].n_in == 2) data[2] = out, data[3] = lse;
        if (i == 2) data[1] = values, data[2] = bad;
        const tpi_kernel *kernel = has_isa("avx512") ? find(tpi_avx512_kernels, &t.step)
                                   : has_isa("avx2") ? find(tpi_avx2_kernels, &t.step)
                                                     : reference(&t.step);
        cr_assert_not_null(kernel);
        cr_assert_eq(launch(&t, kernel, data, one), TP_EINVAL, "op %d", cases[i].op);
        for (int j = 0; j < 64; j++) cr_assert_eq(out[j], 7.0f);
    }
    tpi_threads_destroy(one);
}

/* ---- attention ---- */

typedef struct attention_case {
    int64_t b, t, h, s, g, d, window;
    bool causal, start, lengths;
    int mask; /* 0: none, 1: [T, S], 2: [B, 1, 1, S], 3: [H, T, 1] */
    tp_dtype dtype;
} attention_case;

/* q, k, v as [B, tokens, heads, D] views of [B, heads, tokens, D] memory where `turned`. */
static tpi_operand heads(tp_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t d, bool turned) {
    return strided(dtype, DIMS(b, t, h, d), turned ? SHAPE(h * t * d, d, t * d, 1) : NULL);
}

static int options(const attention_case *c, trial *t, int next) {
    if (c->start) t->operands[next++] = dense(TP_I32, DIMS(c->b));
    if (c->lengths) t->operands[next++] = dense(TP_I32, DIMS(c->b));
    if (c->mask == 1) t->operands[next++] = dense(TP_F32, DIMS(c->t, c->s));
    if (c->mask == 2) t->operands[next++] = dense(TP_F32, DIMS(c->b, 1, 1, c->s));
    if (c->mask == 3) t->operands[next++] = dense(TP_F32, DIMS(c->h, c->t, 1));
    return next;
}

static void check_attention(const attention_case *c, bool turned) {
    TPI_ATTR(tpi_attr_attention, attr);
    attr.scale = 0.3, attr.window = c->window, attr.causal = c->causal;
    attr.has_start = c->start, attr.has_lengths = c->lengths, attr.has_mask = c->mask != 0;
    trial t = {.ids = (int)c->s, .tolerance = 5e-5, .low = -1.0f, .high = 1.0f};
    tpi_operand q = heads(c->dtype, c->b, c->t, c->h, c->d, turned);
    tpi_operand k = heads(c->dtype, c->b, c->s, c->g, c->d, turned);
    tpi_operand out = heads(c->dtype, c->b, c->t, c->h, c->d, false),
                lse = dense(TP_F32, DIMS(c->b, c->h, c->t));
    t.operands[0] = q, t.operands[1] = t.operands[2] = k;
    int n = options(c, &t, 3);
    t.operands[n] = out, t.operands[n + 1] = lse;
    begin(&t, TPI_ATTENTION, n, 2, &attr);
    must(&t);
    trial u = {.ids = (int)c->s, .tolerance = 2e-4, .low = -1.0f, .high = 1.0f};
    u.operands[0] = q, u.operands[1] = u.operands[2] = k, u.operands[3] = u.operands[5] = out,
    u.operands[4] = lse;
    n = options(c, &u, 6);
    u.operands[n] = out;
    u.operands[n + 1] = u.operands[n + 2] = heads(c->dtype, c->b, c->s, c->g, c->d, false);
    u.data[4] = malloc((size_t)lse.count * sizeof(float) + 1);
    for (int64_t i = 0; i < lse.count; i++)
        ((float *)u.data[4])[i] = i % 37 == 5 ? -INFINITY : 3.0f + (float)(i % 5);
    begin(&u, TPI_ATTENTION_GRAD, n, 3, &attr);
    must(&u);
}

Test(simd, attention) {
    const attention_case cases[] = {
        {1, 1, 1, 1, 1, 16, 0, false, false, false, 0, TP_F32},
        {2, 7, 4, 9, 2, 20, 0, true, false, false, 0, TP_F32},
        {2, 67, 6, 67, 2, 64, 0, true, false, false, 0, TP_F32},
        {1, 150, 2, 300, 1, 33, 0, false, false, true, 0, TP_F32},
        {2, 130, 2, 290, 2, 40, 17, true, true, true, 0, TP_F32},
        {2, 61, 3, 150, 3, 16, 0, false, false, false, 1, TP_F32},
        {3, 1, 14, 333, 2, 64, 0, true, true, true, 0, TP_BF16},
        {2, 3, 4, 50, 4, 64, 9, true, true, false, 2, TP_F32},
        {2, 70, 4, 70, 2, 48, 0, true, false, true, 2, TP_BF16},
        {2, 66, 4, 40, 2, 48, 0, false, false, false, 3, TP_F16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_attention(&cases[i], i & 1);
}

#endif
