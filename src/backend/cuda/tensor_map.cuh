/* Maps of matrices for Hopper's copy engine, made by the host. */
#ifndef TAPER_BACKEND_CUDA_TENSOR_MAP_CUH
#define TAPER_BACKEND_CUDA_TENSOR_MAP_CUH

#include "backend/cuda/device.cuh"

#include <cuda.h>
#include <cuda_bf16.h>

namespace {

constexpr int map_columns = 64; /* of a box: rows of 128 bytes */

using encode_fn = decltype(&cuTensorMapEncodeTiled);

encode_fn encoder() {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess)
        return nullptr;
    return found == cudaDriverEntryPointSuccess ? (encode_fn)function : nullptr;
}

/* A map of [rows, columns] whose boxes are [box_rows, box_columns]; what they reach beyond it reads as zeros.
 */
bool encode_boxes(encode_fn function, CUtensorMap *map, const void *data, int64_t rows, int64_t columns,
                  int64_t leading, int box_rows, int box_columns, CUtensorMapSwizzle swizzle) {
    const cuuint64_t sizes[2] = {(cuuint64_t)columns, (cuuint64_t)rows};
    const cuuint64_t strides[1] = {(cuuint64_t)leading * sizeof(__nv_bfloat16)};
    const cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, steps[2] = {1, 1};
    return function(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, sizes, strides, box, steps,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool encode(encode_fn function, CUtensorMap *map, const void *data, int64_t rows, int64_t columns,
            int64_t leading, int box_rows) {
    return encode_boxes(function, map, data, rows, columns, leading, box_rows, map_columns,
                        CU_TENSOR_MAP_SWIZZLE_128B);
}

/* Boxes of eight columns, whose rows follow each other without permutation. */
bool encode_narrow(encode_fn function, CUtensorMap *map, const void *data, int64_t rows, int64_t columns,
                   int64_t leading, int box_rows) {
    return encode_boxes(function, map, data, rows, columns, leading, box_rows, 8, CU_TENSOR_MAP_SWIZZLE_NONE);
}

tp_status no_maps(const tpi_launch *launch, const char *operation) {
    return tpi_fail(TP_EDEVICE, "cuda:%d: %s: the driver makes no tensor maps", tpi_cuda_of(launch)->index,
                    operation);
}

} // namespace

#endif
