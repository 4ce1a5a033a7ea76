/* Many tensors in one launch: a table of them is the kernel's argument, each has blocks of its own, and a
 * block finds its tensor by bisection. */
#ifndef TAPER_BACKEND_CUDA_TENSORS_CUH
#define TAPER_BACKEND_CUDA_TENSORS_CUH

#include "backend/cuda/device.cuh"

/* Tensor has a `count` of elements. A table fits into the 32,764 bytes of a kernel's arguments. */
template <typename Tensor, int MOST> struct tensor_table {
    int n = 0;
    uint32_t blocks = 0; /* of all */
    uint32_t first_block[MOST];
    Tensor tensors[MOST];

    /* With one block for each `chunk` elements; a tensor without elements is left out. */
    void add(const Tensor &t, int64_t chunk) {
        if (t.count == 0) return;
        first_block[n] = blocks;
        tensors[n++] = t;
        blocks += (uint32_t)tpi_div_up(t.count, chunk);
    }

    /* The last tensor whose first block is not behind this one. */
    __device__ __forceinline__ int of_block() const {
        int low = 0, high = n;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            *(first_block[middle] <= blockIdx.x ? &low : &high) = middle;
        }
        return low;
    }
};

#endif
