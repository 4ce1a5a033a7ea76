/* The end of a run that may fail: its fault goes into the ring that the host reads, the cell is empty for the
 * next. The place in the ring is counted on the device, so that a captured run needs nothing new from the
 * host. */
#include "backend/cuda/device.cuh"
#include "backend/cuda/device.h"

static __global__ void collect(tpi_cuda_fault *fault, unsigned *next, tpi_cuda_fault *ring) {
    ring[(*next)++ % TPI_CUDA_RUNS] = *fault;
    fault->status = 0;
    __threadfence_system();
}

extern "C" cudaError_t tpi_cuda_collect_fault(const tpi_cuda_device *device) {
    collect<<<1, 1, 0, device->kernel.stream>>>(device->kernel.fault, device->faults.next,
                                                device->faults.ring);
    return cudaGetLastError();
}
