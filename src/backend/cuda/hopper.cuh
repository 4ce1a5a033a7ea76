/* Hopper's own instructions: bulk tensor copies that arrive at mbarriers, and wgmma.
 *
 * Everything is bf16 tiles with rows of 128 bytes (64 elements) in the 128-byte swizzle, at addresses that
 * are multiples of 1024: a copy writes it, wgmma's descriptors name it. Within wgmma's sums a thread of a
 * warpgroup (4 warps; lane = 4g + t) holds of warp w's rows 16w ... 16w + 15 and of each tile of 8 columns:
 * rows g (0, 1) and g + 8 (2, 3), columns 2t (0, 2) and 2t + 1 (1, 3).
 *
 * There where TPI_WGMMA is set. */
#ifndef TAPER_BACKEND_CUDA_HOPPER_CUH
#define TAPER_BACKEND_CUDA_HOPPER_CUH

#include "backend/cuda/early.cuh"
#include "backend/cuda/mbarrier.cuh"
#include "backend/cuda/wgmma.cuh"

#include <cuda.h>

#if TPI_WGMMA

/* ---- clusters, warpgroups ---- */

/* Arrives at the same barrier of block `to` of the cluster. */
__device__ __forceinline__ void barrier_arrive(uint32_t barrier, int to) {
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(barrier),
                 "r"(to)
                 : "memory");
}

__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\n"
                 "barrier.cluster.wait.acquire;" ::
                     : "memory");
}
__device__ __forceinline__ void warpgroup_sync(int barrier) {
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
}

/* At a numbered barrier of the block, of `threads` in all: arrives and waits for the others; only arrives. */
__device__ __forceinline__ void numbered_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void numbered_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/* The warp's number, which the compiler then knows to be one for all its lanes. */
__device__ __forceinline__ int warp_number() {
    return __shfl_sync(0xffffffffu, (int)threadIdx.x / 32, 0);
}

/* Whether this lane speaks for its warp, all of which is here. */
__device__ __forceinline__ bool elected() {
    uint32_t is;
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n"
                 "}"
                 : "=r"(is));
    return is != 0;
}

template <int N> __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

/* ---- copies: the map's box at (column, row) ---- */

__device__ __forceinline__ void prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int column, int row,
                                         uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(column), "r"(row)
                 : "memory");
}

/* The same into all blocks of `mask`, at the same place, each with its own barrier. */
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int column, int row,
                                         uint32_t barrier, uint16_t mask) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to),
                 "l"(map), "r"(barrier), "h"(mask), "r"(column), "r"(row)
                 : "memory");
}

/* Four words to shared memory, at a multiple of 16 bytes. */
__device__ __forceinline__ void store_shared(uint32_t to, const uint32_t (&words)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]),
                 "r"(words[2]), "r"(words[3])
                 : "memory");
}

/* ---- a ring of stages in shared memory ---- */

/* A place in it, and the parity of its present use; `barriers` are two of each stage. */
template <int STAGES, int STAGE_BYTES> struct stage_ring {
    uint32_t memory, barriers;
    int stage = 0;
    uint32_t parity = 0;

    __device__ uint32_t data() const { return memory + stage * STAGE_BYTES; }
    __device__ uint32_t full() const { return barriers + stage * 16; }
    __device__ uint32_t empty() const { return full() + 8; }
    __device__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

/* ---- wgmma, with wider tiles and more of them than wgmma.cuh has ---- */

/* Of a matrix whose rows in shared memory run along the inner dimension: [m or n, 64 inner]. The next 16
 * inner indices: + 2. */
__device__ __forceinline__ uint64_t inner_descriptor(uint32_t address) {
    return tile_at(address, 16);
}

/* Of one whose rows run along the outer dimension: blocks of [64 inner, 64 outer], 8192 bytes each. The next
 * 16 inner indices: + 128. */
__device__ __forceinline__ uint64_t outer_descriptor(uint32_t address) {
    return tile_at(address, 8192);
}

/* The same of a narrow one without permutation: blocks of [64 inner, 8 outer], 1024 bytes each. The next 16
 * inner indices: + 16. */
__device__ __forceinline__ uint64_t narrow_descriptor(uint32_t address) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(128 >> 4) << 16 | (uint64_t)(1024 >> 4) << 32;
}

#define WGMMA_4(i)     "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_8(i)     WGMMA_4(i), WGMMA_4(i + 4)
#define WGMMA_32(i)    WGMMA_8(i), WGMMA_8(i + 8), WGMMA_8(i + 16), WGMMA_8(i + 24)
#define WGMMA_NAMES_4  "%0, %1, %2, %3"
#define WGMMA_NAMES_8  WGMMA_NAMES_4 ", %4, %5, %6, %7"
#define WGMMA_NAMES_16 WGMMA_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32                                                                                       \
    WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64                                                                                       \
    WGMMA_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "      \
                   "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_112                                                                                      \
    WGMMA_NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "      \
                   "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "        \
                   "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "        \
                   "%110, %111"
#define WGMMA_NAMES_128                                                                                      \
    WGMMA_NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "             \
                    "%124, %125, %126, %127"
#define WGMMA(n, names, a_name, b_name, keep_name, outer_a, outer_b, ...)                                    \
    asm volatile("{\n"                                                                                       \
                 ".reg .pred keep;\n"                                                                        \
                 "setp.ne.b32 keep, " keep_name ", 0;\n"                                                     \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" names "}, " a_name ", " b_name  \
                 ", keep, 1, 1, " outer_a ", " outer_b ";\n"                                                 \
                 "}"                                                                                         \
                 : __VA_ARGS__                                                                               \
                 : "l"(a), "l"(b), "r"((int)keep), "n"((int)OUTER_A), "n"((int)OUTER_B))

/* d ← a · b, + d if `keep`, of 64 × 16 and 16 × N; d has N / 2 numbers a thread. OUTER_A, OUTER_B: the
 * descriptor is of rows along the outer dimension. */
template <bool OUTER_B, bool OUTER_A = false>
__device__ __forceinline__ void wgmma(float (&d)[4], uint64_t a, uint64_t b, bool keep) {
    WGMMA("8", WGMMA_NAMES_4, "%4", "%5", "%6", "%7", "%8", WGMMA_4(0));
}
template <bool OUTER_B, bool OUTER_A = false>
__device__ __forceinline__ void wgmma(float (&d)[8], uint64_t a, uint64_t b, bool keep) {
    WGMMA("16", WGMMA_NAMES_8, "%8", "%9", "%10", "%11", "%12", WGMMA_8(0));
}
template <bool OUTER_B, bool OUTER_A = false>
__device__ __forceinline__ void wgmma(float (&d)[16], uint64_t a, uint64_t b, bool keep) {
    WGMMA("32", WGMMA_NAMES_16, "%16", "%17", "%18", "%19", "%20", WGMMA_8(0), WGMMA_8(8));
}
template <bool OUTER_B, bool OUTER_A = false>
__device__ __forceinline__ void wgmma(float (&d)[32], uint64_t a, uint64_t b, bool keep) {
    WGMMA("64", WGMMA_NAMES_32, "%32", "%33", "%34", "%35", "%36", WGMMA_32(0));
}
template <bool OUTER_B, bool OUTER_A = false>
__device__ __forceinline__ void wgmma(float (&d)[64], uint64_t a, uint64_t b, bool keep) {
    WGMMA("128", WGMMA_NAMES_64, "%64", "%65", "%66", "%67", "%68", WGMMA_32(0), WGMMA_32(32));
}
template <bool OUTER_B, bool OUTER_A = false>
__device__ __forceinline__ void wgmma(float (&d)[112], uint64_t a, uint64_t b, bool keep) {
    WGMMA("224", WGMMA_NAMES_112, "%112", "%113", "%114", "%115", "%116", WGMMA_32(0), WGMMA_32(32),
          WGMMA_32(64), WGMMA_8(96), WGMMA_8(104));
}
template <bool OUTER_B, bool OUTER_A = false>
__device__ __forceinline__ void wgmma(float (&d)[128], uint64_t a, uint64_t b, bool keep) {
    WGMMA("256", WGMMA_NAMES_128, "%128", "%129", "%130", "%131", "%132", WGMMA_32(0), WGMMA_32(32),
          WGMMA_32(64), WGMMA_32(96));
}

#undef WGMMA_4
#undef WGMMA_8
#undef WGMMA_32
#undef WGMMA_NAMES_4
#undef WGMMA_NAMES_8
#undef WGMMA_NAMES_16
#undef WGMMA_NAMES_32
#undef WGMMA_NAMES_64
#undef WGMMA_NAMES_112
#undef WGMMA_NAMES_128
#undef WGMMA

#endif
#endif
