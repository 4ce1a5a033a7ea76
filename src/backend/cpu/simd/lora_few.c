/* The low-rank path for few rows: y = s·(x·A)·B, where A and B are larger than x and y.
 *
 * The trick: threads divide features, not rows, so that each reads its share of A and of B once: first those
 * of x, which gives each a sum h of its own for all rows, then those of y. Nothing is transposed: a row of A,
 * or a piece of a row of B, is a few vectors that numbers of x, or of h, scale. What is not f32 is widened a
 * chunk at a time, which stays in the first-level cache. */
#include "backend/cpu/simd/gemm.h"
#include "backend/cpu/simd/row.h"

#define FEWEST    4
#define MOST_ROWS 64
#define RANK      16             /* A's rows are padded to it, or to 8 where that is a vector */
#define TILE      8              /* sums of a tile, so that no multiply-add waits for another */
#define BAND      16             /* rows of x that are widened at a time */
#define CHUNK     128            /* features of x at a time */
#define PIECE     256            /* features of y at a time */
#define NEAR      (RANK * PIECE) /* floats of what is widened: of A and x, then of B */
#define UP_ROWS   4
#define UP_STEPS  2 /* vectors of y a tile */

_Static_assert((RANK + BAND) * CHUNK <= NEAR, "a chunk of A and of x has room");

typedef struct few {
    const tpi_gemm *down, *up;
    float scale;
    float *space;
    size_t stride; /* floats of space a thread: h [rows][rank], then what is widened */
    int rank;      /* padded */
} few;

size_t TPI_SIMD(lora_few_scratch)(int64_t m) {
    return sizeof(float) * (size_t)(least(m, MOST_ROWS) * RANK + NEAR);
}

bool TPI_SIMD(lora_few_takes)(const tpi_gemm *first, const tpi_gemm *second) {
    const tpi_matrix *x = &first->term[0].a, *a = &first->term[0].b, *b = &second->term[0].b;
    return first->m >= FEWEST && first->m <= MOST_ROWS && first->n <= RANK && x->cs == 1 && a->cs == 1 &&
           b->cs == 1;
}

/* Rows of a matrix as f32, `*stride` floats apart: in place where they are that already, else widened to
 * `out`, `width` apart. */
static const float *widened(const tpi_matrix *x, int64_t i, int64_t j, int64_t rows, int64_t n, int64_t width,
                            float *out, int64_t *stride) {
    *stride = x->rs;
    if (x->dtype == TP_F32) return tpi_matrix_at(x, i, j);
    *stride = width;
    if (x->rs == width && n == width) { /* one run of memory */
        TPI_SIMD(to_f32)(x->data, x->dtype, i * width, rows * width, out);
        return out;
    }
    for (int64_t k = 0; k < rows; k++)
        TPI_SIMD(to_f32)(x->data, x->dtype, (i + k) * x->rs + j, n, out + k * width);
    return out;
}

/* ---- h = x·A, over a share of the features ---- */

/* Adds k features' part to TILE / (rank / VW) rows of h; rows from `rows` on are the last one again and not
 * kept. */
INLINE void down_tile(const float *x, int64_t x_stride, const float *a, int64_t a_stride, int64_t k,
                      int64_t rows, int rank, float *h) {
    const int vectors = rank / VW, tall = TILE / vectors;
    const float *row[TILE];
    vf sum[TILE];
    UNROLL for (int t = 0; t < tall; t++) row[t] = x + least(t, rows - 1) * x_stride;
    UNROLL for (int i = 0; i < TILE; i++) sum[i] = v_set(0.0f);
    for (int64_t p = 0; p < k; p++, a += a_stride) {
        UNROLL for (int v = 0; v < vectors; v++) {
            const vf w = v_pin(v_load(a + v * VW));
            UNROLL for (int t = 0; t < tall; t++) sum[t * vectors + v] =
                v_fma(v_set(row[t][p]), w, sum[t * vectors + v]);
        }
    }
    UNROLL for (int t = 0; t < tall; t++) {
        if (t >= rows) break;
        UNROLL for (int v = 0; v < vectors; v++) {
            float *to = h + t * rank + v * VW;
            v_store(to, v_load(to) + sum[t * vectors + v]);
        }
    }
}

/* k rows of A, padded with zeros to `rank` where they are shorter. */
static const float *rows_of_a(const tpi_matrix *a, int64_t p, int64_t k, int64_t r, int rank, float *out,
                              int64_t *stride) {
    if (r == rank) return widened(a, p, 0, k, rank, rank, out, stride);
    memset(out, 0, sizeof(float) * (size_t)(k * rank));
    for (int64_t i = 0; i < k; i++) TPI_SIMD(to_f32)(a->data, a->dtype, (p + i) * a->rs, r, out + i * rank);
    *stride = rank;
    return out;
}

INLINE void down_share(const few *f, int rank, int64_t begin, int64_t end, float *h) {
    const tpi_term *term = &f->down->term[0];
    const int64_t m = f->down->m;
    float *space = h + m * rank, *near = space + RANK * CHUNK;
    for (int64_t p = begin, k; p < end; p += k) {
        int64_t a_stride, x_stride;
        k = least(CHUNK, end - p);
        const float *a = rows_of_a(&term->b, p, k, f->down->n, rank, space, &a_stride);
        for (int64_t i = 0; i < m; i += BAND) {
            const int64_t rows = least(BAND, m - i), tall = TILE / (rank / VW);
            const float *x = widened(&term->a, i, p, rows, k, CHUNK, near, &x_stride);
            for (int64_t t = 0; t < rows; t += tall)
                down_tile(x + t * x_stride, x_stride, a, a_stride, k, rows - t, rank, h + (i + t) * rank);
        }
    }
}

static void down(void *arg, int index, int count) {
    const few *f = arg;
    const int64_t k = f->down->term[0].k, begin = k * index / count, end = k * (index + 1) / count;
    float *h = f->space + (size_t)index * f->stride;
    memset(h, 0, sizeof(float) * (size_t)(f->down->m * f->rank));
    if (f->rank == RANK)
        down_share(f, RANK, begin, end, h);
    else
        down_share(f, VW, begin, end, h);
}

/* The sum of the parts, scaled, in the first one's place. */
static void join(const few *f, int parts) {
    for (int64_t i = 0; i < f->down->m * f->rank; i++) {
        float sum = 0.0f;
        for (int part = 0; part < parts; part++) sum += f->space[(size_t)part * f->stride + (size_t)i];
        f->space[i] = sum * f->scale;
    }
}

/* ---- y = h·B, a share of the features ---- */

/* Rows i ... i + UP_ROWS - 1 of y and `steps` vectors, the last cut to `part`; rows from m on are the last
 * one again. */
INLINE void up_tile(const few *f, int dtype, int steps, int64_t i, const float *b, int64_t b_stride,
                    int64_t n, int64_t part) {
    const int64_t m = f->up->m, r = f->down->n;
    const float *h[UP_ROWS];
    vf y[UP_ROWS][UP_STEPS];
    UNROLL for (int t = 0; t < UP_ROWS; t++) {
        h[t] = f->space + least(i + t, m - 1) * f->rank;
        UNROLL for (int v = 0; v < steps; v++) y[t][v] = v_set(0.0f);
    }
    for (int64_t j = 0; j < r; j++, b += b_stride) {
        vf w[UP_STEPS];
        UNROLL for (int v = 0; v < steps; v++) w[v] = v_get(b, TP_F32, v * VW, part);
        UNROLL for (int t = 0; t < UP_ROWS; t++) {
            const vf scale = v_set(h[t][j]);
            UNROLL for (int v = 0; v < steps; v++) y[t][v] = v_fma(scale, w[v], y[t][v]);
        }
    }
    UNROLL for (int t = 0; t < UP_ROWS; t++) {
        char *row = (char *)f->up->c + least(i + t, m - 1) * f->up->rs * dtype_size(dtype);
        UNROLL for (int v = 0; v < steps; v++) v_put(row, dtype, n + v * VW, y[t][v], part);
    }
}

INLINE void up_piece(const few *f, int dtype, int64_t n, int64_t end, const float *b, int64_t b_stride) {
    for (; n + UP_STEPS * VW <= end; n += UP_STEPS * VW, b += UP_STEPS * VW)
        for (int64_t i = 0; i < f->up->m; i += UP_ROWS) up_tile(f, dtype, UP_STEPS, i, b, b_stride, n, VW);
    for (; n < end; n += VW, b += VW)
        for (int64_t i = 0; i < f->up->m; i += UP_ROWS)
            up_tile(f, dtype, 1, i, b, b_stride, n, least(VW, end - n));
}

static void up(void *arg, int index, int count) {
    const few *f = arg;
    const int64_t end = f->up->n * (index + 1) / count;
    float *space = f->space + (size_t)index * f->stride + f->up->m * f->rank;
    for (int64_t n = f->up->n * index / count, next; n < end; n = next) {
        int64_t stride;
        next = least(n + PIECE, end);
        const float *b = widened(&f->up->term[0].b, 0, n, f->down->n, next - n, PIECE, space, &stride);
        if (f->up->c_dtype == TP_F32)
            up_piece(f, TP_F32, n, next, b, stride);
        else if (f->up->c_dtype == TP_BF16)
            up_piece(f, TP_BF16, n, next, b, stride);
        else
            up_piece(f, TP_F16, n, next, b, stride);
    }
}

void TPI_SIMD(lora_few)(tpi_threads *threads, const tpi_gemm *first, const tpi_gemm *second, float scale,
                        float *space, size_t stride) {
    const int rank = VW == 8 && first->n <= VW ? VW : RANK;
    const double work = (double)first->m * (double)first->n * (double)(first->term[0].k + second->n);
    few f = {first, second, scale, space, stride, rank};
    if (work < GEMM_SERIAL) {
        down(&f, 0, 1);
        join(&f, 1);
        up(&f, 0, 1);
        return;
    }
    tpi_parallel(threads, down, &f);
    join(&f, tpi_threads_parts(threads));
    tpi_parallel(threads, up, &f);
}
