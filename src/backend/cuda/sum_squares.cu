/* Σ x² over many tensors in one launch and a join: the norm of all gradients. A block adds up a
 * part of one tensor, a second kernel adds the parts in order. */
#include "backend/cuda/tensors.cuh"

namespace {

#define THREADS 256
#define CHUNK   (THREADS * 16) /* elements of a block */
#define MANY    255            /* inputs of an operation */

struct tensor {
    const void *x;
    int64_t count;
    int dtype;
};

template <typename T> __device__ float squares(const tensor &t, uint32_t block) {
    constexpr int V = pack_size<T>;
    const T *x = (const T *)t.x;
    const int64_t begin = (int64_t)block * CHUNK;
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
__global__ void __launch_bounds__(THREADS)
    add_parts(const __grid_constant__ tensor_table<tensor, N> table, float *parts) {
    __shared__ float cells[32];
    const int k = table.of_block();
    const tensor &t = table.tensors[k];
    const uint32_t block = blockIdx.x - table.first_block[k];
    float sum;
    if (t.dtype == TP_F32)
        sum = squares<float>(t, block);
    else if (t.dtype == TP_BF16)
        sum = squares<__nv_bfloat16>(t, block);
    else
        sum = squares<__half>(t, block);
    sum = block_reduce<add_of>(sum, cells);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024) join_parts(const float *parts, int n, float *out) {
    __shared__ float cells[32];
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

template <int N> tp_status start(const tpi_launch *launch) {
    tensor_table<tensor, N> table;
    for (int k = 0; k < launch->step->n_in; k++) {
        const tpi_operand *x = tpi_in_operand(launch->step, k);
        table.add({tpi_in(launch, k), x->count, x->dtype}, CHUNK);
    }
    float *parts = (float *)tpi_scratch(launch);
    const cudaStream_t stream = tpi_cuda_of(launch)->stream;
    if (table.blocks > 0) add_parts<N><<<table.blocks, THREADS, 0, stream>>>(table, parts);
    join_parts<<<1, 1024, 0, stream>>>(parts, (int)table.blocks, (float *)tpi_out(launch, 0));
    return tpi_cuda_launched(launch);
}

tp_status run(const tpi_launch *launch) {
    return launch->step->n_in <= 8 ? start<8>(launch) : start<MANY>(launch);
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
