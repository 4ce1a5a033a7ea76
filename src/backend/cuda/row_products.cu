/* Products of up to eight rows of 16-bit x with weights [n, k], and their endings: rotation, caches,
 * silu·mul.
 *
 * The weights are the large matrix of the mma: two times eight columns of y a block, which its warps share
 * along the inner dimension in chunks of 128. The two eights are neighbours; or what a rotation turns into
 * each other; or the same columns of gate and up: so a block has all that an ending needs. Where there are
 * few columns a block has one eight, so that every multiprocessor reads weights.
 *
 * Between two dependent kernels a few microseconds pass in which memory could be read. So a block asks for
 * all that the plan does not write before it is this kernel's turn: for its first weights, often all of them,
 * in shared memory, where they hold no registers and leave room for the blocks of the kernels behind; for the
 * norm's weights, biases and angles. The turn finds them there. A norm's rows every block makes for itself,
 * which costs less than a launch and a wait.
 *
 * A turn is over in two or three microseconds, and instructions that a multiprocessor has not kept come from
 * far, too. So the code is short: loops are unrolled where registers ask for it alone, indices have 32 bits,
 * and what is seldom needed stands apart. */
#include "backend/cuda/row_products.cuh"
#include "backend/cuda/activation.cuh"
#include "backend/cuda/early.cuh"
#include "backend/cuda/row_stages.cuh"

namespace {

constexpr int eight = 8;
constexpr int resident_warps = 32; /* of a multiprocessor, as far as registers go */

/* A block's columns: column[h] ... + 7 of product part[h]. */
struct block_columns {
    int part[2], column[2];
};

template <int EIGHTS> __device__ __forceinline__ block_columns columns_of(const row_products &p) {
    int block = (int)blockIdx.x, k = 0;
    if (EIGHTS == 2 && p.gated) return {{0, 1}, {block * eight, block * eight}};
#pragma unroll 1
    while (block >= p.part[k].end) k++;
    if (k > 0) block -= p.part[k - 1].end;
    const int first = block * EIGHTS * eight;
    if (EIGHTS == 1 || !p.part[k].turned) return {{k, k}, {first, first + eight}};
    const int half = p.head / 2, in_head = half / eight;
    const int in_first_half = block / in_head * p.head + block % in_head * eight;
    return {{k, k}, {in_first_half, in_first_half + half}};
}

/* ---- a block's shared memory ---- */

/* Where things begin, in bytes; stages of rows at 0. */
struct block_layout {
    stage_shape stages;
    int rows, weight; /* of the norm: x [m, k], and f32 */
    int sums;         /* [warps, m, columns] */
    int bytes;
};

template <int WARPS, int EIGHTS> block_layout lay_block(const tpi_cuda *cuda, const row_products &p) {
    const int k = p.norm.from ? (int)p.k : 0, sums = WARPS * p.m * EIGHTS * eight * (int)sizeof(float);
    const int norm = p.m * k * 2 + k * (int)sizeof(float), beside = 1 << 10; /* what is not asked for here */
    block_layout at = {};
    at.stages =
        lay_stages(p.k, EIGHTS * eight + (k ? 0 : p.m), WARPS, cuda->shared_bytes - sums - norm - beside);
    at.rows = at.stages.bytes;
    at.weight = at.rows + p.m * k * 2;
    at.sums = at.weight + k * (int)sizeof(float);
    at.bytes = at.sums + sums;
    return at;
}

/* Row r of a block's stages: weights, then x; NULL: there is none. */
template <typename T, int EIGHTS>
__device__ __forceinline__ const T *source_of(const row_products &p, const block_columns &at, int r) {
    if (r >= EIGHTS * eight)
        return p.norm.from || r >= EIGHTS * eight + p.m ? nullptr
                                                        : (const T *)p.x + (r - EIGHTS * eight) * p.x_leading;
    const row_product &part = p.part[r < eight ? at.part[0] : at.part[1]];
    const int column = (r < eight ? at.column[0] : at.column[1]) + r % eight;
    return column < part.n ? (const T *)part.w + column * part.w_leading : nullptr;
}

/* ---- the sums ---- */

/* A chunk's part of the sums, from the lane's first numbers on; unless it is WHOLE, those from `left` on are
 * zeros. Rows that there are not may be anything: each has sums of its own. */
template <typename T, int EIGHTS, bool WHOLE>
__device__ __forceinline__ void multiply(float (&sum)[2][4], const uint8_t *weights, int pitch,
                                         const uint8_t *x, int left) {
#pragma unroll
    for (int i = 0; i < chunk / 32; i++) {
        uint4 a[2] = {}, b = {};
        if (WHOLE || 32 * i < left) {
#pragma unroll
            for (int h = 0; h < EIGHTS; h++) a[h] = *(const uint4 *)(weights + h * eight * pitch + 64 * i);
            b = *(const uint4 *)(x + 64 * i);
        }
        const uint32_t first[4] = {a[0].x, a[1].x, a[0].y, a[1].y},
                       second[4] = {a[0].z, a[1].z, a[0].w, a[1].w};
        mma(sum[0], first, b.x, b.y, T());
        mma(sum[1], second, b.z, b.w, T());
    }
}

/* ---- the norm ---- */

struct alignas(16) factors {
    float at[8];
};

template <typename To> __device__ __forceinline__ To as(const uint4 &bits) {
    To x;
    static_assert(sizeof x == sizeof bits, "another view of the same bytes");
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The norm's weights, f32; each thread those that it will read. */
__device__ __forceinline__ void fetch_norm_weights(const row_products &p, float *weight) {
#pragma unroll 1
    for (int i = 8 * threadIdx.x; i < p.k; i += 8 * blockDim.x) {
        factors w;
        read(p.norm.weight, i, 1.0f, w.at);
        *(factors *)(weight + i) = w;
    }
}

/* Makes the rows of x in `rows` [m, k]; block 0 makes them for others too. */
template <typename T>
__device__ __forceinline__ void make_rows(const row_products &p, T *rows, const float *weight) {
    using values = pack<T, 8>;
    __shared__ float cells[32];
    const int k = (int)p.k;
#pragma unroll 1
    for (int first = 0; first < p.m * k; first += k) {
        T *row = rows + first;
        float squares = 0.0f;
#pragma unroll 1
        for (int i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
            /* both are on their way before either is waited for */
            const uint4 x = __ldcg((const uint4 *)((const T *)p.norm.from + first + i));
            const uint4 more =
                p.norm.other ? __ldcg((const uint4 *)((const T *)p.norm.other + first + i)) : x;
            values v = as<values>(x);
            if (p.norm.other)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    v.at[j] = from_f32<T>(to_f32(v.at[j]) + to_f32(as<values>(more).at[j]));
#pragma unroll
            for (int j = 0; j < 8; j++) squares += to_f32(v.at[j]) * to_f32(v.at[j]);
            *(values *)(row + i) = v;
        }
        const float scale = rsqrtf(block_reduce<add_of>(squares, cells) / (float)k + p.norm.eps);
#pragma unroll 1
        for (int i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
            const values v = *(const values *)(row + i); /* this thread's own */
            const auto w = *(const factors *)(weight + i);
            values y;
#pragma unroll
            for (int j = 0; j < 8; j++) y.at[j] = from_f32<T>(to_f32(v.at[j]) * scale * w.at[j]);
            *(values *)(row + i) = y;
            if (blockIdx.x > 0) continue;
            *(values *)((T *)p.norm.y + first + i) = y;
            if (p.norm.sum) *(values *)((T *)p.norm.sum + first + i) = v;
        }
    }
    __syncthreads();
}

/* ---- the endings ---- */

/* What an element's ending needs beside its sum. */
struct ending {
    float bias[2], sine, cosine;
    int64_t place; /* of its row in the cache, in elements */
    int misplaced; /* the first sequence whose rows lie outside the cache; -1: none */
};

/* Not in the way of products that have none. */
__device__ __noinline__ float activated_apart(float x, int op) {
    return activated(x, op);
}

template <int EIGHTS>
__device__ __forceinline__ ending prepare(const row_products &p, const block_columns &at, int row, int c) {
    ending e = {};
    const row_product &part = p.part[at.part[0]];
#pragma unroll
    for (int h = 0; h < EIGHTS; h++) {
        const row_product &q = p.part[at.part[h]];
        if (q.bias && at.column[h] + c < q.n) e.bias[h] = load_typed(q.bias, q.bias_type, at.column[h] + c);
    }
    if (EIGHTS == 1 || (!part.turned && !part.cache)) return e;
    const int b = row / p.length, t = row % p.length;
    if (part.turned) {
        const int position = p.positions[b * p.position_stride[0] + t * p.position_stride[1]];
        sincosf((float)position * p.frequencies[(at.column[0] + c) % p.head], &e.sine, &e.cosine);
    }
    if (part.cache) {
        e.place = (b * p.capacity + p.start[b * p.start_stride] + t) * part.n;
        e.misplaced = -1;
#pragma unroll 1
        for (int i = p.m / p.length; i-- > 0;) {
            const int64_t begin = p.start[i * p.start_stride];
            if (begin < 0 || begin > p.capacity - p.length) e.misplaced = i;
        }
    }
    return e;
}

/* Whether the cache may be written: state is left alone where a check has failed, of any sequence. */
__device__ __forceinline__ bool sound(const row_products &p, const ending &e, int32_t fault) {
    if (e.misplaced >= 0)
        report_fault(p.fault, TPI_CACHE_WRITE, p.start[e.misplaced * p.start_stride], p.capacity);
    return fault == 0 && e.misplaced < 0;
}

/* Element (row, c) of the block's eights. */
template <typename T, int EIGHTS>
__device__ __forceinline__ void finish(const row_products &p, const block_columns &at, const ending &e,
                                       int row, int c, float (&value)[2], int32_t fault) {
    const row_product &part = p.part[at.part[0]];
    const int column[2] = {at.column[0] + c, at.column[1] + c}, n = (int)part.n;
    const int64_t begin = (int64_t)row * n;
#pragma unroll
    for (int h = 0; h < EIGHTS; h++) {
        const row_product &q = p.part[at.part[h]];
        if (column[h] >= n) continue;
        value[h] += e.bias[h];
        if (q.activation != TPI_LEAF) value[h] = activated_apart(value[h], q.activation);
        const T y = from_f32<T>(value[h]);
        ((T *)q.y)[begin + column[h]] = y;
        value[h] = to_f32(y);
    }
    if (EIGHTS == 1) return;
    if (p.gated) {
        if (column[0] < n)
            ((T *)p.gated)[begin + column[0]] =
                from_f32<T>(formula<TPI_SILU_MUL>::of(value[0], value[1], 0.0f, 0.0f, 0));
        return;
    }
    if (part.turned) {
        const float u = value[0], w = value[1];
        value[0] = u * e.cosine - w * e.sine;
        value[1] = u * e.sine + w * e.cosine;
    }
    const bool kept = part.cache && sound(p, e, fault);
#pragma unroll
    for (int h = 0; h < EIGHTS; h++) {
        if (column[h] >= n) continue;
        if (part.turned) ((T *)part.turned)[begin + column[h]] = from_f32<T>(value[h]);
        if (kept) ((T *)part.cache)[e.place + column[h]] = from_f32<T>(value[h]);
    }
}

/* ---- the kernel ---- */

template <typename T, int WARPS, int EIGHTS, bool NORM>
__global__ void __launch_bounds__(WARPS * 32, resident_warps / WARPS)
    products_kernel(const __grid_constant__ row_products p, const __grid_constant__ block_layout in) {
    static_assert(WARPS * 32 >= most_rows * eight, "an element has a thread");
    constexpr int columns = EIGHTS * eight;
    extern __shared__ __align__(128) uint8_t memory[];
    __shared__ uint64_t arrived[most_places];
    T *normed = (T *)(memory + in.rows);
    float *weight = (float *)(memory + in.weight), *sums = (float *)(memory + in.sums);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const int row = threadIdx.x / eight, c = threadIdx.x % eight, k = (int)p.k;
    let_next_start();
    const block_columns at = columns_of<EIGHTS>(p);
    if (!p.steady) wait_for_previous();
    const row_stages stages = {in.stages, k, memory, arrived, source_of<T, EIGHTS>(p, at, lane)};
    const int places = in.stages.places, all = in.stages.rows, pitch = in.stages.pitch;
    ending e = {};
    stages.begin();
#pragma unroll 1
    for (int s = 0; s < places; s++) stages.ask(s, s, 0, columns);
    if (row < p.m) e = prepare<EIGHTS>(p, at, row, c);
    if constexpr (NORM) fetch_norm_weights(p, weight);
    wait_for_previous();
    /* a number that is looked at late, so that nothing waits for it here */
    const int32_t fault =
        EIGHTS == 2 && p.part[at.part[0]].cache ? *(const volatile int32_t *)&p.fault->status : 0;
    if constexpr (NORM)
        make_rows<T>(p, normed, weight);
    else
#pragma unroll 1
        for (int s = 0; s < places; s++) stages.ask(s, s, columns, all);

    const int x_row = min(g, p.m - 1);
    float sum[2][4] = {};
#pragma unroll 1
    for (int s = 0, place = 0, turn = 0; s < in.stages.count; s++) {
        const int begin = s * in.stages.columns;
        const uint8_t *weights = stages.row(place, g) + 16 * t,
                      *x = NORM ? (const uint8_t *)(normed + x_row * k + begin) + 16 * t
                                : stages.row(place, columns + x_row) + 16 * t;
        stages.wait(place, turn);
#pragma unroll 1
        for (int i = warp * chunk; i < min(in.stages.columns, k - begin); i += WARPS * chunk) {
            const int left = k - begin - i;
            if (left >= chunk)
                multiply<T, EIGHTS, true>(sum, weights + 2 * i, pitch, x + 2 * i, left);
            else
                multiply<T, EIGHTS, false>(sum, weights + 2 * i, pitch, x + 2 * i, left - 8 * t);
        }
        if (places < in.stages.count) __syncthreads();
        stages.ask(s + places, place, 0, s + places < in.stages.count ? all : 0);
        if (++place == places) place = 0, turn++;
    }
#pragma unroll
    for (int i = 0; i < 2 * EIGHTS; i++)
        if (2 * t + i % 2 < p.m)
            sums[(warp * p.m + 2 * t + i % 2) * columns + g + i / 2 * eight] = sum[0][i] + sum[1][i];
    __syncthreads();
    if (row >= p.m) return;
    float value[2] = {};
#pragma unroll
    for (int w = 0; w < WARPS; w++)
#pragma unroll
        for (int h = 0; h < EIGHTS; h++) value[h] += sums[(w * p.m + row) * columns + c + h * eight];
    finish<T, EIGHTS>(p, at, e, row, c, value, fault);
}

/* ---- host ---- */

/* Blocks of each product, counted on. */
int count_blocks(row_products *p, int columns) {
    if (p->gated) return (int)tpi_div_up(p->part[0].n, eight);
    int blocks = 0;
    for (int i = 0; i < p->count; i++) p->part[i].end = blocks += (int)tpi_div_up(p->part[i].n, columns);
    return blocks;
}

template <typename T, int WARPS, int EIGHTS>
void start(const tpi_cuda *cuda, const row_products &p, int blocks) {
    const block_layout in = lay_block<WARPS, EIGHTS>(cuda, p);
    const auto kernel =
        p.norm.from ? products_kernel<T, WARPS, EIGHTS, true> : products_kernel<T, WARPS, EIGHTS, false>;
    allow_shared((const void *)kernel, (size_t)in.bytes);
    start_early(cuda, kernel, blocks, block_shape(WARPS * 32, (size_t)in.bytes), p, in);
}

/* Few blocks share a long inner dimension among more warps; of many, more are resident if they are small. */
template <typename T> void choose(const tpi_cuda *cuda, row_products &p) {
    const bool in_pairs = p.gated || p.part[0].turned, is_long = p.k > 16 * chunk;
    int blocks = count_blocks(&p, 2 * eight);
    if (!in_pairs && blocks < cuda->processors) {
        blocks = count_blocks(&p, eight);
        is_long ? start<T, 8, 1>(cuda, p, blocks) : start<T, 4, 1>(cuda, p, blocks);
    } else {
        is_long &&blocks < 2 * cuda->processors ? start<T, 8, 2>(cuda, p, blocks)
                                                : start<T, 4, 2>(cuda, p, blocks);
    }
}

} // namespace

void start_row_products(const tpi_cuda *cuda, int dtype, row_products p) {
    if (dtype == TP_BF16)
        choose<__nv_bfloat16>(cuda, p);
    else
        choose<__half>(cuda, p);
}
