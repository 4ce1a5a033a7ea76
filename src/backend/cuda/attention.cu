/* Attention on tensor cores (Dao 2023): scores stay in registers, never in memory.
 *
 * A block takes 128 queries of a head, a warp 32 of them, and walks over tiles of keys. Two tiles of scores'
 * results lie in registers just as the next product wants its left operand, so probabilities go from one
 * product to the other without a move. While a tile's scores are computed its values arrive, and while its
 * values are summed the next keys. The sums are scaled down whenever a row's maximum rises. */
#include "backend/cuda/attention.cuh"

#define WARPS   4
#define THREADS (32 * WARPS)
#define QUERIES 128 /* a block */
#define KEYS    64  /* a tile */
#define PARTS   2   /* of 16 queries, a warp */

/* A warp's 32 queries: rows lane / 4 and lane / 4 + 8 of each part are the lane's. */
template <int D> struct softmax_sums {
    float out[PARTS][D / 8][4];
    float top[PARTS][2],
        sum[PARTS][2]; /* largest score; Σ exp2((score - top) · unit), of this lane's columns */
};

/* scores = q·kᵀ */
template <typename T, int D>
static __device__ __forceinline__ void score_tile(float (&x)[PARTS][KEYS / 8][4], uint32_t q, uint32_t k) {
#pragma unroll
    for (int m = 0; m < PARTS; m++)
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) x[m][j][0] = x[m][j][1] = x[m][j][2] = x[m][j][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t a[PARTS][4];
#pragma unroll
        for (int m = 0; m < PARTS; m++) load_fragment(a[m], moved<D>(q, 16 * m, step));
#pragma unroll
        for (int j = 0; j < KEYS / 8; j += 2) {
            uint32_t b[4];
            load_fragment(b, moved<D>(k, 8 * j, step));
#pragma unroll
            for (int m = 0; m < PARTS; m++) {
                mma(x[m][j], a[m], b[0], b[1], T());
                mma(x[m][j + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

/* Adds the mask, and takes out keys that are not seen. With a mask scores come out in units of log 2. */
template <bool MASKED>
static __device__ __forceinline__ void hide_keys(const attention &p, sight v, int b, int h, int t, int s,
                                                 float (&x)[PARTS][KEYS / 8][4]) {
    const int lane = threadIdx.x & 31;
    t += lane >> 2, s += 2 * (lane & 3);
#pragma unroll
    for (int m = 0; m < PARTS; m++)
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int query = t + 16 * m + (e >> 1) * 8, key = s + 8 * j + (e & 1);
                float &score = x[m][j][e];
                if (!sees(p, v, query, key))
                    score = -INFINITY;
                else if (MASKED && query < p.queries)
                    score = (score * p.scale + mask_at(p, b, h, query, key)) * LOG2_E;
            }
}

/* Scores to exponentials; the maxima and the sums brought forward. */
template <int D>
static __device__ __forceinline__ void soften(softmax_sums<D> &a, float (&x)[PARTS][KEYS / 8][4],
                                              float unit) {
#pragma unroll
    for (int m = 0; m < PARTS; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = a.top[m][half];
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
                top = fmaxf(top, fmaxf(x[m][j][2 * half], x[m][j][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float shift = top == -INFINITY ? 0.0f : top * unit;
            const float kept = fast_exp2(a.top[m][half] * unit - shift);
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++)
                    sum += x[m][j][e] = fast_exp2(x[m][j][e] * unit - shift);
            a.top[m][half] = top;
            a.sum[m][half] = a.sum[m][half] * kept + sum;
#pragma unroll
            for (int j = 0; j < D / 8; j++) a.out[m][j][2 * half] *= kept, a.out[m][j][2 * half + 1] *= kept;
        }
}

/* out += probabilities·v */
template <typename T, int D>
static __device__ __forceinline__ void add_values(softmax_sums<D> &a, const float (&x)[PARTS][KEYS / 8][4],
                                                  uint32_t v) {
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t left[PARTS][4];
#pragma unroll
        for (int m = 0; m < PARTS; m++) as_left<T>(left[m], x[m][2 * step], x[m][2 * step + 1]);
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t b[4];
            load_transposed(b, moved<D>(v, 16 * step, j / 2));
#pragma unroll
            for (int m = 0; m < PARTS; m++) {
                mma(a.out[m][j], left[m], b[0], b[1], T());
                mma(a.out[m][j + 1], left[m], b[2], b[3], T());
            }
        }
    }
}

/* Divides by the sums and stores. `tile` is the warp's part of the queries' tile, t its first query. */
template <typename T, int D>
static __device__ __forceinline__ void finish(const attention &p, softmax_sums<D> &a, T *tile, int b, int h,
                                              int t, float unit) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < PARTS; m++, t += 16) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = a.sum[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            factor[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
            const int query = t + (lane >> 2) + 8 * half;
            if (p.lse && query < p.queries && (lane & 3) == 0)
                p.lse[((int64_t)b * p.heads + h) * p.queries + query] =
                    sum == 0.0f ? -INFINITY : a.top[m][half] * unit * LN_2 + logf(sum);
        }
        store_rows<T, D>(tile + 16 * m * D, a.out[m], factor[0], factor[1], row_at<T>(p.out, b, t, h),
                         p.out.token, p.queries - t, p.size);
    }
}

template <typename T, int D, bool MASKED>
static __global__ void __launch_bounds__(THREADS, 2) attention_mma(const __grid_constant__ attention p) {
    extern __shared__ __align__(256) unsigned char shared[];
    T *q = (T *)shared, *k = q + QUERIES * D, *v = k + KEYS * D;
    const int lines = p.batches * p.heads, tiles = (p.queries + QUERIES - 1) / QUERIES;
    const int line = blockIdx.x % lines, b = line / p.heads, h = line % p.heads, g = h / p.share;
    const int first = (tiles - 1 - (int)(blockIdx.x / lines)) * QUERIES; /* the longest rows begin first */
    const int mine = first + (threadIdx.x >> 5) * 16 * PARTS;            /* the warp's first query */
    const sight view = sight_of(p, b);
    const range keys = keys_seen(p, view, {first, min(first + QUERIES, p.queries)});
    const range my_queries = {mine, mine + 16 * PARTS}, my_keys = keys_seen(p, view, my_queries);
    const float unit = MASKED ? 1.0f : p.scale * LOG2_E;
    const T *k_rows = row_at<T>(p.k, b, 0, g), *v_rows = row_at<T>(p.v, b, 0, g);
    const uint32_t q_at = left_reader<D>(q + (mine - first) * D), k_at = right_reader<D>(k),
                   v_at = left_reader<D>(v);
    softmax_sums<D> a = {};
#pragma unroll
    for (int m = 0; m < PARTS; m++) a.top[m][0] = a.top[m][1] = -INFINITY;

    int s = keys.begin / KEYS * KEYS;
    load_tile<T, D, QUERIES, THREADS>(q, row_at<T>(p.q, b, first, h), p.q.token, p.queries - first, p.size);
    if (s < keys.end)
        load_tile<T, D, KEYS, THREADS>(k, k_rows + s * p.k.token, p.k.token, keys.end - s, p.size);
    copies_begun();
    for (; s < keys.end; s += KEYS) {
        float x[PARTS][KEYS / 8][4];
        const bool sighted = s < my_keys.end && s + KEYS > my_keys.begin;
        copies_wait<0>();
        __syncthreads(); /* the keys are there, the values before them have been read */
        load_tile<T, D, KEYS, THREADS>(v, v_rows + s * p.v.token, p.v.token, keys.end - s, p.size);
        copies_begun();
        if (sighted) {
            score_tile<T, D>(x, q_at, k_at);
            if (MASKED || !all_see(p, view, my_queries, {s, s + KEYS}))
                hide_keys<MASKED>(p, view, b, h, mine, s, x);
        }
        copies_wait<0>();
        __syncthreads(); /* the values are there, the keys have been read */
        const int next = s + KEYS;
        if (next < keys.end)
            load_tile<T, D, KEYS, THREADS>(k, k_rows + next * p.k.token, p.k.token, keys.end - next, p.size);
        copies_begun();
        if (sighted) {
            soften<D>(a, x, unit);
            add_values<T, D>(a, x, v_at);
        }
    }
    copies_wait<0>();
    __syncthreads(); /* no copy is on its way to the tile that results go through */
    finish<T, D>(p, a, q + (mine - first) * D, b, h, mine, unit);
}

/* ---- host ---- */

template <typename T, int D> static void enqueue(const attention &p, cudaStream_t stream) {
    const auto kernel = p.mask ? attention_mma<T, D, true> : attention_mma<T, D, false>;
    const size_t bytes = (QUERIES + 2 * KEYS) * D * sizeof(T);
    const int64_t blocks = tpi_div_up(p.queries, QUERIES) * p.batches * p.heads;
    allow_shared((const void *)kernel, bytes);
    kernel<<<(unsigned)blocks, THREADS, bytes, stream>>>(p);
}

static tp_status run_mma(const tpi_launch *launch) {
    const attention p = attention_of(launch);
    cudaStream_t stream = tpi_cuda_of(launch)->stream;
    if (!p.batches || !p.queries || !p.heads) return TP_OK;
    if (!rows_aligned(p.q) || !rows_aligned(p.k) || !rows_aligned(p.v) || !rows_aligned(p.out))
        return tpi_cuda_attention_exact(launch);
    if (tpi_cuda_attention_wgmma(launch, p)) return tpi_cuda_launched(launch);
    ATTENTION_TILES(p.q.dtype, p.size, { enqueue<T, D>(p, stream); });
    return tpi_cuda_launched(launch);
}

extern "C" const tpi_kernel_entry tpi_cuda_attention[] = {
    {TPI_ATTENTION, {"cuda-mma", run_mma, attention_suits_mma, NULL}},
    {TPI_ATTENTION, {"cuda", tpi_cuda_attention_exact, attention_is_plain, NULL}},
    TPI_KERNELS_END,
};
