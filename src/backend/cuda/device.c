/* Opening a device, its memory, and copies in both directions. */
#include "backend/cuda/device.h"

#include "backend/cuda/libraries.h"
#include "core/alloc.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define ASKING 50e-3 /* seconds; waking up costs a quarter of a millisecond */

#define TRY_CUDA(device, call, what) TPI_TRY(tpi_cuda_report(device, call, what))

/* What was reported must not be found again behind the next launch; what the device does not recover from it
 * says by itself. */
tp_status tpi_cuda_report(const tpi_cuda_device *device, cudaError_t error, const char *what) {
    if (error == cudaSuccess) return TP_OK;
    cudaGetLastError();
    return tpi_fail(TP_EDEVICE, "cuda:%d: %s: %s", device->kernel.index, what, cudaGetErrorString(error));
}

tp_status tpi_cuda_check(cudaError_t error, const tpi_launch *launch) {
    if (error == cudaSuccess) return TP_OK;
    cudaGetLastError();
    return tpi_fail(TP_EDEVICE, "cuda:%d: %s: %s", tpi_cuda_of(launch)->index,
                    tpi_cuda_op_name(launch->step->op), cudaGetErrorString(error));
}

/* Makes the device the calling thread's, under the lock. */
static tp_status enter(tpi_cuda_device *device) {
    pthread_mutex_lock(&device->lock);
    cudaError_t error = cudaSetDevice(device->kernel.index);
    if (error == cudaSuccess) return TP_OK;
    pthread_mutex_unlock(&device->lock);
    return tpi_cuda_report(device, error, "the device cannot be used");
}

static tp_status leave(tpi_cuda_device *device, tp_status status) {
    pthread_mutex_unlock(&device->lock);
    return status;
}

/* ---- waiting ---- */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Waits for an event: at first by asking, which hears of it soonest, then asleep, which leaves the processor
 * to others. */
static cudaError_t await(cudaEvent_t event) {
    const double start = seconds();
    cudaError_t error;
    do {
        error = cudaEventQuery(event);
    } while (error == cudaErrorNotReady && seconds() - start < ASKING);
    cudaGetLastError(); /* not ready is an ordinary answer, which must not stick */
    return error == cudaErrorNotReady ? cudaEventSynchronize(event) : error;
}

/* ---- memory ---- */

static tp_status allocate(void *state, size_t bytes, void **out) {
    tpi_cuda_device *device = state;
    size_t free_bytes = 0, total = 0;
    *out = NULL;
    TPI_TRY(enter(device));
    cudaError_t error = cudaMalloc(out, bytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* an ordinary answer, which must not stick */
        cudaMemGetInfo(&free_bytes, &total);
        return leave(device,
                     tpi_fail(TP_ENOMEM,
                              "cuda:%d: out of memory: could not allocate %.1f MiB, %.1f of %.1f MiB free: "
                              "use smaller batches, shorter sequences or recomputation",
                              device->kernel.index, (double)bytes / 0x1p20, (double)free_bytes / 0x1p20,
                              (double)total / 0x1p20));
    }
    return leave(device, tpi_cuda_report(device, error, "allocation"));
}

static void release(void *state, void *block) {
    tpi_cuda_device *device = state;
    if (enter(device) != TP_OK) return;
    cudaFree(block);
    leave(device, TP_OK);
}

static void describe_memory(void *state, uint64_t *free_bytes, uint64_t *total_bytes) {
    tpi_cuda_device *device = state;
    size_t free_now = 0, total = 0;
    if (enter(device) != TP_OK) return;
    cudaMemGetInfo(&free_now, &total);
    *free_bytes = free_now;
    *total_bytes = total;
    leave(device, TP_OK);
}

/* ---- to the device ---- */

static tp_status next_buffer(tpi_cuda_device *device) {
    tpi_cuda_staging *s = &device->staging;
    TRY_CUDA(device, cudaEventRecord(s->used[s->buffer], device->kernel.stream), "copy to the device");
    s->buffer = (s->buffer + 1) % TPI_STAGING_BUFFERS;
    s->at = 0;
    return tpi_cuda_report(device, await(s->used[s->buffer]), "copy to the device");
}

/* Room for at least `wanted` bytes, which a buffer has. */
static tp_status find_room(tpi_cuda_device *device, size_t wanted, char **at, size_t *room) {
    tpi_cuda_staging *s = &device->staging;
    if (s->at + wanted > TPI_STAGING_BYTES) TPI_TRY(next_buffer(device));
    *at = s->memory + (size_t)s->buffer * TPI_STAGING_BYTES + s->at;
    *room = TPI_STAGING_BYTES - s->at;
    return TP_OK;
}

/* The first `bytes` of the room that was found. */
static tp_status send(tpi_cuda_device *device, void *to, const char *at, size_t bytes) {
    device->staging.at += tpi_align_up(bytes);
    return tpi_cuda_report(device,
                           cudaMemcpyAsync(to, at, bytes, cudaMemcpyHostToDevice, device->kernel.stream),
                           "copy to the device");
}

static tp_status stage(tpi_cuda_device *device, char *to, const char *from, size_t bytes) {
    char *at;
    for (size_t room, n; bytes > 0; to += n, from += n, bytes -= n) {
        TPI_TRY(find_room(device, 1, &at, &room));
        n = bytes < room ? bytes : room;
        memcpy(at, from, n);
        TPI_TRY(send(device, to, at, n));
    }
    return TP_OK;
}

/* In one copy, where a buffer holds them: to a device it takes as long for a few bytes as for many. */
static tp_status stage_together(tpi_cuda_device *device, char *to, const tpi_piece *pieces, int n) {
    const size_t bytes = pieces[n - 1].at + pieces[n - 1].bytes;
    char *at;
    size_t room;
    TPI_TRY(find_room(device, bytes, &at, &room));
    for (int i = 0; i < n; i++) memcpy(at + pieces[i].at, pieces[i].from, pieces[i].bytes);
    return send(device, to, at, bytes);
}

static tp_status stage_pieces(tpi_cuda_device *device, char *to, const tpi_piece *pieces, int n) {
    if (n > 1 && pieces[n - 1].at + pieces[n - 1].bytes <= TPI_STAGING_BYTES)
        return stage_together(device, to, pieces, n);
    for (int i = 0; i < n; i++) TPI_TRY(stage(device, to + pieces[i].at, pieces[i].from, pieces[i].bytes));
    return TP_OK;
}

static tp_status write_to(void *state, void *to, const tpi_piece *pieces, int n) {
    tpi_cuda_device *device = state;
    TPI_TRY(enter(device));
    device->behind = true;
    return leave(device, stage_pieces(device, to, pieces, n));
}

static tp_status clear(void *state, void *to, size_t bytes) {
    tpi_cuda_device *device = state;
    TPI_TRY(enter(device));
    device->behind = true;
    return leave(device,
                 tpi_cuda_report(device, cudaMemsetAsync(to, 0, bytes, device->kernel.stream), "clearing"));
}

static tp_status copy(void *state, void *to, const void *from, size_t bytes) {
    tpi_cuda_device *device = state;
    TPI_TRY(enter(device));
    device->behind = true;
    return leave(device, tpi_cuda_report(device,
                                         cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice,
                                                         device->kernel.stream),
                                         "copy"));
}

/* ---- marks ---- */

static tp_status fault_status(const tpi_cuda_fault *fault) {
    if (fault->status == TP_OK) return TP_OK;
    return tpi_fail((tp_status)fault->status, "%s: %lld is outside [0, %lld)", tpi_cuda_op_name(fault->op),
                    fault->got, fault->size);
}

/* What run `mark`, which has ended, found. */
static tp_status status_of_run(const tpi_cuda_device *device, uint64_t mark) {
    const tpi_cuda_faults *f = &device->faults;
    if (mark + TPI_CUDA_RUNS > device->marks) {
        const unsigned entry = f->entry[mark % TPI_CUDA_RUNS];
        return entry ? fault_status(&f->ring[(entry - 1) % TPI_CUDA_RUNS]) : TP_OK;
    }
    for (unsigned i = 0; i < TPI_CUDA_OLD_FAULTS && i < f->old_count; i++)
        if (f->old[i].mark == mark) return fault_status(&f->old[i].fault);
    return TP_OK;
}

/* The event of run number `mark` is about to be used again: remembers what the run found. */
static void remember_fault(tpi_cuda_device *device, uint64_t mark) {
    tpi_cuda_faults *f = &device->faults;
    const unsigned entry = f->entry[mark % TPI_CUDA_RUNS];
    if (!entry) return;
    const tpi_cuda_fault *fault = &f->ring[(entry - 1) % TPI_CUDA_RUNS];
    if (fault->status == TP_OK) return;
    f->old[f->old_count % TPI_CUDA_OLD_FAULTS].mark = mark;
    f->old[f->old_count++ % TPI_CUDA_OLD_FAULTS].fault = *fault;
}

/* Run `mark` and all before it have ended; under the lock. */
static void note_end(tpi_cuda_device *device, uint64_t mark) {
    if (mark > device->ended) device->ended = mark;
}

tp_status tpi_cuda_begin_run(tpi_cuda_device *device) {
    const uint64_t next = device->marks + 1;
    if (next <= TPI_CUDA_RUNS) return TP_OK;
    const uint64_t oldest = next - TPI_CUDA_RUNS; /* whose event is used again */
    if (oldest > device->ended) TRY_CUDA(device, await(device->events[oldest % TPI_CUDA_RUNS]), "waiting");
    note_end(device, oldest);
    remember_fault(device, oldest);
    return TP_OK;
}

tp_status tpi_cuda_end_run(tpi_cuda_device *device, bool collects) {
    const uint64_t mark = ++device->marks;
    device->faults.entry[mark % TPI_CUDA_RUNS] = collects ? ++device->faults.queued : 0;
    device->behind = false;
    return tpi_cuda_report(
        device, cudaEventRecord(device->events[mark % TPI_CUDA_RUNS], device->kernel.stream), "a run");
}

static uint64_t mark(void *state) {
    tpi_cuda_device *device = state;
    pthread_mutex_lock(&device->lock);
    uint64_t now = device->marks + device->behind;
    pthread_mutex_unlock(&device->lock);
    return now;
}

/* The event to wait for; under the lock. What has no event yet gets one. */
static tp_status event_of(tpi_cuda_device *device, uint64_t at, cudaEvent_t *out) {
    if (at > device->marks) {
        TPI_TRY(tpi_cuda_begin_run(device));
        TPI_TRY(tpi_cuda_end_run(device, false));
    }
    const uint64_t oldest = device->marks > TPI_CUDA_RUNS ? device->marks - TPI_CUDA_RUNS + 1 : 1;
    *out = device->events[(at < oldest ? oldest : at) % TPI_CUDA_RUNS];
    return TP_OK;
}

static tp_status find_event(tpi_cuda_device *device, uint64_t at, cudaEvent_t *out) {
    TPI_TRY(enter(device));
    return leave(device, event_of(device, at, out));
}

static tp_status wait_for(void *state, uint64_t at) {
    tpi_cuda_device *device = state;
    cudaEvent_t event;
    if (at == 0) return TP_OK;
    TPI_TRY(find_event(device, at, &event));
    TRY_CUDA(device, await(event), "a run failed");
    pthread_mutex_lock(&device->lock);
    note_end(device, at);
    return leave(device, status_of_run(device, at));
}

/* ---- to the host ---- */

static tp_status land(tpi_cuda_device *device, char *to, const char *from, size_t bytes) {
    while (bytes > 0) {
        const size_t n = bytes < TPI_STAGING_BYTES ? bytes : TPI_STAGING_BYTES;
        TRY_CUDA(device, cudaMemcpyAsync(device->landing, from, n, cudaMemcpyDeviceToHost, device->reads),
                 "copy to the host");
        TRY_CUDA(device, cudaEventRecord(device->landed, device->reads), "copy to the host");
        TRY_CUDA(device, await(device->landed), "copy to the host");
        memcpy(to, device->landing, n);
        to += n;
        from += n;
        bytes -= n;
    }
    return TP_OK;
}

static tp_status read_from(void *state, void *to, const void *from, size_t bytes, uint64_t at) {
    tpi_cuda_device *device = state;
    cudaEvent_t event = NULL;
    if (at > 0) TPI_TRY(find_event(device, at, &event));
    pthread_mutex_lock(&device->reading);
    tp_status status =
        tpi_cuda_report(device, cudaSetDevice(device->kernel.index), "the device cannot be used");
    if (status == TP_OK && event)
        status = tpi_cuda_report(device, cudaStreamWaitEvent(device->reads, event, 0), "copy to the host");
    if (status == TP_OK) status = land(device, to, from, bytes);
    pthread_mutex_unlock(&device->reading);
    if (status != TP_OK || bytes == 0) return status;
    pthread_mutex_lock(&device->lock);
    note_end(device, at);
    return leave(device, TP_OK);
}

/* ---- opening and closing ---- */

static void close_device(void *state) {
    tpi_cuda_device *device = state;
    if (!device) return;
    cudaSetDevice(device->kernel.index);
    if (device->kernel.stream) cudaStreamSynchronize(device->kernel.stream);
    tpi_cuda_leave(device);
    tpi_cuda_libraries_destroy(device->kernel.libraries);
    for (int i = 0; i < TPI_CUDA_RUNS; i++)
        if (device->events[i]) cudaEventDestroy(device->events[i]);
    for (int i = 0; i < TPI_STAGING_BUFFERS; i++)
        if (device->staging.used[i]) cudaEventDestroy(device->staging.used[i]);
    if (device->landed) cudaEventDestroy(device->landed);
    cudaFreeHost(device->staging.memory);
    cudaFreeHost(device->landing);
    cudaFreeHost(device->faults.ring);
    cudaFree(device->kernel.fault);
    cudaFree(device->faults.next);
    if (device->reads) cudaStreamDestroy(device->reads);
    if (device->kernel.stream) cudaStreamDestroy(device->kernel.stream);
    pthread_mutex_destroy(&device->lock);
    pthread_mutex_destroy(&device->reading);
    tpi_free(device);
}

static cudaError_t make_events(cudaEvent_t *events, int n) {
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < n && error == cudaSuccess; i++)
        error = cudaEventCreateWithFlags(&events[i], cudaEventDisableTiming | cudaEventBlockingSync);
    return error;
}

static cudaError_t make_memory(tpi_cuda_device *device) {
    const size_t ring = TPI_CUDA_RUNS * sizeof(tpi_cuda_fault);
    tpi_cuda *k = &device->kernel;
    tpi_cuda_faults *f = &device->faults;
    cudaError_t error = cudaHostAlloc((void **)&f->ring, ring, cudaHostAllocMapped);
    if (error == cudaSuccess)
        error = cudaHostAlloc((void **)&device->staging.memory, TPI_STAGING_BUFFERS * TPI_STAGING_BYTES, 0);
    if (error == cudaSuccess) error = cudaHostAlloc((void **)&device->landing, TPI_STAGING_BYTES, 0);
    if (error == cudaSuccess) error = cudaMalloc((void **)&k->fault, sizeof *k->fault);
    if (error == cudaSuccess) error = cudaMalloc((void **)&f->next, sizeof *f->next);
    if (error == cudaSuccess) error = cudaMemset(k->fault, 0, sizeof *k->fault);
    if (error == cudaSuccess) error = cudaMemset(f->next, 0, sizeof *f->next);
    if (error == cudaSuccess) memset(f->ring, 0, ring);
    return error;
}

static cudaError_t make_device(tpi_cuda_device *device) {
    tpi_cuda *k = &device->kernel;
    cudaError_t error = cudaSetDevice(k->index);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&k->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&device->reads, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = make_events(device->events, TPI_CUDA_RUNS);
    if (error == cudaSuccess) error = make_events(device->staging.used, TPI_STAGING_BUFFERS);
    if (error == cudaSuccess) error = make_events(&device->landed, 1);
    if (error == cudaSuccess) error = make_memory(device);
    return error == cudaSuccess ? tpi_cuda_join(device) : error;
}

static cudaError_t ask_properties(tpi_cuda_device *device, char *text, size_t bytes) {
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device->kernel.index);
    if (error != cudaSuccess) return error;
    device->kernel.card = 10 * p.major + p.minor;
    device->kernel.processors = p.multiProcessorCount;
    device->kernel.shared_bytes = (int)p.sharedMemPerBlockOptin;
    snprintf(text, bytes, "%s, %.0f GiB, compute capability %d.%d", p.name, (double)p.totalGlobalMem / 0x1p30,
             p.major, p.minor);
    return cudaSuccess;
}

/* What the plug-in has for this card, which the text says where it is of an older one. */
static tp_status ask_code(tpi_cuda_device *device, char *card, size_t bytes) {
    tpi_cuda *k = &device->kernel;
    const cudaError_t error = tpi_cuda_code_capability(&k->capability);
    const size_t used = strlen(card);
    if (error == cudaSuccess) {
        if (k->capability != k->card)
            snprintf(card + used, bytes - used, ", code for %d.%d", k->capability / 10, k->capability % 10);
        return TP_OK;
    }
    cudaGetLastError(); /* an ordinary answer, which must not stick */
    return tpi_fail(TP_EDEVICE, "cuda:%d: the plug-in was built without code for this GPU (%s): %s", k->index,
                    card, cudaGetErrorString(error));
}

tp_status tpi_cuda_open(int index, tpi_warning warning, void **state, char *text, size_t bytes) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return tpi_fail(TP_EDEVICE, "cuda: %s", cudaGetErrorString(error));
    if (index >= count)
        return tpi_fail(TP_EDEVICE, "cuda:%d: there is no such GPU: %d can be used", index, count);
    tpi_cuda_device *device = tpi_calloc(1, sizeof *device);
    if (!device) return TP_ENOMEM;
    pthread_mutex_init(&device->lock, NULL);
    pthread_mutex_init(&device->reading, NULL);
    device->kernel.index = index;
    device->warning = warning;
    error = ask_properties(device, text, bytes);
    if (error == cudaSuccess) error = make_device(device);
    tp_status status = tpi_cuda_report(device, error, "the device cannot be opened");
    if (status == TP_OK) status = ask_code(device, text, bytes);
    if (status == TP_OK) status = tpi_cuda_libraries_create(&device->kernel.libraries);
    if (status != TP_OK)
        close_device(device);
    else
        *state = device;
    return status;
}

const tpi_device_calls tpi_cuda_calls = {
    .allocate = allocate,
    .release = release,
    .write = write_to,
    .clear = clear,
    .copy = copy,
    .read = read_from,
    .mark = mark,
    .wait = wait_for,
    .describe_memory = describe_memory,
    .close = close_device,
};
