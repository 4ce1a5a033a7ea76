/* Sums, means, maxima, argmax and logsumexp over any set of dimensions.
 *
 * The input's dimensions are dealt into kept and reduced ones. Where the reduced ones are innermost, a warp
 * or a block takes an output and reads along them; where kept ones are, each thread takes a few neighbouring
 * outputs and walks down. If the outputs alone do not fill the device, the reduced positions are split: up to
 * eight parts meet in a cluster's shared memory, more in scratch, which a second kernel joins.
 *
 * Parts are cut by the shapes alone and joined in a fixed order: the same data gives the same bits. */
#include "backend/cuda/layout.cuh"

#include <cooperative_groups.h>
#include <limits.h>
#include <type_traits>

namespace {

/* ---- the operations: a state, how it takes N elements, how two states join, what is made of it ---- */

template <typename T> using number_of = std::conditional_t<std::is_same_v<T, int32_t>, int32_t, float>;

template <typename T> __device__ __forceinline__ number_of<T> load_number(T x) {
    if constexpr (std::is_same_v<T, int32_t>)
        return x;
    else
        return to_f32(x);
}

template <typename T> __device__ __forceinline__ T store_number(number_of<T> x) {
    if constexpr (std::is_same_v<T, int32_t>)
        return x;
    else
        return from_f32<T>(x);
}

template <typename N> __device__ __forceinline__ N least_number() {
    if constexpr (std::is_same_v<N, int32_t>)
        return INT_MIN;
    else
        return -INFINITY;
}

/* NaN if either is. */
template <typename N> __device__ __forceinline__ N larger(N a, N b) {
    return a != a || a > b ? a : b;
}

/* And the mean. Integers wrap. */
template <typename T> struct sum_of {
    using element = T;
    using number = number_of<T>;
    using addend = std::conditional_t<std::is_same_v<T, int32_t>, uint32_t, float>;
    struct state {
        addend sum;
    };
    __device__ static state empty() { return {0}; }
    __device__ static number neutral() { return 0; }
    template <int N> __device__ static void take(state &s, const number (&x)[N], int, int) {
        addend t[N];
#pragma unroll
        for (int j = 0; j < N; j++) t[j] = (addend)x[j];
#pragma unroll
        for (int half = N / 2; half > 0; half /= 2)
#pragma unroll
            for (int j = 0; j < half; j++) t[j] += t[j + half];
        s.sum += t[0];
    }
    __device__ static state join(state a, state b) {
        return {a.sum + b.sum};
    }
    __device__ static void finish(state s, int op, int64_t n, void *y, int64_t i) {
        ((T *)y)[i] = store_number<T>((number)(op == TPI_MEAN ? s.sum / (addend)n : s.sum));
    }
};

/* The largest element, NaN if there is one, and where: the first of equals, and of NaNs. */
template <typename T> struct maximum_of {
    using element = T;
    using number = number_of<T>;
    struct state {
        number max;
        int32_t at;
    };
    __device__ static state empty() { return {least_number<number>(), INT_MAX}; }
    __device__ static number neutral() { return least_number<number>(); }
    /* Positions ascend, so that few elements are more than what there is. */
    template <int N> __device__ static void take(state &s, const number (&x)[N], int at, int step) {
        number max = x[0];
#pragma unroll
        for (int j = 1; j < N; j++) max = larger(max, x[j]);
        if (max <= s.max && s.at != INT_MAX) return;
#pragma unroll
        for (int j = 0; j < N; j++) s = join(s, {x[j], at + j * step});
    }
    __device__ static state join(state a, state b) {
        const bool a_nan = a.max != a.max, b_nan = b.max != b.max;
        const bool equal = a_nan ? b_nan : a.max == b.max;
        const bool b_wins = equal ? b.at < a.at : b_nan || b.max > a.max;
        return b_wins ? b : a;
    }
    __device__ static void finish(state s, int op, int64_t, void *y, int64_t i) {
        if (op == TPI_ARGMAX)
            ((int32_t *)y)[i] = s.at;
        else
            ((T *)y)[i] = store_number<T>(s.max);
    }
};

/* max and Σ exp(x - max), rescaled when max grows (Milakov and Gimelshein 2018). Where max is not finite it
 * is the result, whatever the sum is. */
template <typename T> struct logsumexp_of {
    using element = T;
    using number = float;
    struct state {
        float max, sum;
    };
    __device__ static float base_of(float max) { return max == -INFINITY ? 0.0f : max; }
    __device__ static state empty() { return {-INFINITY, 0.0f}; }
    __device__ static number neutral() { return -INFINITY; }
    template <int N> __device__ static void take(state &s, const number (&x)[N], int, int) {
        float max = s.max;
#pragma unroll
        for (int j = 0; j < N; j++) max = larger(max, x[j]);
        const float base = base_of(max);
        s.sum *= expf(s.max - base);
#pragma unroll
        for (int j = 0; j < N; j++) s.sum += expf(x[j] - base);
        s.max = max;
    }
    __device__ static state join(state a, state b) {
        const float max = larger(a.max, b.max), base = base_of(max);
        return {max, a.sum * expf(a.max - base) + b.sum * expf(b.max - base)};
    }
    __device__ static void finish(state s, int, int64_t, void *y, int64_t i) {
        const bool finite = s.max > -INFINITY && s.max < INFINITY;
        ((T *)y)[i] = from_f32<T>(finite ? s.max + logf(s.sum) : s.max);
    }
};

/* ---- what a launch looks like ---- */

#define ROW_THREADS 512
#define UNROLL      4 /* loads in flight a thread */
#define LANES       32
#define WAYS        8 /* of a block of the columns' kernel, down the reduced positions */
#define CLUSTER     8 /* blocks, at most: what every device with clusters offers */

struct reduction {
    layout<1> kept, reduced;
    int64_t outputs, n;            /* outputs, and elements of each */
    int64_t part;                  /* reduced positions of a split, a multiple of 256 */
    int splits, by_columns, warps; /* warps: an output is a warp's, not a block's */
    int clustered;                 /* the splits of an output are one cluster */
    int op;
};

reduction deal(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    const uint32_t dims = ((const tpi_attr_reduce *)step->attr)->dims;
    reduction r = {};
    r.op = step->op;
    r.kept.count = r.reduced.count = 1;
    for (int d = x->rank - 1; d >= 0; d--) {
        const int64_t stride[1] = {x->stride[d]};
        layout_add(dims >> d & 1u ? &r.reduced : &r.kept, x->shape[d], stride);
    }
    r.outputs = r.kept.count;
    r.n = r.reduced.count;
    return r;
}

int64_t at_least_one(int64_t n) {
    return n < 1 ? 1 : n;
}
int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Splits such that about a thousand blocks of rows exist, none with less than 8192 elements, or 32768 where
 * the splits need a second kernel. */
int64_t row_splits(const reduction *r) {
    if (r->warps) return 1;
    const int64_t by_size = r->n / (r->outputs * r->n > 1 << 19 ? 32768 : 8192);
    int64_t splits = at_least_one(smaller(by_size, 1056 / r->outputs));
    if (r->outputs * r->n <= 1 << 19) splits = smaller(splits, CLUSTER);
    while (splits <= CLUSTER && (splits & (splits - 1))) splits--;
    return splits;
}

int64_t column_splits(const reduction *r, int64_t element) {
    const int64_t tiles = tpi_div_up(r->outputs, LANES * 16 / element);
    return r->n <= 512 ? 1 : at_least_one(smaller(528 / tiles, r->n / 128));
}

/* Depends on shapes and strides alone. */
reduction plan(const tpi_step *step) {
    reduction r = deal(step);
    if (r.outputs == 0) return r;
    r.by_columns = r.kept.rank > 0 && r.kept.stride[0][0] == 1 && r.kept.size[0].size >= LANES && r.n > 1;
    r.warps = !r.by_columns &&
              (r.n <= 256 || (r.n <= 2048 && r.outputs >= 512) || (r.n <= 16384 && r.outputs >= 4096));
    const int64_t splits =
        r.by_columns ? column_splits(&r, dtype_bytes(tpi_in_operand(step, 0)->dtype)) : row_splits(&r);
    r.part = at_least_one(tpi_div_up(tpi_div_up(r.n, splits), 256)) * 256;
    r.splits = (int)at_least_one(tpi_div_up(r.n, r.part));
    if (!r.by_columns && splits <= CLUSTER)
        r.splits = (int)splits; /* a cluster has its full size; parts may be empty */
    return r;
}

/* ---- rows ---- */

template <typename S> __device__ __forceinline__ S shuffled(S s, int lane) {
    int words[sizeof(S) / 4];
    memcpy(words, &s, sizeof s);
#pragma unroll
    for (int &word : words) word = __shfl_xor_sync(0xffffffffu, word, lane);
    memcpy(&s, words, sizeof s);
    return s;
}

template <typename Op> __device__ __forceinline__ typename Op::state join_warp(typename Op::state s) {
#pragma unroll 1
    for (int lane = 16; lane > 0; lane >>= 1) s = Op::join(s, shuffled(s, lane));
    return s;
}

/* The joined state, in thread 0. */
template <typename Op> __device__ __forceinline__ typename Op::state join_block(typename Op::state s) {
    __shared__ typename Op::state cells[32];
    s = join_warp<Op>(s);
    if (threadIdx.x % 32 == 0) cells[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x >= 32) return s;
    return join_warp<Op>(threadIdx.x < blockDim.x / 32 ? cells[threadIdx.x] : Op::empty());
}

/* Over the blocks of a cluster, in thread 0 of its first block. */
template <typename Op> __device__ __forceinline__ typename Op::state join_cluster(typename Op::state s) {
#if __CUDA_ARCH__ >= 900
    __shared__ typename Op::state own;
    cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0) own = s;
    cluster.sync();
    if (cluster.block_rank() == 0 && threadIdx.x < 32)
        s = join_warp<Op>(threadIdx.x < cluster.num_blocks() ? *cluster.map_shared_rank(&own, threadIdx.x)
                                                             : Op::empty());
    cluster.sync(); /* nobody leaves while its memory is read */
#endif
    return s;
}

/* What the `team` threads of an output find in reduced positions begin ... end-1, V at a time. */
template <typename Op, int V>
__device__ __forceinline__ typename Op::state take_row(const layout<1> &reduced,
                                                       const typename Op::element *x, int64_t begin,
                                                       int64_t end, int thread, int team) {
    using T = typename Op::element;
    typename Op::state s = Op::empty();
    for (int64_t i = begin + thread * V; i < end; i += (int64_t)team * V * UNROLL) {
        pack<T, V> p[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int64_t j = i + (int64_t)u * team * V;
            if (j < end) p[u] = *(const pack<T, V> *)(x + locate(reduced, (uint64_t)j));
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int64_t j = i + (int64_t)u * team * V;
            typename Op::number number[V];
#pragma unroll
            for (int v = 0; v < V; v++) number[v] = j < end ? load_number(p[u].at[v]) : Op::neutral();
            Op::take(s, number, (int)j, 1);
        }
    }
    return s;
}

/* Blocks: outputs, and of each its splits. */
template <typename Op, int V>
__global__ void __launch_bounds__(ROW_THREADS)
    reduce_rows(const __grid_constant__ reduction r, const typename Op::element *x, void *y,
                typename Op::state *partial) {
    const int split = (int)(blockIdx.x % (unsigned)r.splits);
    const int64_t output = (int64_t)(blockIdx.x / (unsigned)r.splits) * blockDim.y + threadIdx.y;
    const int64_t begin = split * r.part, end = begin + r.part < r.n ? begin + r.part : r.n;
    if (output >= r.outputs) return; /* a whole warp: blocks of several outputs wait for nobody */
    typename Op::state s = take_row<Op, V>(r.reduced, x + locate(r.kept, (uint64_t)output), begin, end,
                                           (int)threadIdx.x, (int)blockDim.x);
    s = r.warps ? join_warp<Op>(s) : join_block<Op>(s);
    if (r.clustered) s = join_cluster<Op>(s);
    if (threadIdx.x != 0) return;
    if (r.splits == 1 || (r.clustered && split == 0))
        Op::finish(s, r.op, r.n, y, output);
    else if (!r.clustered)
        partial[split * r.outputs + output] = s;
}

/* ---- columns ---- */

/* A thread takes V neighbouring outputs and every WAYS-th reduced position of the split blockIdx.y. */
template <typename Op, int V>
__global__ void __launch_bounds__(LANES *WAYS)
    reduce_columns(const __grid_constant__ reduction r, const typename Op::element *x, void *y,
                   typename Op::state *partial) {
    using T = typename Op::element;
    __shared__ typename Op::state cells[WAYS][LANES * V];
    const int64_t first = (int64_t)blockIdx.x * LANES * V, output = first + threadIdx.x * V;
    const int64_t begin = blockIdx.y * r.part, end = begin + r.part < r.n ? begin + r.part : r.n;
    typename Op::state s[V];
#pragma unroll
    for (int v = 0; v < V; v++) s[v] = Op::empty();
    if (output < r.outputs) {
        const T *column = x + locate(r.kept, (uint64_t)output);
        for (int64_t i = begin + threadIdx.y; i < end; i += WAYS * UNROLL) {
            pack<T, V> p[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; u++)
                if (i + u * WAYS < end)
                    p[u] = *(const pack<T, V> *)(column + locate(r.reduced, (uint64_t)(i + u * WAYS)));
#pragma unroll
            for (int v = 0; v < V; v++) {
                typename Op::number number[UNROLL];
#pragma unroll
                for (int u = 0; u < UNROLL; u++)
                    number[u] = i + u * WAYS < end ? load_number(p[u].at[v]) : Op::neutral();
                Op::take(s[v], number, (int)i, WAYS);
            }
        }
    }
#pragma unroll
    for (int v = 0; v < V; v++) cells[threadIdx.y][threadIdx.x * V + v] = s[v];
    __syncthreads();
    const int column = (int)(threadIdx.y * LANES + threadIdx.x);
    if (column >= LANES * V || first + column >= r.outputs) return;
    typename Op::state joined = cells[0][column];
#pragma unroll
    for (int way = 1; way < WAYS; way++) joined = Op::join(joined, cells[way][column]);
    if (r.splits == 1)
        Op::finish(joined, r.op, r.n, y, first + column);
    else
        partial[blockIdx.y * r.outputs + first + column] = joined;
}

/* ---- joining the splits in scratch ---- */

/* blockDim.x outputs a block; the threads of blockDim.y, a power of two, share the splits of one. */
template <typename Op>
__global__ void __launch_bounds__(256)
    join_splits(const typename Op::state *partial, void *y, int64_t outputs, int splits, int op, int64_t n) {
    __shared__ typename Op::state cells[256];
    const int64_t output = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int cell = (int)(threadIdx.y * blockDim.x + threadIdx.x);
    typename Op::state s = Op::empty();
    if (output < outputs)
#pragma unroll 4
        for (int split = (int)threadIdx.y; split < splits; split += (int)blockDim.y)
            s = Op::join(s, partial[split * outputs + output]);
    cells[cell] = s;
    for (int half = (int)blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.y < half)
            cells[cell] = Op::join(cells[cell], cells[cell + half * (int)blockDim.x]);
    }
    if (threadIdx.y == 0 && output < outputs) Op::finish(cells[cell], op, n, y, output);
}

template <typename Op> void start_join(const tpi_launch *launch, const reduction &r) {
    unsigned width = 1;
    while (width < 32 && width < r.outputs) width *= 2;
    const dim3 block(width, 256 / width);
    join_splits<Op><<<(unsigned)tpi_div_up(r.outputs, width), block, 0, tpi_cuda_of(launch)->stream>>>(
        (const typename Op::state *)tpi_scratch(launch), tpi_out(launch, 0), r.outputs, r.splits, r.op, r.n);
}

/* ---- launches ---- */

template <typename Op, int V> void start_rows(const tpi_launch *launch, const reduction &r) {
    const int threads = r.n > 4096 ? ROW_THREADS : 256;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)r.splits;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.blockDim = r.warps ? dim3(LANES, WAYS) : dim3((unsigned)threads);
    config.gridDim = dim3((unsigned)(r.warps ? tpi_div_up(r.outputs, WAYS) : r.outputs * r.splits));
    config.stream = tpi_cuda_of(launch)->stream;
    config.attrs = &cluster;
    config.numAttrs = r.clustered ? 1 : 0;
    cudaLaunchKernelEx(&config, reduce_rows<Op, V>, r, (const typename Op::element *)tpi_in(launch, 0),
                       tpi_out(launch, 0),
                       r.splits > 1 && !r.clustered ? (typename Op::state *)tpi_scratch(launch) : nullptr);
}

template <typename Op, int V> void start_columns(const tpi_launch *launch, const reduction &r) {
    const dim3 grid((unsigned)tpi_div_up(r.outputs, LANES * V), (unsigned)r.splits), block(LANES, WAYS);
    reduce_columns<Op, V><<<grid, block, 0, tpi_cuda_of(launch)->stream>>>(
        r, (const typename Op::element *)tpi_in(launch, 0), tpi_out(launch, 0),
        r.splits > 1 ? (typename Op::state *)tpi_scratch(launch) : nullptr);
}

/* Whether packs of V elements lie whole in memory: along the reduced positions, or along the outputs. */
bool in_packs(const reduction &r, const void *x, int V, int64_t element) {
    const layout<1> &along = r.by_columns ? r.kept : r.reduced, &other = r.by_columns ? r.reduced : r.kept;
    if (along.rank == 0 || along.stride[0][0] != 1 || along.size[0].size % V) return false;
    int64_t strides = 0;
    for (int d = 1; d < along.rank; d++) strides |= along.stride[d][0];
    for (int d = 0; d < other.rank; d++) strides |= other.stride[d][0];
    return strides % V == 0 && (uintptr_t)x % (uintptr_t)(V * element) == 0;
}

template <typename Op> tp_status start(const tpi_launch *launch, reduction r) {
    using T = typename Op::element;
    constexpr int V = std::is_same_v<T, int32_t> ? 1 : pack_size<T>; /* integers are few */
    const bool packed = in_packs(r, tpi_in(launch, 0), V, sizeof(T));
    seal(&r.kept);
    seal(&r.reduced);
    r.clustered =
        !r.by_columns && r.splits > 1 && r.splits <= CLUSTER && tpi_cuda_of(launch)->capability >= 90;
    if (r.by_columns)
        packed ? start_columns<Op, V>(launch, r) : start_columns<Op, 1>(launch, r);
    else
        packed ? start_rows<Op, V>(launch, r) : start_rows<Op, 1>(launch, r);
    if (r.splits > 1 && !r.clustered) start_join<Op>(launch, r);
    return tpi_cuda_launched(launch);
}

template <template <typename> class Op> tp_status reduce_floats(const tpi_launch *launch) {
    const reduction r = plan(launch->step);
    if (r.outputs == 0) return TP_OK;
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, { return start<Op<T>>(launch, r); });
}

template <template <typename> class Op> tp_status reduce(const tpi_launch *launch) {
    const reduction r = plan(launch->step);
    if (r.outputs == 0) return TP_OK;
    if (tpi_in_operand(launch->step, 0)->dtype == TP_I32) return start<Op<int32_t>>(launch, r);
    return reduce_floats<Op>(launch);
}

/* For the largest state; 0 where one kernel is enough on every device. */
size_t scratch(const tpi_step *step, int) {
    const reduction r = plan(step);
    return r.splits > 1 ? (size_t)(r.splits * r.outputs) * 2 * sizeof(float) : 0;
}

bool accepts(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    const bool integers = step->op == TPI_SUM || step->op == TPI_MAX || step->op == TPI_ARGMAX;
    if (!tpi_is_float(x) && !(x->dtype == TP_I32 && integers)) return false;
    return y->contiguous && y->dtype == (step->op == TPI_ARGMAX ? (int)TP_I32 : (int)x->dtype);
}

} // namespace

const tpi_kernel_entry tpi_cuda_reduce[] = {
    {TPI_SUM, {"cuda", reduce<sum_of>, accepts, scratch}},
    {TPI_MEAN, {"cuda", reduce_floats<sum_of>, accepts, scratch}},
    {TPI_MAX, {"cuda", reduce<maximum_of>, accepts, scratch}},
    {TPI_ARGMAX, {"cuda", reduce<maximum_of>, accepts, scratch}},
    {TPI_LOGSUMEXP, {"cuda", reduce_floats<logsumexp_of>, accepts, scratch}},
    TPI_KERNELS_END,
};
