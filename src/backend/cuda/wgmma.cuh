/* Products of Hopper's warp groups (wgmma): 64 rows by N columns with f32 sums, four warps at a time.
 *
 * Operands are tiles of 16-bit numbers in shared memory, cut into panels of 64 columns: a panel's rows are
 * 128 bytes, whose 16-byte chunks are permuted by the row's last three bits. One layout serves a product both
 * ways: summed over the columns of a tile, or over its rows. A panel begins at a multiple of 1024 bytes.
 *
 * A product runs on behind the code that asks for it: its sums may be touched, and its operands overwritten,
 * only after products_wait. The sums, and a left operand in registers, lie over the lanes as tensor.cuh says,
 * warp w of the group having rows 16w ... 16w+15. */
#ifndef TAPER_BACKEND_CUDA_WGMMA_CUH
#define TAPER_BACKEND_CUDA_WGMMA_CUH

#include "backend/cuda/tensor.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TPI_WGMMA 1
#else
#define TPI_WGMMA 0
#endif

#define PANEL_ROW 128 /* bytes */

/* Where element (row, 8 · chunk) of a tile of ROWS rows lies, in bytes. */
template <int ROWS> static __device__ __forceinline__ int panel_offset(int row, int chunk) {
    return (chunk >> 3) * ROWS * PANEL_ROW + row * PANEL_ROW + (((chunk ^ row) & 7) << 4);
}

#if TPI_WGMMA

/* ---- order ---- */

/* What was stored to shared memory so far is there for products; before the barrier that tells the others. */
static __device__ __forceinline__ void stores_to_products() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* Registers written so far are there for the products that follow. */
static __device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void products_begun() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Waits until at most LEFT of the groups that were begun are at work. */
template <int LEFT> static __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
/* Sums are not read before the wait in front of this. */
template <int N> static __device__ __forceinline__ void settle(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N> static __device__ __forceinline__ void settle(float (&x)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) asm volatile("" : "+f"(x[j][e])::"memory");
}

/* ---- operands ---- */

/* A matrix descriptor: 128-byte permutation; groups of eight rows are 1024 bytes apart, panels `panel`. */
static __device__ __forceinline__ uint64_t tile_at(uint32_t address, uint32_t panel) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(panel >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

/* The same so many bytes further on: no carry leaves its lower half. */
static __device__ __forceinline__ uint64_t further(uint64_t tile, uint32_t bytes) {
    return (tile & 0xffffffff00000000ull) | ((uint32_t)tile + (bytes >> 4));
}

/* ---- one instruction: 16 inner indices ---- */

#define SUMS_4(x, j) "+f"(x[j][0]), "+f"(x[j][1]), "+f"(x[j][2]), "+f"(x[j][3])
#define SUMS_32(x, j)                                                                                        \
    SUMS_4(x, j), SUMS_4(x, j + 1), SUMS_4(x, j + 2), SUMS_4(x, j + 3), SUMS_4(x, j + 4), SUMS_4(x, j + 5),  \
        SUMS_4(x, j + 6), SUMS_4(x, j + 7)
#define SUMS_64(x) SUMS_32(x, 0), SUMS_32(x, 8)
#define NAMES_32                                                                                             \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define NAMES_64                                                                                             \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "   \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "   \
    "%62, %63}"

/* sums = (add ? sums : 0) + a·b, with a in shared memory or in registers. TRANSPOSED: the tile's rows are
 * what is summed over. */
#define DEFINE_PRODUCTS(N, SUMS, NAMES, TYPE, NAME, S0, S1, S2, S3, S4, S5, S6)                              \
    static __device__ __forceinline__ void product16(float(&x)[N / 8][4], uint64_t a, uint64_t b, int add,   \
                                                     TYPE) {                                                 \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " S2 ", 0;\n"                                         \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " " NAMES ", " S0       \
                     ", " S1 ", p, 1, 1, 0, 0;\n}\n"                                                         \
                     : SUMS                                                                                  \
                     : "l"(a), "l"(b), "r"(add));                                                            \
    }                                                                                                        \
    template <bool TRANSPOSED>                                                                               \
    static __device__ __forceinline__ void product16(float(&x)[N / 8][4], const uint32_t(&a)[4], uint64_t b, \
                                                     int add, TYPE) {                                        \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " S5 ", 0;\n"                                         \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " " NAMES ", {" S0      \
                     ", " S1 ", " S2 ", " S3 "}, " S4 ", p, 1, 1, " S6 ";\n}\n"                              \
                     : SUMS                                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));       \
    }
DEFINE_PRODUCTS(64, SUMS_32(x, 0), NAMES_32, __nv_bfloat16, "bf16", "%32", "%33", "%34", "%35", "%36", "%37",
                "%38")
DEFINE_PRODUCTS(64, SUMS_32(x, 0), NAMES_32, __half, "f16", "%32", "%33", "%34", "%35", "%36", "%37", "%38")
DEFINE_PRODUCTS(128, SUMS_64(x), NAMES_64, __nv_bfloat16, "bf16", "%64", "%65", "%66", "%67", "%68", "%69",
                "%70")
DEFINE_PRODUCTS(128, SUMS_64(x), NAMES_64, __half, "f16", "%64", "%65", "%66", "%67", "%68", "%69", "%70")
#undef DEFINE_PRODUCTS

/* ---- products of tiles ---- */

/* x = a·bᵀ, summed over D columns of both: a's 64 rows begin at `a` in a tile of A_ROWS rows, b has 8 · J
 * rows. */
template <typename T, int D, int A_ROWS, int J>
static __device__ __forceinline__ void multiply_transposed(float (&x)[J][4], uint32_t a, uint32_t b) {
    const uint64_t left = tile_at(a, 16), right = tile_at(b, 16);
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        const int panel = step / 4 * PANEL_ROW, column = step % 4 * 32;
        product16(x, further(left, panel * A_ROWS + column), further(right, panel * 8 * J + column), step > 0,
                  T());
    }
}
/* The same with a in registers. */
template <typename T, int D, int J>
static __device__ __forceinline__ void multiply_transposed(float (&x)[J][4], const uint32_t (&a)[D / 16][4],
                                                           uint32_t b) {
    const uint64_t right = tile_at(b, 16);
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        product16<false>(x, a[step], further(right, step / 4 * PANEL_ROW * 8 * J + step % 4 * 32), step > 0,
                         T());
}

/* x += a·b, summed over the rows of b, a tile [K, D]. */
template <typename T, int D, int K>
static __device__ __forceinline__ void add_product(float (&x)[D / 8][4], const uint32_t (&a)[K / 16][4],
                                                   uint32_t b) {
    const uint64_t right = tile_at(b, K * PANEL_ROW);
#pragma unroll
    for (int step = 0; step < K / 16; step++)
        product16<true>(x, a[step], further(right, step * 16 * PANEL_ROW), 1, T());
}

#endif
#endif
