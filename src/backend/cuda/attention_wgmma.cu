/* Attention (attention.cu) by Hopper's warp groups, where products run on behind the code that asks for them.
 *
 * A warp group has 64 queries, which it keeps in registers as a left operand. The scores of the next tile of
 * keys are under way together with the sum of this tile's values, and are turned into exponentials while that
 * sum is still at work (Shah, Bikshandi, Zhang, Thakkar, Ramani, Dao 2024). */
#include "backend/cuda/attention_panels.cuh"
#include "backend/cuda/early.cuh"

template <int D> struct group_shape {
    static constexpr int THREADS = 128, QUERIES = 64, KEYS = 64; /* KEYS: a tile */
    static constexpr int BLOCKS = D == 128 ? 2 : 4;              /* a multiprocessor */
    static constexpr int TILE = KEYS * D * 2;                    /* bytes */
    static constexpr int BYTES = QUERIES * D * 2 + 4 * TILE;     /* two tiles of keys, two of values */
};

#if TPI_WGMMA

/* Of a lane's two rows, lane / 4 and lane / 4 + 8 of its warp's 16. */
template <int D> struct softmax_sums {
    float out[D / 8][4];
    float top[2], sum[2]; /* largest score; Σ exp2((score - top) · unit), of this lane's columns */
};

/* Takes out keys that are not seen; (t, s) is the lane's first element. */
template <int J>
static __device__ __forceinline__ void hide_keys(const attention &p, sight v, int t, int s,
                                                 float (&x)[J][4]) {
    int first[2], count[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const range seen = keys_seen(p, v, {t + 8 * half, t + 8 * half + 1});
        first[half] = seen.begin - s, count[half] = seen.end - seen.begin;
    }
#pragma unroll
    for (int j = 0; j < J; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if ((unsigned)(8 * j + (e & 1) - first[e >> 1]) >= (unsigned)count[e >> 1]) x[j][e] = -INFINITY;
}

/* Scores to exponentials; the maxima and the sums brought forward. What was summed before is to be scaled by
 * `kept`. */
template <int D, int J>
static __device__ __forceinline__ void soften(softmax_sums<D> &a, float (&x)[J][4], float unit,
                                              float (&kept)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = a.top[half];
#pragma unroll
        for (int j = 0; j < J; j++) top = fmaxf(top, fmaxf(x[j][2 * half], x[j][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float shift = top == -INFINITY ? 0.0f : top * unit;
        float sum = 0.0f;
        kept[half] = fast_exp2(a.top[half] * unit - shift);
#pragma unroll
        for (int j = 0; j < J; j++)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) sum += x[j][e] = fast_exp2(x[j][e] * unit - shift);
        a.top[half] = top;
        a.sum[half] = a.sum[half] * kept[half] + sum;
    }
}

/* Divides by the sums and stores; t is the warp's first query. */
template <typename T, int D>
static __device__ __forceinline__ void finish(const attention &p, softmax_sums<D> &a, T *tile, int b, int h,
                                              int t, float unit) {
    const int lane = threadIdx.x & 31;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = a.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        factor[half] = sum == 0.0f ? 0.0f : 1.0f / sum;
        const int query = t + (lane >> 2) + 8 * half;
        if (p.lse && query < p.queries && (lane & 3) == 0)
            p.lse[((int64_t)b * p.heads + h) * p.queries + query] =
                sum == 0.0f ? -INFINITY : a.top[half] * unit * LN_2 + logf(sum);
    }
    store_rows<T, D>(tile, a.out, factor[0], factor[1], row_at<T>(p.out, b, t, h), p.out.token, p.queries - t,
                     p.size);
}

/* What a block works at. */
struct query_block {
    int b, h, first;
    sight view;
    range keys; /* from a tile's begin on */
    int tiles;
};

template <int QUERIES, int KEYS> static __device__ __forceinline__ query_block block_of(const attention &p) {
    query_block w;
    const int lines = p.batches * p.heads, line = blockIdx.x % lines,
              tiles = (p.queries + QUERIES - 1) / QUERIES;
    w.b = line / p.heads, w.h = line % p.heads;
    w.first = (tiles - 1 - (int)(blockIdx.x / lines)) * QUERIES; /* the longest rows begin first */
    w.view = sight_of(p, w.b);
    w.keys = keys_seen(p, w.view, {w.first, min(w.first + QUERIES, p.queries)});
    w.keys.begin = w.keys.begin / KEYS * KEYS;
    w.tiles = (w.keys.end - w.keys.begin + KEYS - 1) / KEYS;
    return w;
}

/* The queries of a warp as left operands, of a tile. */
template <int D, int ROWS>
static __device__ __forceinline__ void load_left(uint32_t (&a)[D / 16][4], uint32_t tile) {
    const int lane = threadIdx.x & 31, row = 16 * (threadIdx.x >> 5) + (lane & 15);
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        load_fragment(a[step], tile + panel_offset<ROWS>(row, 2 * step + (lane >> 4)));
}

/* Walks over the tiles: keys in two tiles of memory, values in two more. */
template <typename T, int D>
static __device__ __forceinline__ void walk(const attention &p, const query_block &w, softmax_sums<D> &a,
                                            uint32_t memory) {
    using shape = group_shape<D>;
    constexpr int KEYS = shape::KEYS, J = KEYS / 8;
    const panel_rows<T, D, shape::THREADS> queries(p.q, w.b, w.h, p.size),
        keys(p.k, w.b, w.h / p.share, p.size), values(p.v, w.b, w.h / p.share, p.size);
    const uint32_t key_tiles = memory + shape::QUERIES * D * 2, value_tiles = key_tiles + 2 * shape::TILE;
    const int lane = threadIdx.x & 31, lane_row = w.first + 16 * (threadIdx.x >> 5) + (lane >> 2);
    const float unit = p.scale * LOG2_E;
    const auto soften_tile = [&](float(&x)[J][4], int s, float(&kept)[2]) {
        if (!all_see(p, w.view, {w.first, w.first + shape::QUERIES}, {s, s + KEYS}))
            hide_keys(p, w.view, lane_row, s + 2 * (lane & 3), x);
        soften(a, x, unit, kept);
    };
    uint32_t q[D / 16][4], left[J / 2][4];
    float x[J][4], kept[2];
    int s = w.keys.begin;
    queries.template copy<shape::QUERIES>(memory, w.first, 0, p.queries - w.first);
    keys.template copy<KEYS>(key_tiles, s, 0, w.keys.end - s);
    copies_begun();
    values.template copy<KEYS>(value_tiles, s, 0, w.keys.end - s);
    if (w.tiles > 1) keys.template copy<KEYS>(key_tiles + shape::TILE, s + KEYS, 0, w.keys.end - s - KEYS);
    copies_begun();
    copies_wait<1>();
    stores_to_products();
    __syncthreads(); /* the queries and the first keys are there */
    load_left<D, shape::QUERIES>(q, memory);
    products_begin();
    multiply_transposed<T, D>(x, q, key_tiles);
    products_begun();
    products_wait<0>();
    settle(x);
    soften_tile(x, s, kept);
    as_lefts<T>(left, x);
    for (int i = 0; i + 1 < w.tiles; i++) {
        const int now = i & 1, other = now ^ 1;
        s += KEYS;
        copies_wait<0>();
        stores_to_products();
        __syncthreads(); /* the next keys and these values are there; the keys and values before them have
                            been read */
        if (i + 2 < w.tiles)
            keys.template copy<KEYS>(key_tiles + now * shape::TILE, s + KEYS, 0, w.keys.end - s - KEYS);
        values.template copy<KEYS>(value_tiles + other * shape::TILE, s, 0, w.keys.end - s);
        copies_begun();
        products_begin();
        multiply_transposed<T, D>(x, q, key_tiles + other * shape::TILE);
        products_begun();
        add_product<T, D, KEYS>(a.out, left, value_tiles + now * shape::TILE);
        products_begun();
        products_wait<1>();
        settle(x);
        soften_tile(x, s, kept);
        products_wait<0>();
        settle(a.out);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) a.out[j][e] *= kept[e >> 1];
        as_lefts<T>(left, x);
    }
    copies_wait<0>();
    stores_to_products();
    __syncthreads(); /* the last values are there */
    products_begin();
    add_product<T, D, KEYS>(a.out, left, value_tiles + (w.tiles - 1 & 1) * shape::TILE);
    products_begun();
    products_wait<0>();
    settle(a.out);
}

#endif

template <typename T, int D>
static __global__ void __launch_bounds__(group_shape<D>::THREADS, group_shape<D>::BLOCKS)
    attention_groups(const __grid_constant__ attention p) {
#if TPI_WGMMA
    using shape = group_shape<D>;
    extern __shared__ __align__(1024) unsigned char shared[];
    take_turn();
    const query_block w = block_of<shape::QUERIES, shape::KEYS>(p);
    const int warp = threadIdx.x >> 5;
    softmax_sums<D> a = {};
    a.top[0] = a.top[1] = -INFINITY;
    if (w.tiles > 0) walk<T, D>(p, w, a, shared_address(shared));
    finish<T, D>(p, a, (T *)shared + 16 * warp * D, w.b, w.h, w.first + 16 * warp, p.scale * LOG2_E);
#endif
}

template <typename T, int D> static void enqueue(const attention &p, const tpi_cuda *cuda) {
    using shape = group_shape<D>;
    const int64_t blocks = tpi_div_up(p.queries, shape::QUERIES) * p.batches * p.heads;
    allow_shared((const void *)attention_groups<T, D>, shape::BYTES);
    start_early(cuda, attention_groups<T, D>, (unsigned)blocks, block_shape(shape::THREADS, shape::BYTES), p);
}

bool tpi_cuda_attention_wgmma(const tpi_launch *launch, const attention &p) {
    tpi_cuda *cuda = tpi_cuda_of(launch);
    if (cuda->capability != 90 || p.mask) return false;
    ATTENTION_TILES(p.q.dtype, p.size, { enqueue<T, D>(p, cuda); });
    return true;
}
