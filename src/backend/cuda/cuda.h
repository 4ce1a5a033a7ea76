/* The CUDA backend as its kernels see it: one device, one stream, lists of kernels.
 *
 * Everything of a device runs in order on one stream. A kernel's `run` enqueues work on it and returns: it
 * waits for nothing, allocates nothing and reads no operand on the host, so that a plan can be captured and
 * replayed. What the device finds wrong (an index out of range) goes into the fault cell, and from there, at
 * the run's end, into a ring that the host reads (faults.cu).
 *
 * Invariants: launch->device is a tpi_cuda; operands and scratch are device memory, aligned to 64 bytes at
 * their value's root; shapes are fixed when planning, values are not. Kernels that may write state (adamw,
 * copy, cache_write) do nothing once the fault cell is set: a failed evaluation leaves state as it was. */
#ifndef TAPER_BACKEND_CUDA_CUDA_H
#define TAPER_BACKEND_CUDA_CUDA_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "backend/backend.h"
#include "core/error.h"

/* The first thing that went wrong in a run; status 0: nothing. In device memory; the end of a run that may
 * fail moves it into the ring and clears it. */
typedef struct tpi_cuda_fault {
    int32_t status;      /* tp_status */
    int32_t op;          /* tpi_op */
    long long got, size; /* the index, and the size that it should be under */
} tpi_cuda_fault;

typedef struct tpi_cuda_libraries tpi_cuda_libraries; /* libraries.h */

typedef struct tpi_cuda {
    cudaStream_t stream;
    int index;        /* of the device */
    int capability;   /* of the code that runs here, no newer than the card: 80, 86, 89, 90, 100, 120 */
    int card;         /* the card's own, for which code is compiled at run time */
    int processors;   /* multiprocessors */
    int shared_bytes; /* of shared memory that a block may ask for */
    tpi_cuda_fault *fault;
    tpi_cuda_libraries *libraries;
} tpi_cuda;

static inline tpi_cuda *tpi_cuda_of(const tpi_launch *launch) {
    return (tpi_cuda *)launch->device;
}

/* Whether what is launched now becomes part of a captured plan. */
static inline bool tpi_cuda_capturing(const tpi_cuda *cuda) {
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(cuda->stream, &capture);
    return capture != cudaStreamCaptureStatusNone;
}

/* TP_OK, or TP_EDEVICE naming the step's operation and CUDA's own words. */
tp_status tpi_cuda_check(cudaError_t error, const tpi_launch *launch);

/* What ends a run function after its last <<< >>>: the launch's own error, which costs no wait. */
static inline tp_status tpi_cuda_launched(const tpi_launch *launch) {
    return tpi_cuda_check(cudaGetLastError(), launch);
}

/* Lists of kernels, each ended by TPI_KERNELS_END; registry.c orders them: the special before the general. An
 * operation may stand in several lists. */
extern const tpi_kernel_entry tpi_cuda_pointwise[], tpi_cuda_reduce[], tpi_cuda_sum_squares[],
    tpi_cuda_silu_mul_grad[], tpi_cuda_move[], tpi_cuda_index[], tpi_cuda_dropout[], tpi_cuda_adamw[],
    tpi_cuda_softmax[], tpi_cuda_norm[], tpi_cuda_norm_grad[], tpi_cuda_rope[], tpi_cuda_cross_entropy[],
    tpi_cuda_linear_cross_entropy[], tpi_cuda_matmul[], tpi_cuda_skinny[], tpi_cuda_lora[],
    tpi_cuda_linear_lora[], tpi_cuda_attention[], tpi_cuda_attention_grad[], tpi_cuda_attention_decode[];

#ifdef __cplusplus
}
#endif
#endif
