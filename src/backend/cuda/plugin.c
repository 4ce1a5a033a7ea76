/* What the plug-in libtaper_cuda.so exports, and what it takes from the library that loads it. The parts of
 * core that kernels and tables are written with are forwarded, so that errors and memory are the library's.
 */
#include "backend/cuda/device.h"
#include "backend/cuda/groups.h"

#include "core/alloc.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const tpi_plugin_host *host;

/* ---- core, forwarded ---- */

tp_status tpi_failv(tp_status status, const char *format, va_list args) {
    char message[512];
    vsnprintf(message, sizeof message, format, args);
    return host->fail(status, message);
}

tp_status tpi_fail(tp_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    tpi_failv(status, format, args);
    va_end(args);
    return status;
}

const char *tp_error_message(void) {
    return host->message();
}

void *tpi_calloc(size_t count, size_t size) {
    return host->allocate(count, size);
}

void *tpi_malloc(size_t bytes) {
    return host->allocate(bytes, 1);
}

void tpi_free(void *pointer) {
    host->release(pointer);
}

/* ---- the backend ---- */

static bool guards(tpi_op op) {
    return op == TPI_ADAMW || op == TPI_COPY || op == TPI_CACHE_WRITE;
}

static void describe(char *text, size_t bytes) {
    snprintf(text, bytes, "cuda");
}

static tp_status count_devices(int *out) {
    int driver = 0, runtime = 0;
    *out = 0;
    cudaRuntimeGetVersion(&runtime);
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        return host->fail(TP_EDEVICE, "cuda: no driver is installed");
    cudaError_t error = cudaGetDeviceCount(out);
    if (error == cudaSuccess && *out > 0) return TP_OK;
    char message[256];
    if (error == cudaErrorInsufficientDriver)
        snprintf(message, sizeof message,
                 "cuda: the driver is too old: it is for CUDA %d.%d, taper needs %d.%d", driver / 1000,
                 driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else
        snprintf(message, sizeof message, "cuda: no GPU can be used: %s",
                 error == cudaSuccess ? "none is visible" : cudaGetErrorString(error));
    *out = 0;
    return host->fail(TP_EDEVICE, message);
}

static tp_status open_device(int index, tpi_warning warning, void **state, char *text, size_t bytes) {
    int count;
    TPI_TRY(count_devices(&count));
    return tpi_cuda_open(index, warning, state, text, bytes);
}

static bool multiplies(tp_dtype dtype) {
    return dtype == TP_BF16 || dtype == TP_F16;
}

__attribute__((visibility("default"))) const tpi_plugin *taper_plugin(const tpi_plugin_host *from);

const tpi_plugin *taper_plugin(const tpi_plugin_host *from) {
    static const tpi_backend backend = {"cuda", tpi_cuda_kernels,  describe,  tpi_cuda_run,
                                        guards, TPI_CUDA_TOGETHER, multiplies};
    static const tpi_plugin plugin = {TAPER_VERSION, &backend, &tpi_cuda_calls, count_devices, open_device};
    host = from;
    return &plugin;
}
