/* Rows over threads: how kernels over the last dimension share a row, hold it, and add it up.
 *
 * A row lies over a part of a warp, a warp or a block. The trick: as long as HELD packs a thread are enough
 * it stays in registers, so that what needs several passes reads memory once. A longer row is read again,
 * from the cache at best; so are rows that do not lie in packs of 16 bytes, which are no case for speed. */
#ifndef TAPER_BACKEND_CUDA_ROW_CUH
#define TAPER_BACKEND_CUDA_ROW_CUH

#include "backend/cuda/device.cuh"
#include "backend/cuda/early.cuh"

#include <type_traits>

constexpr int ROW_THREADS = 512; /* the most of a block */
constexpr int HELD = 4;          /* most packs of a row in a thread's registers */
constexpr int FEW_THREADS = 256; /* the most of a block of several rows, */
constexpr int LEAST_BLOCKS = 3;  /* of which each multiprocessor is to have so many */

/* ---- from sizes to a launch ---- */

/* block.x threads have a row, which are a part of a warp or whole warps; block.y rows are in a block. */
struct row_layout {
    dim3 block;
    unsigned blocks;
    int held; /* packs of a row in a thread's registers: 2 or HELD; 0: they do not hold it */
};

static inline row_layout lay_rows(const tpi_cuda *device, int64_t rows, int64_t packs) {
    row_layout layout = {};
    /* few rows are spread over many threads, so that a row and its weight are waited for once */
    const bool few = rows < device->processors && packs <= 2 * ROW_THREADS;
    layout.held = packs <= 64 || few ? 2 : HELD;
    int64_t threads = tpi_div_up(packs, layout.held);
    if (threads > ROW_THREADS) threads = ROW_THREADS, layout.held = 0;
    unsigned lanes = (unsigned)tpi_div_up(threads, 32) * 32, in_block = 1;
    if (threads <= 32) {
        for (lanes = 1; lanes < threads;) lanes *= 2;
        in_block = 32 / lanes;
        while (in_block * lanes < FEW_THREADS && rows >= 2 * LEAST_BLOCKS * in_block * device->processors)
            in_block *= 2;
    }
    layout.block = dim3(lanes, in_block);
    layout.blocks = (unsigned)tpi_div_up(rows, in_block);
    return layout;
}

/* Calls launch(layout, vec, held) with constants: packs of `vec` elements of T, `held` of them in registers.
 * `bits` is the bitwise or of the addresses of all operands. */
template <typename T, typename F>
static void with_rows(const tpi_cuda *device, int64_t rows, int64_t n, uintptr_t bits, F launch) {
    constexpr std::integral_constant<int, pack_size<T>> packs = {};
    const bool packed = bits % 16 == 0 && n % packs == 0;
    const row_layout layout = lay_rows(device, rows, packed ? n / packs : n);
    if (!packed)
        launch(layout, std::integral_constant<int, 1>(), std::integral_constant<int, 0>());
    else if (layout.held == 2)
        launch(layout, packs, std::integral_constant<int, 2>());
    else if (layout.held == HELD)
        launch(layout, packs, std::integral_constant<int, HELD>());
    else
        launch(layout, packs, std::integral_constant<int, 0>());
}

/* ---- within a kernel ---- */

__device__ __forceinline__ int64_t row_of_thread() {
    return (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
}

/* The turn; the first blocks find these rows of 16-byte packs in the second cache. */
template <int PACKS, typename... T>
__device__ __forceinline__ void take_turn_at(int packs, const T *...rows) {
    let_next_start();
    if (PACKS > 0 && packs > 0 && threadIdx.x == 0) (fetch_early(rows, 16 * packs), ...);
    wait_for_previous();
}

/* Over the threads of a row; all threads of the block call it. */
template <typename Op> __device__ __forceinline__ float row_reduce(float x, float *cells) {
    if (blockDim.x > 32) return block_reduce<Op>(x, cells);
    for (int lane = blockDim.x >> 1; lane > 0; lane >>= 1)
        x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* Calls body(p, i) for the packs i of this thread; p is where registers hold it. */
template <int PACKS, typename F> __device__ __forceinline__ void each_pack(int packs, F body) {
    if constexpr (PACKS > 0) {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int i = threadIdx.x + p * (int)blockDim.x;
            if (i < packs) body(p, i);
        }
    } else {
#pragma unroll 4
        for (int i = threadIdx.x; i < packs; i += blockDim.x) body(0, i);
    }
}

/* Mean of the row's n numbers, whose packs `value` gives. All threads of the block call it. */
template <int PACKS, typename F>
__device__ __forceinline__ float row_mean(int packs, int64_t n, float *cells, F value) {
    float sum = 0.0f;
    each_pack<PACKS>(packs, [&](int p, int i) {
        const auto v = value(p, i);
#pragma unroll
        for (const auto &x : v.at) sum += to_f32(x);
    });
    return row_reduce<add_of>(sum, cells) / (float)n;
}

/* A row in registers, or in memory where PACKS is 0. Registers hold words: 16-bit elements would take one
 * each. */
template <typename T, int VEC, int PACKS> struct row_packs {
    using values = pack<T, VEC>;
    static_assert(PACKS == 0 || sizeof(values) == sizeof(uint4), "a pack is four words");
    const values *from;
    uint4 held[PACKS ? PACKS : 1];

    __device__ __forceinline__ row_packs(const T *row, int packs)
        : from(reinterpret_cast<const values *>(row)) {
        if constexpr (PACKS > 0)
            each_pack<PACKS>(packs,
                             [&](int p, int i) { held[p] = reinterpret_cast<const uint4 *>(from)[i]; });
    }

    /* Makes the compiler convert the row anew, not keep its floats, which take twice the registers. */
    __device__ __forceinline__ void forget_floats() {
        if constexpr (PACKS > 0) {
#pragma unroll
            for (uint4 &words : held)
                asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)::"memory");
        }
    }

    __device__ __forceinline__ values get(int p, int i) const {
        if constexpr (PACKS == 0) return from[i];
        values v;
        memcpy(&v, &held[p], sizeof v);
        return v;
    }
    __device__ __forceinline__ void put(int p, const values &v) {
        memcpy(&held[p], &v, sizeof v);
    }
};

#endif
