/* Σ x² over many tensors in one launch and a join: the norm of all gradients. The table of tensors is the kernel's
 * argument, as AdamW's is; a block adds up a part of one tensor, the last kernel adds the parts in order. */
#include "backend/cuda/device.cuh"

namespace {

#define THREADS 256
#define CHUNK   (THREADS * 16) /* elements of a block */
#define MANY    255            /* inputs of an operation */

struct tensor {
    const void *x;
    int64_t count;
    uint32_t first_block;
    int dtype;
};

template <int N> struct table {
    int n;
    tensor tensors[N];
};

template <int N> __device__ __forceinline__ const tensor &tensor_of_block(const table<N> &t) {
    int low = 0, high = t.n;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        *(t.tensors[middle].first_block <= blockIdx.x ? &low : &high) = middle;
    }
    return t.tensors[low];
}

template <typename T> __device__ float squares(const tensor &t) {
    constexpr int V = pack_size<T>;
    const T *x = (const T *)t.x;
    const int64_t begin = (int64_t)(blockIdx.x - t.first_block) * CHUNK;
    const int64_t end = begin + CHUNK < t.count ? begin + CHUNK : t.count;
    float sum = 0;
    if ((uintptr_t)x % 16 == 0) {
#pragma unroll 4
        for (int64_t i = begin + threadIdx.x * V; i + V <= end; i += THREADS * V) {
            const pack<T, V> p = *(const pack<T, V> *)(x + i);
#pragma unroll
            for (int j = 0; j < V; j++) sum += to_f32(p.at[j]) * to_f32(p.at[j]);
        }
        const int64_t rest = begin + (end - begin) / V * V + threadIdx.x;
        if (rest < end) sum += to_f32(x[rest]) * to_f32(x[rest]);
    } else {
        for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) sum += to_f32(x[i]) * to_f32(x[i]);
    }
    return sum;
}

template <int N>
__global__ void __launch_bounds__(THREADS) add_parts(const __grid_constant__ table<N> tensors, float *parts) {
    __shared__ float cells[33];
    const tensor &t = tensor_of_block(tensors);
    float sum;
    if (t.dtype == TP_F32)
        sum = squares<float>(t);
    else if (t.dtype == TP_BF16)
        sum = squares<__nv_bfloat16>(t);
    else
        sum = squares<__half>(t);
    sum = block_reduce<add_of>(sum, cells);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024) join_parts(const float *parts, int n, float *out) {
    __shared__ float cells[33];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += 1024) sum += parts[i];
    sum = block_reduce<add_of>(sum, cells);
    if (threadIdx.x == 0) *out = sum;
}

int64_t block_count(const tpi_step *step) {
    int64_t blocks = 0;
    for (int k = 0; k < step->n_in; k++) blocks += tpi_div_up(tpi_in_operand(step, k)->count, CHUNK);
    return blocks;
}

template <int N> tp_status start(const tpi_launch *launch, int64_t blocks) {
    table<N> t;
    uint32_t block = 0;
    t.n = 0;
    for (int k = 0; k < launch->step->n_in; k++) {
        const tpi_operand *x = tpi_in_operand(launch->step, k);
        if (x->count == 0) continue;
        t.tensors[t.n++] = {tpi_in(launch, k), x->count, block, x->dtype};
        block += (uint32_t)tpi_div_up(x->count, CHUNK);
    }
    float *parts = (float *)tpi_scratch(launch);
    const cudaStream_t stream = tpi_cuda_of(launch)->stream;
    if (blocks > 0) add_parts<N><<<block, THREADS, 0, stream>>>(t, parts);
    join_parts<<<1, 1024, 0, stream>>>(parts, (int)blocks, (float *)tpi_out(launch, 0));
    return tpi_cuda_launched(launch);
}

tp_status run(const tpi_launch *launch) {
    const int64_t blocks = block_count(launch->step);
    return launch->step->n_in <= 8 ? start<8>(launch, blocks) : start<MANY>(launch, blocks);
}

bool accepts(const tpi_step *step) {
    for (int k = 0; k < step->n_in; k++)
        if (!tpi_in_operand(step, k)->contiguous || !tpi_is_float(tpi_in_operand(step, k))) return false;
    return block_count(step) <= INT32_MAX;
}

size_t scratch(const tpi_step *step, int threads) {
    (void)threads;
    return (size_t)block_count(step) * sizeof(float);
}

} // namespace

const tpi_kernel_entry tpi_cuda_sum_squares[] = {
    {TPI_SUM_SQUARES, {"cuda", run, accepts, scratch}},
    TPI_KERNELS_END,
};
