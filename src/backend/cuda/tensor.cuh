/* Tensor cores by mma.sync m16n8k16 with f32 sums, and f32 numbers as two bf16.
 *
 * With lane = 4g + t, a lane holds of the 16 × 16 matrix a: rows g (words 0, 2) and g + 8 (words 1, 3),
 * columns 2t, 2t + 1 (words 0, 1) and 2t + 8, 2t + 9 (words 2, 3); of the 16 × 8 matrix b: column g, rows 2t,
 * 2t + 1 (word 0) and 2t + 8, 2t + 9 (word 1); of the sums: rows g (0, 1) and g + 8 (2, 3), columns 2t (0, 2)
 * and 2t + 1 (1, 3).
 *
 * The trick used everywhere: a sum does not care for the order of its terms, so whatever 16 inner indices a
 * lane finds in its 16-byte loads may stand for these, as long as a and b agree. */
#ifndef TAPER_BACKEND_CUDA_TENSOR_CUH
#define TAPER_BACKEND_CUDA_TENSOR_CUH

#include "backend/cuda/device.cuh"

__device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Sixteen bytes that are read once: past the first-level cache. */
__device__ __forceinline__ uint4 load_stream(const void *from) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(from));
    return x;
}

/* Begins to copy sixteen bytes to shared memory past the first-level cache; zeros if they are not `there`. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
/* The thread's copies since the last call are a group. */
__device__ __forceinline__ void copies_begun() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until at most `LEFT` of the thread's groups are on their way. */
template <int LEFT> __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ uint32_t pair_of(__nv_bfloat16 low, __nv_bfloat16 high) {
    return (uint32_t)__bfloat16_as_ushort(low) | (uint32_t)__bfloat16_as_ushort(high) << 16;
}

/* What rounding to `high` left out of x; nothing of what is infinite. */
__device__ __forceinline__ __nv_bfloat16 rest_of(float x, __nv_bfloat16 high) {
    const float h = __bfloat162float(high);
    return __float2bfloat16_rn(x == h ? 0.0f : x - h);
}

/* (x, y) rounded to bf16, and what the rounding left out: together some 16 bits of the 24. */
__device__ __forceinline__ void split_pair(float x, float y, uint32_t &high, uint32_t &low) {
    const __nv_bfloat16 hx = __float2bfloat16_rn(x), hy = __float2bfloat16_rn(y);
    high = pair_of(hx, hy);
    low = pair_of(rest_of(x, hx), rest_of(y, hy));
}

#endif
