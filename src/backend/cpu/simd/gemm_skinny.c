/* Products with few rows (one token's activations) or few columns (a LoRA's rank).
 *
 * Where both operands run along k, the product is many dot products: the large operand streams past once, in
 * its own dtype, against a few rows in f32 that stay in the first-level cache. Where the large operand's rows
 * run along n, rows scaled are added up. Nothing of it is packed. The trick: the accumulators of a dot tile
 * are exactly VW vectors, which one transposition turns into VW sums. */
#include "backend/cpu/simd/gemm.h"

#define FEW_ROWS    8
#define FEW_COLUMNS 48
#define DEEPEST     8192 /* the few columns' rows must stay near */
#define SPAN        2048 /* columns of c at a time: long enough for the processor to follow b's rows */
#define BAND        32   /* rows of c at a time */

/* What a dot tile reads: rows of p (large, any dtype) against rows of q (f32); results at out[i·op + j·oq].
 * Or both are words of two bf16, `pairs`, and k counts these. */
typedef struct dots {
    const char *p, *q;
    int64_t p_stride, q_stride; /* bytes */
    int64_t p_rows, q_rows, k;
    float *out;
    int64_t op, oq;
    bool add, pairs;
} dots;

static const float *q_row(const dots *d, int64_t j) {
    return (const float *)(const void *)(d->q + least(j, d->q_rows - 1) * d->q_stride);
}

/* One row of q: p's rows one after the other as they lie in memory, which the processor's own fetching
 * follows best. */
INLINE void dot_row(const dots *d, int dtype, bool pairs) {
    const float *q = q_row(d, 0);
    const char *p = d->p;
    float *to = d->out;
    for (int64_t i = 0; i < d->p_rows; i++, p += d->p_stride, to += d->op) {
        vf sum[4] = {v_set(0.0f), v_set(0.0f), v_set(0.0f), v_set(0.0f)};
        int64_t k = 0;
        for (; k + 4 * VW <= d->k; k += 4 * VW)
            UNROLL for (int u = 0; u < 4; u++) sum[u] =
                v_multiply_add(pairs, v_get(p, dtype, k + u * VW, VW), v_load(q + k + u * VW), sum[u]);
        for (; k + VW <= d->k; k += VW)
            sum[0] = v_multiply_add(pairs, v_get(p, dtype, k, VW), v_load(q + k), sum[0]);
        if (k < d->k)
            sum[1] = v_multiply_add(pairs, v_get(p, dtype, k, d->k - k), v_load_n(q + k, d->k - k), sum[1]);
        float total = v_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
        *to = d->add ? *to + total : total;
    }
}

INLINE void dot_tile(const dots *d, int dtype, bool pairs, int np, int nq, int64_t p0, int64_t q0) {
    const char *p[8];
    const float *q[8];
    vf acc[VW];
    UNROLL for (int i = 0; i < np; i++) p[i] = d->p + least(p0 + i, d->p_rows - 1) * d->p_stride;
    UNROLL for (int j = 0; j < nq; j++) q[j] = q_row(d, q0 + j);
    UNROLL for (int i = 0; i < VW; i++) acc[i] = v_set(0.0f);
    int64_t k = 0;
    for (; k + VW <= d->k; k += VW) {
        vf x[8];
        UNROLL for (int i = 0; i < np; i++) {
            x[i] = v_get(p[i], dtype, k, VW);
            __builtin_prefetch(p[i] + np * d->p_stride + k * dtype_size(dtype), 0, 2);
        }
        UNROLL for (int j = 0; j < nq; j++) {
            vf y = v_load(q[j] + k);
            UNROLL for (int i = 0; i < np; i++) acc[i * nq + j] =
                v_multiply_add(pairs, x[i], y, acc[i * nq + j]);
        }
    }
    if (k < d->k) {
        UNROLL for (int i = 0; i < np; i++) {
            vf x = v_get(p[i], dtype, k, d->k - k);
            UNROLL for (int j = 0; j < nq; j++) acc[i * nq + j] =
                v_multiply_add(pairs, x, v_load_n(q[j] + k, d->k - k), acc[i * nq + j]);
        }
    }
    float sums[VW];
    if (np * nq == VW) {
        v_store(sums, v_sums(acc));
    } else {
        UNROLL for (int i = 0; i < np * nq; i++) sums[i] = v_sum(acc[i]);
    }
    if (!d->add && p0 + np <= d->p_rows && q0 + nq <= d->q_rows) {
        UNROLL for (int i = 0; i < np; i++) {
            float *to = d->out + (p0 + i) * d->op + q0 * d->oq;
            UNROLL for (int j = 0; j < nq; j++) to[j * d->oq] = sums[i * nq + j];
        }
        return;
    }
    for (int i = 0; i < np && p0 + i < d->p_rows; i++) {
        for (int j = 0; j < nq && q0 + j < d->q_rows; j++) {
            float *to = d->out + (p0 + i) * d->op + (q0 + j) * d->oq;
            *to = d->add ? *to + sums[i * nq + j] : sums[i * nq + j];
        }
    }
}

/* All of p's rows; groups of q's rows as wide as the tile allows. */
INLINE void dot_rows(const dots *d, int dtype, bool pairs, int np, int nq) {
    for (int64_t p = 0; p < d->p_rows; p += np)
        for (int64_t q = 0; q < d->q_rows; q += nq) dot_tile(d, dtype, pairs, np, nq, p, q);
}

INLINE void dot_all(const dots *d, int dtype, bool pairs) {
    if (d->q_rows == 1)
        dot_row(d, dtype, pairs);
    else if (d->q_rows == 2)
        dot_rows(d, dtype, pairs, 4, 2);
    else if (d->q_rows <= 4 || VW == 8)
        dot_rows(d, dtype, pairs, VW / 4, 4);
    else
        dot_rows(d, dtype, pairs, 2, VW / 2);
}

static void dot_products(const dots *d, int dtype) {
    if (BF16_DOTS && d->pairs)
        dot_all(d, TP_F32, true);
    else if (dtype == TP_F32)
        dot_all(d, TP_F32, false);
    else if (dtype == TP_BF16)
        dot_all(d, TP_BF16, false);
    else
        dot_all(d, TP_F16, false);
}

/* y[i][n] += a[i][k..k+3] · b[k..k+3][n] for all k: b's rows are read four at a time. */
INLINE void add_rows(const float *a, int64_t a_stride, const char *b, int dtype, int64_t b_stride, int64_t m,
                     int64_t n, int64_t k, float *y, int64_t y_stride) {
    for (int64_t p = 0; p < k; p += 4) {
        const char *row[4];
        float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int r = 0; r < 4; r++) row[r] = b + least(p + r, k - 1) * b_stride;
        for (int64_t i = 0; i < m; i++) {
            const float *x = a + i * a_stride + p;
            float *to = y + i * y_stride;
            if (p + 4 > k) {
                for (int64_t r = 0; r < k - p; r++) zero[r] = x[r];
                x = zero;
            }
            vf x0 = v_set(x[0]), x1 = v_set(x[1]), x2 = v_set(x[2]), x3 = v_set(x[3]);
            for (int64_t j = 0; j < n; j += VW) {
                int64_t part = least(VW, n - j);
                vf s = v_fma(x1, v_get(row[1], dtype, j, part), x0 * v_get(row[0], dtype, j, part));
                s = v_fma(x3, v_get(row[3], dtype, j, part), v_fma(x2, v_get(row[2], dtype, j, part), s));
                v_store(to + j, v_load(to + j) + s);
            }
        }
    }
}

static void sum_of_rows(const float *a, int64_t a_stride, const tpi_matrix *b, int64_t j0, int64_t m,
                        int64_t n, int64_t k, float *y, int64_t y_stride) {
    const char *rows = tpi_matrix_at(b, 0, j0);
    int64_t stride = b->rs * dtype_size(b->dtype);
    if (b->dtype == TP_F32)
        add_rows(a, a_stride, rows, TP_F32, stride, m, n, k, y, y_stride);
    else if (b->dtype == TP_BF16)
        add_rows(a, a_stride, rows, TP_BF16, stride, m, n, k, y, y_stride);
    else
        add_rows(a, a_stride, rows, TP_F16, stride, m, n, k, y, y_stride);
}

/* f32 rows along k of `rows` rows of x: in place where they are that already. */
static const float *k_rows(const tpi_matrix *x, int64_t i0, int64_t rows, int64_t k, float *space,
                           int64_t *stride) {
    if (x->dtype == TP_F32 && x->cs == 1) {
        *stride = x->rs;
        return tpi_matrix_at(x, i0, 0);
    }
    *stride = round_up(k, VW);
    TPI_SIMD(pack_rows)(x, i0, 0, rows, k, space, *stride);
    return space;
}

static int64_t span_of(int64_t n) {
    return least(SPAN, round_up(n, VW));
}

/* Whether both operands are words of two bf16 along k. */
static bool pairs_of(const tpi_term *t) {
    return BF16_DOTS && tpi_term_is_bf16(t) && t->a.cs == 1 && t->b.rs == 1 && t->k % 2 == 0;
}

/* The dot products of a term's b, from column j on, with its rows of a: those as they are, or as f32. */
static dots few_row_dots(const tpi_term *t, int64_t i, int64_t j, const float *rows, int64_t stride) {
    dots d = {.p = tpi_matrix_at(&t->b, 0, j), .p_stride = t->b.cs * dtype_size(t->b.dtype), .add = true};
    d.pairs = pairs_of(t);
    d.q = d.pairs ? tpi_matrix_at(&t->a, i, 0) : (const void *)rows;
    d.q_stride = d.pairs ? t->a.rs * dtype_size(TP_BF16) : stride * dtype_size(TP_F32);
    d.k = d.pairs ? t->k / 2 : t->k;
    return d;
}

static void few_rows(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch) {
    const float *rows[2] = {NULL, NULL};
    int64_t stride[2] = {0, 0}, m = m1 - m0, span = span_of(g->n);
    float *out = scratch, *space = scratch + m * span;
    for (int t = 0; t < g->terms; t++) {
        if (pairs_of(&g->term[t])) continue;
        rows[t] = k_rows(&g->term[t].a, m0, m, g->term[t].k, space, &stride[t]);
        space += m * round_up(g->term[t].k, VW);
    }
    for (int64_t j = n0; j < n1; j += span) {
        int64_t n = least(span, n1 - j);
        memset(out, 0, sizeof(float) * (size_t)(span * m));
        for (int t = 0; t < g->terms; t++) {
            const tpi_matrix *b = &g->term[t].b;
            if (b->rs == 1) {
                dots d = few_row_dots(&g->term[t], m0, j, rows[t], stride[t]);
                d.p_rows = n, d.q_rows = m, d.out = out, d.op = 1, d.oq = span;
                dot_products(&d, b->dtype);
            } else {
                sum_of_rows(rows[t], stride[t], b, j, m, n, g->term[t].k, out, span);
            }
        }
        TPI_SIMD(gemm_finish)(g, m0, j, m, n, out, span);
    }
}

static void few_columns(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch) {
    const tpi_term *term = &g->term[0];
    tpi_matrix columns = tpi_matrix_transposed(term->b);
    int64_t stride, n = n1 - n0;
    float *out = scratch;
    const float *q = k_rows(&columns, n0, n, term->k, scratch + BAND * FEW_COLUMNS, &stride);
    for (int64_t i = m0; i < m1; i += BAND) {
        int64_t rows = least(BAND, m1 - i);
        dots d = {.p = tpi_matrix_at(&term->a, i, 0),
                  .q = (const void *)q,
                  .p_stride = term->a.rs * dtype_size(term->a.dtype),
                  .q_stride = stride * dtype_size(TP_F32),
                  .p_rows = rows,
                  .q_rows = n,
                  .k = term->k,
                  .out = out,
                  .op = FEW_COLUMNS,
                  .oq = 1};
        dot_products(&d, term->a.dtype);
        TPI_SIMD(gemm_finish)(g, i, n0, rows, n, out, FEW_COLUMNS);
    }
}

bool TPI_SIMD(gemm_skinny)(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                           float *scratch) {
    bool by_rows = g->m <= FEW_ROWS && !g->add,
         by_columns = g->terms == 1 && !g->add && g->n <= FEW_COLUMNS && g->m > FEW_ROWS;
    for (int t = 0; t < g->terms; t++) {
        const tpi_term *term = &g->term[t];
        by_rows = by_rows && (term->b.rs == 1 || (term->b.cs == 1 && g->m <= FEW_ROWS / 2));
        by_columns = by_columns && term->a.cs == 1 && term->k >= VW && term->k <= DEEPEST;
    }
    if (by_rows)
        few_rows(g, m0, m1, n0, n1, scratch);
    else if (by_columns)
        few_columns(g, m0, m1, n0, n1, scratch);
    return by_rows || by_columns;
}

size_t TPI_SIMD(gemm_skinny_scratch)(int64_t m, int64_t n, int64_t k) {
    int64_t by_rows = least(m, FEW_ROWS) * (span_of(n) + round_up(k, VW) + 2 * VW);
    int64_t by_columns = least(n, FEW_COLUMNS) * (BAND + round_up(least(k, DEEPEST), VW));
    if (n < FEW_COLUMNS) by_columns += (FEW_COLUMNS - n) * BAND; /* the block's rows are that far apart */
    return (size_t)round_up(most(by_rows, by_columns) * 4, 64);
}
