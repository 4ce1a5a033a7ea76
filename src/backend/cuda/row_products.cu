/* Products of up to eight rows of 16-bit x with weights [n, k], and their endings: rotation, caches,
 * silu·mul.
 *
 * The weights are the large matrix of the mma: two times eight columns of y a block, which its warps share
 * along the inner dimension in chunks of 128. The two eights are neighbours; or what a rotation turns into
 * each other; or the same columns of gate and up: so a block has all that an ending needs. A warp asks for
 * its first weights before it is this kernel's turn, so the memory is busy while the kernel before ends; and
 * while the block makes a norm's rows for itself, which costs less than a launch and a wait. */
#include "backend/cuda/row_products.cuh"
#include "backend/cuda/activation.cuh"
#include "backend/cuda/early.cuh"
#include "backend/cuda/tensor.cuh"

namespace {

constexpr int eight = 8, chunk = 128, loads = chunk / 32;
constexpr int resident_warps = 32; /* of a multiprocessor: 128 KiB of weights are under way */

/* A block's columns: column[h] ... + 7 of part[h]. */
struct block_columns {
    const row_product *part[2];
    int64_t column[2];
};

__device__ __forceinline__ block_columns columns_of(const row_products &p) {
    int block = (int)blockIdx.x, k = 0;
    if (p.gated) return {{&p.part[0], &p.part[1]}, {(int64_t)block * eight, (int64_t)block * eight}};
    while (block >= p.part[k].end) k++;
    if (k > 0) block -= p.part[k - 1].end;
    const row_product *part = &p.part[k];
    if (!part->turned)
        return {{part, part}, {(int64_t)block * 2 * eight, (int64_t)block * 2 * eight + eight}};
    const int half = p.head / 2, in_head = half / eight;
    const int64_t first = (int64_t)(block / in_head) * p.head + block % in_head * eight;
    return {{part, part}, {first, first + half}};
}

/* ---- the sums ---- */

template <typename T> struct lane_weights {
    const T *row[2]; /* NULL behind the last column */
    uint4 held[loads][2];

    __device__ __forceinline__ lane_weights(const block_columns &at, int g) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const row_product &part = *at.part[h];
            row[h] =
                at.column[h] + g < part.n ? (const T *)part.w + (at.column[h] + g) * part.w_leading : nullptr;
        }
    }
    __device__ __forceinline__ void load(int64_t k, int64_t end) {
#pragma unroll
        for (int i = 0; i < loads; i++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                held[i][h] = row[h] && k + 32 * i < end ? load_stream(row[h] + k + 32 * i) : uint4{};
    }
};

/* With row the row of x that this lane feeds, NULL if there is none. */
template <bool SHARED, typename T>
__device__ __forceinline__ void multiply(float (&sum)[4], const lane_weights<T> &w, const T *row, int64_t k,
                                         int64_t end) {
#pragma unroll
    for (int i = 0; i < loads; i++) {
        uint4 x = {};
        if (row && k + 32 * i < end)
            x = SHARED ? *(const uint4 *)(row + k + 32 * i) : __ldcg((const uint4 *)(row + k + 32 * i));
        const uint4 &a = w.held[i][0], &b = w.held[i][1];
        const uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
        mma(sum, first, x.x, x.y, T());
        mma(sum, second, x.z, x.w, T());
    }
}

/* ---- the norm ---- */

/* Makes the rows of x in `rows` [m, k]; block 0 makes them for others too. */
template <typename T> __device__ __forceinline__ void make_rows(const row_products &p, T *rows) {
    using values = pack<T, 8>;
    __shared__ float cells[33];
    const int packs = (int)p.k / 8;
    for (int r = 0; r < p.m; r++) {
        const values *from = (const values *)((const T *)p.norm.from + r * p.k);
        const values *other = (const values *)((const T *)p.norm.other + r * p.k);
        values *row = (values *)(rows + r * p.k);
        float squares = 0.0f;
        for (int i = threadIdx.x; i < packs; i += blockDim.x) {
            values v = from[i];
            if (p.norm.other) {
                const values more = other[i];
#pragma unroll
                for (int j = 0; j < 8; j++) v.at[j] = from_f32<T>(to_f32(v.at[j]) + to_f32(more.at[j]));
            }
#pragma unroll
            for (int j = 0; j < 8; j++) squares += to_f32(v.at[j]) * to_f32(v.at[j]);
            row[i] = v;
        }
        const float scale = rsqrtf(block_reduce<add_of>(squares, cells) / (float)p.k + p.norm.eps);
        for (int i = threadIdx.x; i < packs; i += blockDim.x) {
            const values v = row[i]; /* this thread's own */
            values y;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float w =
                    p.norm.weight ? load_typed(p.norm.weight, p.norm.weight_type, 8 * i + j) : 1.0f;
                y.at[j] = from_f32<T>(to_f32(v.at[j]) * scale * w);
            }
            row[i] = y;
            if (blockIdx.x > 0) continue;
            ((values *)((T *)p.norm.y + r * p.k))[i] = y;
            if (p.norm.sum) ((values *)((T *)p.norm.sum + r * p.k))[i] = v;
        }
    }
    __syncthreads();
}

/* ---- the endings ---- */

/* The pair turned by the angle of its row's position. */
template <typename T>
__device__ __forceinline__ void turn(const row_products &p, int row, int64_t column, float (&pair)[2]) {
    const int b = row / p.length, t = row % p.length;
    const int position = p.positions[b * p.position_stride[0] + t * p.position_stride[1]];
    float sine, cosine;
    sincosf((float)position * p.frequencies[column % p.head], &sine, &cosine);
    const float u = pair[0], w = pair[1];
    pair[0] = to_f32(from_f32<T>(u * cosine - w * sine));
    pair[1] = to_f32(from_f32<T>(u * sine + w * cosine));
}

/* Where row's element 0 goes in a cache of rows of n, or -1. State is left alone where a check has failed, of
 * any sequence. */
__device__ __forceinline__ int64_t place_in_cache(const row_products &p, int row, int64_t n) {
    bool sound = !has_fault(p.fault);
    for (int b = 0; b * p.length < p.m; b++) {
        const int64_t begin = p.start[b * p.start_stride];
        if (begin >= 0 && begin <= p.capacity - p.length) continue;
        report_fault(p.fault, TPI_CACHE_WRITE, begin, p.capacity);
        sound = false;
    }
    const int b = row / p.length;
    return sound ? (b * p.capacity + p.start[b * p.start_stride] + row % p.length) * n : -1;
}

/* Element (row, c) of the block's both eights. */
template <typename T>
__device__ __forceinline__ void finish(const row_products &p, const block_columns &at, int row, int c,
                                       float (&pair)[2]) {
    const int64_t column[2] = {at.column[0] + c, at.column[1] + c};
    const row_product &part = *at.part[0];
    const int64_t n = part.n;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const row_product &q = *at.part[h];
        if (column[h] >= n) continue;
        const float bias = q.bias ? load_typed(q.bias, q.bias_type, column[h]) : 0.0f;
        const T y = from_f32<T>(activated(pair[h] + bias, q.activation));
        ((T *)q.y)[row * n + column[h]] = y;
        pair[h] = to_f32(y);
    }
    if (p.gated) {
        if (column[0] < n)
            ((T *)p.gated)[row * n + column[0]] =
                from_f32<T>(formula<TPI_SILU_MUL>::of(pair[0], pair[1], 0.0f, 0.0f, 0));
        return;
    }
    if (part.turned) turn<T>(p, row, column[0], pair);
    const int64_t place = part.cache ? place_in_cache(p, row, n) : -1;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (column[h] >= n) continue;
        if (part.turned) ((T *)part.turned)[row * n + column[h]] = from_f32<T>(pair[h]);
        if (place >= 0) ((T *)part.cache)[place + column[h]] = from_f32<T>(pair[h]);
    }
}

/* ---- the kernel ---- */

template <typename T, int WARPS, bool NORM>
__global__ void __launch_bounds__(WARPS * 32, resident_warps / WARPS)
    products_kernel(const __grid_constant__ row_products p) {
    __shared__ float sums[WARPS][most_rows][2 * eight];
    __shared__ __align__(16) T normed[NORM ? most_normed : 1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const block_columns at = columns_of(p);
    const T *row = g < p.m ? (const T *)p.x + g * p.x_leading : nullptr;
    lane_weights<T> weights(at, g);
    int64_t k = warp * chunk + 8 * t;
    float sum[4] = {};
    let_next_start();
    if (!p.steady) wait_for_previous();
    weights.load(k, p.k);
    if (p.steady) wait_for_previous();
    if constexpr (NORM) {
        make_rows<T>(p, normed);
        if (row) row = normed + g * p.k;
    }
    while (k - 8 * t < p.k) { /* the warp's lanes stay together: the mma is all theirs */
        multiply<NORM>(sum, weights, row, k, p.k);
        k += WARPS * chunk;
        weights.load(k, p.k);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[warp][2 * t + i % 2][g + i / 2 * eight] = sum[i];
    __syncthreads();
    for (int i = threadIdx.x; i < p.m * eight; i += WARPS * 32) {
        float pair[2] = {};
#pragma unroll
        for (int w = 0; w < WARPS; w++)
#pragma unroll
            for (int h = 0; h < 2; h++) pair[h] += sums[w][i / eight][i % eight + h * eight];
        finish<T>(p, at, i / eight, i % eight, pair);
    }
}

/* Blocks of each product, counted on. */
int count_blocks(row_products *p) {
    if (p->gated) return (int)((p->part[0].n + eight - 1) / eight);
    int blocks = 0;
    for (int i = 0; i < p->count; i++)
        p->part[i].end = blocks += (int)((p->part[i].n + 2 * eight - 1) / (2 * eight));
    return blocks;
}

template <typename T, int WARPS> void start(const tpi_cuda *cuda, const row_products &p, int blocks) {
    if (p.norm.from)
        start_early(cuda, products_kernel<T, WARPS, true>, blocks, WARPS * 32, p);
    else
        start_early(cuda, products_kernel<T, WARPS, false>, blocks, WARPS * 32, p);
}

/* Few blocks share a long inner dimension among many warps; of many, more are resident if they are small. */
template <typename T> void choose(const tpi_cuda *cuda, const row_products &p, int blocks) {
    const bool is_long = p.k > 8 * chunk;
    if (is_long && blocks < 2 * cuda->processors)
        start<T, 16>(cuda, p, blocks);
    else if (!is_long && blocks > 4 * cuda->processors)
        start<T, 4>(cuda, p, blocks);
    else
        start<T, 8>(cuda, p, blocks);
}

} // namespace

void start_row_products(const tpi_cuda *cuda, int dtype, row_products p) {
    const int blocks = count_blocks(&p);
    if (dtype == TP_BF16)
        choose<__nv_bfloat16>(cuda, p, blocks);
    else
        choose<__half>(cuda, p, blocks);
}
