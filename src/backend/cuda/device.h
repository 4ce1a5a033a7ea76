/* A device as the host side of the backend knows it.
 *
 * One stream does the work; a second one copies results to the host, so that reading waits for what made them
 * and not for what was queued later. A mark is the number of a run: events[m % TPI_CUDA_RUNS] is behind run
 * m. At most TPI_CUDA_RUNS runs are under way.
 *
 * Invariant: `lock` guards the stream's order and all that is said of it here; `kernel` comes first, for it
 * is what kernels are given. */
#ifndef TAPER_BACKEND_CUDA_DEVICE_H
#define TAPER_BACKEND_CUDA_DEVICE_H

#include "backend/cuda/cuda.h"
#include "backend/plugin.h"

#include <pthread.h>

#define TPI_CUDA_RUNS       32
#define TPI_STAGING_BUFFERS 8
#define TPI_STAGING_BYTES   ((size_t)1 << 20) /* of a buffer, a multiple of TPI_ALIGN */
#define TPI_CUDA_OLD_FAULTS 8

/* Pinned host memory that copies to the device go through, buffer after buffer. */
typedef struct tpi_cuda_staging {
    char *memory;
    cudaEvent_t used[TPI_STAGING_BUFFERS]; /* behind the last copy from a buffer */
    int buffer;
    size_t at; /* in the buffer */
} tpi_cuda_staging;

/* What runs that may fail found, in the order in which they ran. The device writes the ring (faults.cu), the
 * host knows which run each entry is of. */
typedef struct tpi_cuda_faults {
    tpi_cuda_fault *ring;          /* TPI_CUDA_RUNS, in host memory that the device writes */
    unsigned *next;                /* device memory: entries written */
    unsigned queued;               /* entries that the runs queued so far will have written */
    unsigned entry[TPI_CUDA_RUNS]; /* of run m, at m % TPI_CUDA_RUNS: 1 + its entry; 0: it cannot fail */
    struct {
        uint64_t mark;
        tpi_cuda_fault fault;
    } old[TPI_CUDA_OLD_FAULTS]; /* of failed runs whose entries are overwritten */
    unsigned old_count;
} tpi_cuda_faults;

typedef struct tpi_cuda_device {
    tpi_cuda kernel;
    pthread_mutex_t lock, reading;
    cudaStream_t reads;
    char *landing;      /* pinned: copies to the host come through it; `reading` guards it */
    cudaEvent_t landed; /* behind the last of them */
    tpi_warning warning;
    char to_say[256]; /* a warning, given when the lock is free; "": none */
    uint64_t marks;   /* of the last run */
    uint64_t ended;   /* of a run that has, as far as is known; so have those before it */
    bool behind;      /* something was queued behind the last run's event */
    cudaEvent_t events[TPI_CUDA_RUNS];
    tpi_cuda_staging staging;
    tpi_cuda_faults faults;
    bool joined; /* sharing.c knows it */
} tpi_cuda_device;

extern const tpi_device_calls tpi_cuda_calls; /* device.c */

/* Opens device `index`; as tpi_plugin.open. */
tp_status tpi_cuda_open(int index, tpi_warning warning, void **state, char *text, size_t bytes);

/* TP_OK, or TP_EDEVICE: "cuda:0: <what>: <CUDA's own words>". */
tp_status tpi_cuda_report(const tpi_cuda_device *device, cudaError_t error, const char *what);

/* Ends a run with its event, whatever became of it; under the lock. `collects`: tpi_cuda_collect_fault is
 * queued, so the run has an entry of the ring. */
tp_status tpi_cuda_end_run(tpi_cuda_device *device, bool collects);

/* Waits until one more run may be queued; under the lock. */
tp_status tpi_cuda_begin_run(tpi_cuda_device *device);

/* ---- replay.c ---- */

/* As tpi_backend.run: replays what was captured, or launches the steps one by one. */
tp_status tpi_cuda_run(void *state, const tpi_bound *bound, uint64_t *mark);

/* ---- sharing.c ---- */

/* One more user of the current device, and one less. */
cudaError_t tpi_cuda_join(tpi_cuda_device *device);
void tpi_cuda_leave(tpi_cuda_device *device);

/* What is queued between these runs when no other user's run does. Both are called, whatever they return. */
tp_status tpi_cuda_begin_turn(tpi_cuda_device *device);
tp_status tpi_cuda_end_turn(tpi_cuda_device *device);

/* ---- registry.c ---- */

const tpi_kernel *tpi_cuda_kernels(tpi_op op);
const char *tpi_cuda_op_name(int op);

#ifdef __cplusplus
extern "C" {
#endif

/* ---- code.cu ---- */

/* The capability that the code for the current device was compiled for, which is no newer than the device; an
 * error where there is none. */
cudaError_t tpi_cuda_code_capability(int *capability);

/* ---- faults.cu ---- */

/* Enqueues what ends a run that may fail: moves the fault cell into the ring and clears it. */
cudaError_t tpi_cuda_collect_fault(const tpi_cuda_device *device);

#ifdef __cplusplus
}
#endif
#endif
