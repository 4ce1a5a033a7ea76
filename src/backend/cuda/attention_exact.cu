/* Attention and its gradient in f32, for any dtypes, strides, head sizes and scales: register-tiled FMA.
 *
 * A block of 256 threads works at 64 rows. Whatever it multiplies comes as chunks of 64 rows by 64 features,
 * converted to f32 in shared memory, of which two suffice: scores are summed over chunks of features, results
 * are computed chunk by chunk from the weights that took the left chunk's place. Results of more than 256
 * features are cut into slices, each of a block that computes the scores for itself. */
#include "backend/cuda/attention.cuh"

#define THREADS 256
#define ROWS    64
#define CHUNK   64          /* features */
#define PITCH   (CHUNK + 4) /* eight rows' sixteen bytes lie in different banks */
#define FLOATS  (ROWS * PITCH)

/* A thread has rows y + 16 i, and either columns x + 16 j of the scores or features 4 x ... 4 x + 3 of a
 * chunk. */
#define TX ((int)threadIdx.x & 15)
#define TY ((int)threadIdx.x >> 4)

/* ---- chunks ---- */

template <typename T>
static __device__ void load_tile(float *tile, const head_rows &x, int b, int t, int h, int rows, int feature,
                                 int size) {
    const T *from = row_at<T>(x, b, t, h) + feature + 4 * TX;
#pragma unroll
    for (int r = TY; r < ROWS; r += 16) {
        float4 y = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (r < rows) y = load4(from + r * x.token, x.wide, size - feature - 4 * TX);
        *(float4 *)(tile + r * PITCH + 4 * TX) = y;
    }
}

/* Rows t ... t+63 of head h, the first `rows` of them, from `feature` on; zeros beyond. */
static __device__ __noinline__ void load_chunk(float *tile, const head_rows &x, int b, int t, int h, int rows,
                                               int feature, int size) {
    if (x.dtype == TP_F32)
        load_tile<float>(tile, x, b, t, h, rows, feature, size);
    else if (x.dtype == TP_BF16)
        load_tile<__nv_bfloat16>(tile, x, b, t, h, rows, feature, size);
    else
        load_tile<__half>(tile, x, b, t, h, rows, feature, size);
}

/* x [rows, columns] += a·bᵀ */
static __device__ __forceinline__ void add_scores(float (&x)[4][4], const float *a, const float *b) {
#pragma unroll 4
    for (int f = 0; f < CHUNK; f += 4) {
        float4 l[4], r[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            l[i] = *(const float4 *)(a + (TY + 16 * i) * PITCH + f);
            r[i] = *(const float4 *)(b + (TX + 16 * i) * PITCH + f);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x[i][j] = fmaf(l[i].x, r[j].x, x[i][j]), x[i][j] = fmaf(l[i].y, r[j].y, x[i][j]);
                x[i][j] = fmaf(l[i].z, r[j].z, x[i][j]), x[i][j] = fmaf(l[i].w, r[j].w, x[i][j]);
            }
    }
}

/* sums [rows, features] += weights·b */
static __device__ __forceinline__ void add_weighted(float (&sums)[4][4], const float *weights,
                                                    const float *b) {
#pragma unroll 4
    for (int s = 0; s < ROWS; s += 4) {
        float4 w[4], r[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = *(const float4 *)(weights + (TY + 16 * i) * PITCH + s);
            r[i] = *(const float4 *)(b + (s + i) * PITCH + 4 * TX);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float k[4] = {w[i].x, w[i].y, w[i].z, w[i].w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                sums[i][0] = fmaf(k[e], r[e].x, sums[i][0]), sums[i][1] = fmaf(k[e], r[e].y, sums[i][1]);
                sums[i][2] = fmaf(k[e], r[e].z, sums[i][2]), sums[i][3] = fmaf(k[e], r[e].w, sums[i][3]);
            }
        }
    }
}

/* Rows of one operand, as a chunk is taken from it. */
struct row_block {
    const head_rows *of;
    int t, h, rows;
};

/* x = a·bᵀ over all features. The chunks' memory is free before and after. */
static __device__ __forceinline__ void score_chunks(float (&x)[4][4], float *left, float *right, row_block a,
                                                    row_block b, int sequence, int size) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[i][0] = x[i][1] = x[i][2] = x[i][3] = 0.0f;
    for (int f = 0; f < size; f += CHUNK) {
        load_chunk(left, *a.of, sequence, a.t, a.h, a.rows, f, size);
        load_chunk(right, *b.of, sequence, b.t, b.h, b.rows, f, size);
        __syncthreads();
        add_scores(x, left, right);
        __syncthreads();
    }
}

/* sums += weights·b, chunk by chunk from feature `first` on; the weights, of which a thread has its part,
 * pass through `left`. The chunks' memory is free before and after. */
template <int CHUNKS>
static __device__ __forceinline__ void add_chunks(float (&sums)[CHUNKS][4][4], const float (&weights)[4][4],
                                                  float *left, float *right, row_block b, int sequence,
                                                  int first, int size) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) left[(TY + 16 * i) * PITCH + TX + 16 * j] = weights[i][j];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (first + c * CHUNK >= size) break;
        load_chunk(right, *b.of, sequence, b.t, b.h, b.rows, first + c * CHUNK, size);
        __syncthreads();
        add_weighted(sums[c], left, right);
        __syncthreads();
    }
}

template <typename T, int CHUNKS>
static __device__ void store_typed(const float (&sums)[CHUNKS][4][4], const float (&factor)[4],
                                   const head_rows &to, int b, int t, int h, int rows, int first, int size) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = TY + 16 * i, feature = first + c * CHUNK + 4 * TX;
            if (r >= rows) continue;
            const float y[4] = {sums[c][i][0] * factor[i], sums[c][i][1] * factor[i],
                                sums[c][i][2] * factor[i], sums[c][i][3] * factor[i]};
            store4(row_at<T>(to, b, t + r, h) + feature, to.wide, size - feature, y);
        }
}

template <int CHUNKS>
static __device__ __forceinline__ void store_chunks(const float (&sums)[CHUNKS][4][4],
                                                    const float (&factor)[4], const head_rows &to, int b,
                                                    int t, int h, int rows, int first, int size) {
    if (!to.data) return;
    if (to.dtype == TP_F32)
        store_typed<float>(sums, factor, to, b, t, h, rows, first, size);
    else if (to.dtype == TP_BF16)
        store_typed<__nv_bfloat16>(sums, factor, to, b, t, h, rows, first, size);
    else
        store_typed<__half>(sums, factor, to, b, t, h, rows, first, size);
}

/* ---- forward ---- */

/* Scores to exponentials; the sums of a row are scaled down if its maximum rises. Its sixteen threads are
 * half a warp. */
template <int CHUNKS>
static __device__ __forceinline__ void soften(float (&x)[4][4], float (&top)[4], float (&sum)[4],
                                              float (&out)[CHUNKS][4][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float highest = fmaxf(fmaxf(x[i][0], x[i][1]), fmaxf(x[i][2], x[i][3]));
#pragma unroll
        for (int lane = 8; lane > 0; lane >>= 1)
            highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, lane));
        highest = fmaxf(highest, top[i]);
        const float shift = highest == -INFINITY ? 0.0f : highest, kept = expf(top[i] - shift);
        float added = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) added += x[i][j] = expf(x[i][j] - shift);
        top[i] = highest, sum[i] = sum[i] * kept + added;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) out[c][i][e] *= kept;
    }
}

/* CHUNKS: chunks of features of a slice. */
template <int CHUNKS>
static __global__ void __launch_bounds__(THREADS, CHUNKS <= 2 ? 2 : 1)
    attention_exact(const __grid_constant__ attention p, int slices) {
    __shared__ __align__(16) float left[FLOATS], right[FLOATS];
    const int lines = p.batches * p.heads, line = blockIdx.x % lines, b = line / p.heads, h = line % p.heads;
    const int tiles = (p.queries + ROWS - 1) / ROWS, slice = blockIdx.x / lines % slices;
    const int t = (tiles - 1 - (int)(blockIdx.x / lines / slices)) * ROWS, rows = min(ROWS, p.queries - t);
    const int g = h / p.share, first = slice * CHUNKS * CHUNK;
    const sight view = sight_of(p, b);
    const range keys = keys_seen(p, view, {t, t + rows});
    float out[CHUNKS][4][4] = {}, top[4], sum[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) top[i] = -INFINITY;
    for (int s = keys.begin / ROWS * ROWS; s < keys.end; s += ROWS) {
        float x[4][4];
        const int n = min(ROWS, keys.end - s);
        score_chunks(x, left, right, {&p.q, t, h, rows}, {&p.k, s, g, n}, b, p.size);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int query = t + TY + 16 * i, key = s + TX + 16 * j;
                const bool seen = query < p.queries && sees(p, view, query, key);
                x[i][j] =
                    seen ? x[i][j] * p.scale + (p.mask ? mask_at(p, b, h, query, key) : 0.0f) : -INFINITY;
            }
        soften(x, top, sum, out);
        add_chunks(out, x, left, right, {&p.v, s, g, n}, b, first, p.size);
    }
    float factor[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int lane = 8; lane > 0; lane >>= 1) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], lane);
        factor[i] = sum[i] == 0.0f ? 0.0f : 1.0f / sum[i];
        if (p.lse && slice == 0 && TX == 0 && TY + 16 * i < rows)
            p.lse[(int64_t)line * p.queries + t + TY + 16 * i] =
                sum[i] == 0.0f ? -INFINITY : top[i] + logf(sum[i]);
    }
    store_chunks(out, factor, p.out, b, t, h, rows, first, p.size);
}

/* ---- gradient: rows are keys in the one pass and queries in the other, columns the other side ---- */

struct grad_block {
    int b, h, g, heads; /* `heads` query heads from h on share key head g */
    int first, rows, slice;
    sight view;
    range columns;
};

template <bool KEYS>
static __device__ __forceinline__ grad_block block_of(const attention_grad &p, int slices) {
    grad_block w;
    const int lines = p.batches * (KEYS ? p.groups : p.heads), line = blockIdx.x % lines;
    const int all = KEYS ? p.keys : p.queries, tile = blockIdx.x / lines / slices;
    w.slice = blockIdx.x / lines % slices;
    w.first = (KEYS ? tile : (all + ROWS - 1) / ROWS - 1 - tile) * ROWS, w.rows = min(ROWS, all - w.first);
    if (KEYS)
        w.b = line / p.groups, w.g = line % p.groups, w.h = w.g * p.share, w.heads = p.share;
    else
        w.b = line / p.heads, w.h = line % p.heads, w.g = w.h / p.share, w.heads = 1;
    w.view = sight_of(p, w.b);
    const range rows = {w.first, w.first + w.rows};
    w.columns = KEYS ? queries_seeing(p, w.view, rows) : keys_seen(p, w.view, rows);
    w.columns.begin = w.columns.begin / ROWS * ROWS;
    return w;
}

/* Turns scores x and dout·vᵀ y of columns c ... c+63 into P and dS·scale. */
template <bool KEYS>
static __device__ __forceinline__ void differentiate(const attention_grad &p, const grad_block &w, int h,
                                                     int c, float (&x)[4][4], float (&y)[4][4]) {
    const query_cell *cells = p.cells + ((int64_t)w.b * p.heads + h) * p.padded;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int row = w.first + TY + 16 * i, column = c + TX + 16 * j;
            const int query = KEYS ? column : row, key = KEYS ? row : column;
            const query_cell cell = cells[query];
            const bool seen = query < p.queries && sees(p, w.view, query, key);
            float score = x[i][j] * p.scale;
            if (seen && p.mask) score += mask_at(p, w.b, h, query, key);
            x[i][j] = seen ? exp2f(score * LOG2_E - cell.x) : 0.0f;
            y[i][j] = seen ? x[i][j] * (y[i][j] - cell.y) * p.scale : 0.0f;
        }
}

template <int CHUNKS, bool KEYS>
static __global__ void __launch_bounds__(THREADS, CHUNKS <= 2 ? 2 : 1)
    attention_exact_grad(const __grid_constant__ attention_grad p, int slices) {
    __shared__ __align__(16) float left[FLOATS], right[FLOATS];
    const grad_block w = block_of<KEYS>(p, slices);
    const head_rows &one = KEYS ? p.q : p.k, &two = KEYS ? p.dout : p.v; /* of columns */
    const int first = w.slice * CHUNKS * CHUNK, all = KEYS ? p.queries : w.columns.end;
    float score_sums[CHUNKS][4][4] = {}, probability_sums[KEYS ? CHUNKS : 1][4][4] = {};
    for (int h = w.h; h < w.h + w.heads; h++)
        for (int c = w.columns.begin; c < w.columns.end; c += ROWS) {
            float x[4][4], y[4][4];
            const int row_head = KEYS ? w.g : h, column_head = KEYS ? h : w.g, n = min(ROWS, all - c);
            score_chunks(x, left, right, {KEYS ? &p.k : &p.q, w.first, row_head, w.rows},
                         {&one, c, column_head, n}, w.b, p.size);
            score_chunks(y, left, right, {KEYS ? &p.v : &p.dout, w.first, row_head, w.rows},
                         {&two, c, column_head, n}, w.b, p.size);
            differentiate<KEYS>(p, w, h, c, x, y);
            if constexpr (KEYS)
                add_chunks(probability_sums, x, left, right, {&two, c, column_head, n}, w.b, first, p.size);
            add_chunks(score_sums, y, left, right, {&one, c, column_head, n}, w.b, first, p.size);
        }
    const float factor[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    store_chunks(score_sums, factor, KEYS ? p.dk : p.dq, w.b, w.first, KEYS ? w.g : w.h, w.rows, first,
                 p.size);
    if constexpr (KEYS)
        store_chunks(probability_sums, factor, p.dv, w.b, w.first, w.g, w.rows, first, p.size);
}

/* ---- host ---- */

/* Calls `body` with CHUNKS, the chunks of a slice, and `slices`. */
#define SLICED(size, body)                                                                                   \
    do {                                                                                                     \
        const int slices = (size) > 4 * CHUNK ? (int)tpi_div_up(size, 4 * CHUNK) : 1;                        \
        if ((size) <= CHUNK) {                                                                               \
            constexpr int CHUNKS = 1;                                                                        \
            body;                                                                                            \
        } else if ((size) <= 2 * CHUNK) {                                                                    \
            constexpr int CHUNKS = 2;                                                                        \
            body;                                                                                            \
        } else {                                                                                             \
            constexpr int CHUNKS = 4;                                                                        \
            body;                                                                                            \
        }                                                                                                    \
    } while (0)

tp_status tpi_cuda_attention_exact(const tpi_launch *launch) {
    const attention p = attention_of(launch);
    cudaStream_t stream = tpi_cuda_of(launch)->stream;
    const int64_t blocks = tpi_div_up(p.queries, ROWS) * p.batches * p.heads;
    if (!blocks) return TP_OK;
    SLICED(p.size, (attention_exact<CHUNKS><<<(unsigned)(blocks * slices), THREADS, 0, stream>>>(p, slices)));
    return tpi_cuda_launched(launch);
}

template <bool KEYS> static void enqueue_pass(const attention_grad &p, cudaStream_t stream) {
    const int64_t blocks =
        tpi_div_up(KEYS ? p.keys : p.queries, ROWS) * p.batches * (KEYS ? p.groups : p.heads);
    if (!blocks || !p.size) return;
    SLICED(p.size, (attention_exact_grad<CHUNKS, KEYS>
                    <<<(unsigned)(blocks * slices), THREADS, 0, stream>>>(p, slices)));
}

tp_status tpi_cuda_attention_exact_grad(const tpi_launch *launch) {
    const attention_grad p = attention_grad_of(launch);
    cudaStream_t stream = tpi_cuda_of(launch)->stream;
    tpi_cuda_attention_cells(p, stream);
    if (p.dk.data || p.dv.data) enqueue_pass<true>(p, stream);
    if (p.dq.data) enqueue_pass<false>(p, stream);
    return tpi_cuda_launched(launch);
}
