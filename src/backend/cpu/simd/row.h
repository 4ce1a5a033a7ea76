/* Rows: kernels that work on one row of the last dimension at a time, in f32.
 *
 * Invariant: a row kernel sees f32 rows whatever the dtype; rows of other dtypes pass through the thread's
 * buffers, which stay in the first-level cache. Row i's result does not depend on which thread computes it.
 */
#ifndef TAPER_SIMD_ROW_H
#define TAPER_SIMD_ROW_H

#include "backend/cpu/simd/kernels.h"

#define STREAM_BYTES (48 << 20) /* outputs larger than this do not stay in any cache */

/* Whether output k is to be written past the caches: f32 on whole lines, large, and no input lies there. */
static inline bool tpi_streams(const tpi_launch *launch, int k) {
    const tpi_operand *y = tpi_out_operand(launch->step, k);
    const void *out = tpi_out(launch, k);
    bool so = y->dtype == TP_F32 && y->count * 4 > STREAM_BYTES && (uintptr_t)out % 64 == 0;
    for (int i = 0; i < launch->step->n_in; i++) so = so && tpi_in(launch, i) != out;
    return so;
}

/* A thread's share: rows [begin, end); buffer(k) is its k-th buffer of a row. */
typedef struct row_range {
    const tpi_launch *launch;
    int64_t begin, end, n; /* n: row length */
    float *buffers;
    int64_t pitch;
    bool stream; /* write past the caches: the output is larger than they are */
} row_range;

typedef void row_fn(const row_range *range);

/* Runs `fn` over `rows` rows of n elements, `buffers` rows of f32 for each thread from the launch's scratch.
 * Returns the number of shares, so that what threads left in their buffers can be added up. */
int TPI_SIMD(for_rows)(const tpi_launch *launch, int64_t rows, int64_t n, int buffers, row_fn *fn);
size_t TPI_SIMD(row_scratch)(int64_t n, int buffers, int threads);

/* n elements from index i of an array of any dtype to f32 and back, by the rules of core/convert.h. */
void TPI_SIMD(to_f32)(const void *data, int dtype, int64_t i, int64_t n, float *out);
void TPI_SIMD(from_f32)(const float *x, void *data, int dtype, int64_t i, int64_t n);

/* The same of a tile, whole vectors past the caches if `stream`: data is f32 then, and both are aligned to a
 * cache line. */
void TPI_SIMD(put_tile)(const float *x, void *data, int dtype, int64_t i, int64_t n, bool stream);

static inline float *row_buffer(const row_range *range, int k) {
    return range->buffers + k * range->pitch;
}

/* Row `row` of input k as f32: in place, or converted into buffer b. */
static inline const float *row_in(const row_range *range, int k, int64_t row, int b) {
    const tpi_operand *x = tpi_in_operand(range->launch->step, k);
    const void *data = tpi_in(range->launch, k);
    if (x->dtype == TP_F32) return (const float *)data + row * range->n;
    TPI_SIMD(to_f32)(data, x->dtype, row * range->n, range->n, row_buffer(range, b));
    return row_buffer(range, b);
}
/* Where to put row `row` of output k; row_done converts it if it went to buffer b. */
static inline float *row_out(const row_range *range, int k, int64_t row, int b) {
    const tpi_operand *y = tpi_out_operand(range->launch->step, k);
    if (y->dtype == TP_F32) return (float *)tpi_out(range->launch, k) + row * range->n;
    return row_buffer(range, b);
}
static inline void row_done(const row_range *range, int k, int64_t row, int b) {
    const tpi_operand *y = tpi_out_operand(range->launch->step, k);
    if (y->dtype != TP_F32) TPI_SIMD(from_f32)
    (row_buffer(range, b), tpi_out(range->launch, k), y->dtype, row * range->n, range->n);
}

/* The row of input k behind this one, if it is read in place: what a kernel fetches while it computes. The
 * processor's own prefetch stops at the page. NULL if there is none. */
static inline const float *row_next(const row_range *range, int k, int64_t row) {
    if (row + 1 == range->end || tpi_in_operand(range->launch->step, k)->dtype != TP_F32) return NULL;
    return (const float *)tpi_in(range->launch, k) + (row + 1) * range->n;
}
INLINE void row_fetch(const float *next, int64_t i) {
    if (next) __builtin_prefetch(next + i, 0, 2); /* to the second cache: the first is full of this row */
}

/* max + log Σ exp(x - max); ±inf where the maximum is. */
float TPI_SIMD(logsumexp_row)(const float *x, int64_t n);

/* Vectors of a row: i steps by VW, `part` is how many elements this one has. The whole ones come first, in a
 * loop in which `part` is a constant. */
#define FOR_VECTORS(i, part, n)                                                                              \
    UNROLL for (int64_t n_ = (n), rest_ = n_ % VW, last_ = 0; last_ < 2;                                     \
                last_++) for (int64_t i = last_ ? n_ - rest_ : 0, end_ = last_ ? n_ : n_ - rest_,            \
                              part = last_ ? rest_ : VW;                                                     \
                              i < end_; i += VW)

INLINE vf row_get(const float *x, int64_t i, int64_t part) {
    return v_get(x, TP_F32, i, part);
}
INLINE void row_put(float *y, int64_t i, vf x, int64_t part, bool stream) {
    if (stream)
        v_stream(y + i, x); /* rows are whole vectors then */
    else
        v_put(y, TP_F32, i, x, part);
}

/* Σ f(i) over a row with four running sums. `body` sets the vector `term` from i and part. */
#define ROW_SUM(total, n, body)                                                                              \
    do {                                                                                                     \
        vf sum_[4] = {v_set(0.0f), v_set(0.0f), v_set(0.0f), v_set(0.0f)};                                   \
        int64_t i = 0;                                                                                       \
        for (; i + 4 * VW <= (n); i += VW) {                                                                 \
            UNROLL for (int u_ = 0; u_ < 4; u_++) {                                                          \
                const int64_t part = VW;                                                                     \
                vf term;                                                                                     \
                body;                                                                                        \
                sum_[u_] = sum_[u_] + term;                                                                  \
                if (u_ < 3) i += VW;                                                                         \
            }                                                                                                \
        }                                                                                                    \
        for (; i < (n); i += VW) {                                                                           \
            const int64_t part = least(VW, (n)-i);                                                           \
            vf term;                                                                                         \
            body;                                                                                            \
            sum_[0] = sum_[0] + term;                                                                        \
        }                                                                                                    \
        total = v_sum((sum_[0] + sum_[1]) + (sum_[2] + sum_[3]));                                            \
    } while (0)

static inline float row_max(const float *x, int64_t n) {
    vf top[4] = {v_set(-INFINITY), v_set(-INFINITY), v_set(-INFINITY), v_set(-INFINITY)};
    int64_t i = 0;
    for (; i + 4 * VW <= n; i += 4 * VW) {
        UNROLL for (int u = 0; u < 4; u++) top[u] = v_max(v_load(x + i + u * VW), top[u]);
    }
    float best = v_top(v_max(v_max(top[0], top[1]), v_max(top[2], top[3])));
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}

#endif
