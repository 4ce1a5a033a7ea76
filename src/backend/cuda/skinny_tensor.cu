/* Few rows of 16-bit x times w [n, k] on tensor cores: generation's product.
 *
 * The weights are the large matrix of the mma: 16 columns of y a block, which its warps share along the inner
 * dimension in chunks of 128, eight 16-byte loads a lane at once. x's rows (8 or 16, missing ones zero) come
 * from the first-level cache. So a byte of w costs next to no instructions, and the kernel waits for memory
 * alone. */
#include "backend/cuda/skinny.cuh"
#include "backend/cuda/tensor.cuh"

namespace {

constexpr int block_columns = 16, chunk = 128, loads = chunk / 32;

template <typename T>
__device__ __forceinline__ void multiply(float (&sum)[4], const uint4 (&w)[2], const uint4 &x) {
    const uint32_t first[4] = {w[0].x, w[1].x, w[0].y, w[1].y}, second[4] = {w[0].z, w[1].z, w[0].w, w[1].w};
    mma(sum, first, x.x, x.y, T());
    mma(sum, second, x.z, x.w, T());
}

/* This warp's part of the inner dimension. TILES: of 8 rows of x. */
template <typename T, int WARPS, int TILES>
__device__ __forceinline__ void sum_part(float (&sum)[TILES][4], const skinny_args &p, int64_t column0) {
    const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const T *x = (const T *)p.x + g * p.x_leading;
    const T *w = (const T *)p.w + (column0 + g) * p.w_leading;
    for (int64_t k0 = (threadIdx.x >> 5) * chunk; k0 < p.k; k0 += WARPS * chunk) {
        uint4 weights[loads][2];
#pragma unroll
        for (int i = 0; i < loads; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int64_t k = k0 + 32 * i + 8 * t;
                const bool there = k < p.k && column0 + g + 8 * half < p.n;
                weights[i][half] = there ? load_stream(w + 8 * half * p.w_leading + k) : uint4{};
            }
#pragma unroll
        for (int i = 0; i < loads; i++)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const int64_t k = k0 + 32 * i + 8 * t;
                const bool there = k < p.k && g + 8 * tile < p.m;
                multiply<T>(sum[tile], weights[i],
                            there ? *(const uint4 *)(x + 8 * tile * p.x_leading + k) : uint4{});
            }
    }
}

template <typename T, int WARPS, int TILES>
__global__ __launch_bounds__(WARPS * 32, WARPS == 8 ? 3 : 1) void skinny_kernel(skinny_args p) {
    constexpr int cells = TILES * 8 * block_columns;
    __shared__ float parts[WARPS][cells], h[skinny_rows * 64];
    const int64_t column0 = (int64_t)blockIdx.x * block_columns;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int i = threadIdx.x; i < p.m * p.rank; i += WARPS * 32) h[i] = h_of(p, i / p.rank, i % p.rank);
    float sum[TILES][4] = {};
    sum_part<T, WARPS, TILES>(sum, p, column0);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = tile * 8 + lane % 4 * 2 + i % 2, column = lane / 4 + i / 2 * 8;
            parts[warp][row * block_columns + column] = sum[tile][i];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < p.m * block_columns; i += WARPS * 32) {
        const int row = i / block_columns;
        const int64_t column = column0 + i % block_columns;
        if (column >= p.n) continue;
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += parts[w][i];
#pragma unroll 8
        for (int r = 0; r < p.rank; r++)
            total += h[row * p.rank + r] * load_typed(p.b, p.b_type, r * p.b_r + column * p.b_n);
        finish_skinny<T>(p, row, column, total);
    }
}

template <typename T, int WARPS> void start(cudaStream_t stream, unsigned blocks, const skinny_args &args) {
    if (args.m <= 8)
        skinny_kernel<T, WARPS, 1><<<blocks, WARPS * 32, 0, stream>>>(args);
    else
        skinny_kernel<T, WARPS, 2><<<blocks, WARPS * 32, 0, stream>>>(args);
}

} // namespace

template <typename T> void start_skinny_tensor(cudaStream_t stream, int processors, const skinny_args &args) {
    const int64_t blocks = tpi_div_up(args.n, block_columns);
    if (blocks < 2 * processors)
        start<T, 16>(stream, (unsigned)blocks, args);
    else
        start<T, 8>(stream, (unsigned)blocks, args);
}

template void start_skinny_tensor<__nv_bfloat16>(cudaStream_t, int, const skinny_args &);
template void start_skinny_tensor<__half>(cudaStream_t, int, const skinny_args &);
