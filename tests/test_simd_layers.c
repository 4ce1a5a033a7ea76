/* The vector kernels against the reference, as test_simd does: losses, layers, reductions, moves, attention.
 */
#include "simd_helpers.h"

#if defined(TAPER_CUSTOM_KERNELS) && defined(__x86_64__)

static const tp_dtype float_types[] = {TP_F32, TP_BF16, TP_F16};

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

/* bf16 by bf16: where such products are, exponentials are rounded to bf16 before they are multiplied by w. */
Test(simd, linear_cross_entropy_bf16) {
    const int64_t sizes[][3] = {{9, 37, 131}, {35, 20, 1}, {600, 5, 3}, {70, 65, 1100}};
    for (int i = 0; i < 8; i++) {
        tpi_attr_ignore attr = {1};
        int64_t rows = sizes[i / 2][0], features = sizes[i / 2][1], n = sizes[i / 2][2];
        trial t = {.ids = (int)n, .tolerance = 4e-3, .low = -1.0f, .high = 1.0f};
        t.operands[0] = dense(TP_BF16, DIMS(rows, features));
        t.operands[1] = strided(TP_BF16, DIMS(features, n), i & 1 ? SHAPE(1, features) : NULL);
        t.operands[2] = dense(TP_I32, DIMS(rows));
        t.operands[3] = t.operands[4] = dense(TP_F32, DIMS(rows));
        t.operands[5] = dense(TP_F32, DIMS(rows, features));
        begin(&t, TPI_LINEAR_CROSS_ENTROPY, 3, 3, &attr);
        must(&t);
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
    double rounded = c->dtype == TP_BF16 ? 1e-2 : 0.0; /* of the weights, which products of bf16 round */
    trial u = {.ids = (int)c->s, .tolerance = 2e-4 + rounded, .low = -1.0f, .high = 1.0f};
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
        {1, 300, 4, 300, 2, 64, 0, true, false, false, 0, TP_BF16},
        {2, 130, 2, 290, 1, 33, 17, true, true, true, 0, TP_BF16},
        {1, 150, 3, 129, 3, 130, 0, false, false, true, 1, TP_BF16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_attention(&cases[i], i & 1);
}

#endif
