/* A GPU that several contexts of a process have opened: their runs are one behind the other.
 *
 * Blocks of an adapted layer's product wait for each other (linear_lora_hopper.cuh), so all of them must find
 * room at once. Within a stream they do. Two streams could give half of the GPU each to such a launch, and
 * neither would end. Processes share a GPU by turns, each of which is all of it. */
#include "backend/cuda/device.h"

#define MOST_GPUS 64

/* Invariant: where there are `users` beyond one, all runs that any of them has queued are before `last`. */
typedef struct shared_gpu {
    pthread_mutex_t lock; /* held while a run is queued */
    int users;
    cudaEvent_t last; /* behind the last run; NULL: there was never more than one user */
} shared_gpu;

static shared_gpu gpus[MOST_GPUS] = {[0 ... MOST_GPUS - 1] = {.lock = PTHREAD_MUTEX_INITIALIZER}};

static shared_gpu *gpu_of(const tpi_cuda_device *device) {
    return &gpus[device->kernel.index % MOST_GPUS];
}

/* What a single user queued has no event behind it. */
static cudaError_t begin_sharing(shared_gpu *gpu) {
    cudaError_t error = cudaDeviceSynchronize();
    if (error == cudaSuccess && !gpu->last)
        error = cudaEventCreateWithFlags(&gpu->last, cudaEventDisableTiming);
    return error;
}

cudaError_t tpi_cuda_join(tpi_cuda_device *device) {
    shared_gpu *gpu = gpu_of(device);
    pthread_mutex_lock(&gpu->lock);
    const cudaError_t error = gpu->users > 0 ? begin_sharing(gpu) : cudaSuccess;
    device->joined = error == cudaSuccess;
    gpu->users += device->joined;
    pthread_mutex_unlock(&gpu->lock);
    return error;
}

void tpi_cuda_leave(tpi_cuda_device *device) {
    shared_gpu *gpu = gpu_of(device);
    if (!device->joined) return;
    pthread_mutex_lock(&gpu->lock);
    device->joined = false;
    if (--gpu->users == 0 && gpu->last) {
        cudaEventDestroy(gpu->last);
        gpu->last = NULL;
    }
    pthread_mutex_unlock(&gpu->lock);
}

tp_status tpi_cuda_begin_turn(tpi_cuda_device *device) {
    shared_gpu *gpu = gpu_of(device);
    pthread_mutex_lock(&gpu->lock);
    if (gpu->users < 2) return TP_OK;
    return tpi_cuda_report(device, cudaStreamWaitEvent(device->kernel.stream, gpu->last, 0), "a turn");
}

tp_status tpi_cuda_end_turn(tpi_cuda_device *device) {
    shared_gpu *gpu = gpu_of(device);
    tp_status status = TP_OK;
    if (gpu->users > 1)
        status = tpi_cuda_report(device, cudaEventRecord(gpu->last, device->kernel.stream), "a turn");
    pthread_mutex_unlock(&gpu->lock);
    return status;
}
