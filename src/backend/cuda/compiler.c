#include "backend/cuda/compiler.h"
#include "backend/cuda/library.h"
#include "core/alloc.h"
#include "core/error.h"

#include <nvrtc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define TPI_NVRTC_FUNCTIONS(X)                                                                               \
    X(nvrtcCompileProgram)                                                                                   \
    X(nvrtcCreateProgram)                                                                                    \
    X(nvrtcDestroyProgram)                                                                                   \
    X(nvrtcGetCUBIN)                                                                                         \
    X(nvrtcGetCUBINSize)                                                                                     \
    X(nvrtcGetErrorString)                                                                                   \
    X(nvrtcGetProgramLog)                                                                                    \
    X(nvrtcGetProgramLogSize)

#define TPI_MEMBER(name) __typeof__(name) *name;
#define TPI_NAME(name)   #name,
static struct { TPI_NVRTC_FUNCTIONS(TPI_MEMBER) } nvrtc;
static const char *const files[] = {"libnvrtc.so.13", "libnvrtc.so.12", NULL};
static const char *const names[] = {TPI_NVRTC_FUNCTIONS(TPI_NAME) NULL};
#undef TPI_MEMBER
#undef TPI_NAME

static tpi_library library = {files, names, &nvrtc, false};

static void load(void) {
    tpi_library_load(&library);
}

bool tpi_nvrtc_available(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return library.complete;
}

static tp_status failed(nvrtcResult got) {
    return tpi_fail(TP_EDEVICE, "NVRTC: %s", nvrtc.nvrtcGetErrorString(got));
}

#define TRY_NVRTC(call)                                                                                      \
    do {                                                                                                     \
        nvrtcResult got_ = (call);                                                                           \
        if (got_ != NVRTC_SUCCESS) return failed(got_);                                                      \
    } while (0)

/* The first line of what the compiler says. */
static tp_status refused(nvrtcProgram program, nvrtcResult got) {
    size_t bytes = 0;
    if (nvrtc.nvrtcGetProgramLogSize(program, &bytes) != NVRTC_SUCCESS || bytes < 2) return failed(got);
    char *log = tpi_malloc(bytes);
    if (!log) return TP_ENOMEM;
    tp_status status = failed(got);
    if (nvrtc.nvrtcGetProgramLog(program, log) == NVRTC_SUCCESS)
        status = tpi_fail(TP_EDEVICE, "NVRTC: %.*s", (int)strcspn(log, "\n"), log);
    tpi_free(log);
    return status;
}

static tp_status compile(nvrtcProgram program, int capability, void **code, size_t *bytes) {
    char architecture[32];
    snprintf(architecture, sizeof architecture, "--gpu-architecture=sm_%d", capability);
    const char *options[] = {architecture, "--std=c++17"};
    const nvrtcResult got = nvrtc.nvrtcCompileProgram(program, 2, options);
    if (got != NVRTC_SUCCESS) return refused(program, got);
    TRY_NVRTC(nvrtc.nvrtcGetCUBINSize(program, bytes));
    if (!(*code = tpi_malloc(*bytes))) return TP_ENOMEM;
    TRY_NVRTC(nvrtc.nvrtcGetCUBIN(program, *code));
    return TP_OK;
}

tp_status tpi_nvrtc_compile(const char *source, int capability, void **code, size_t *bytes) {
    nvrtcProgram program;
    *code = NULL;
    if (!tpi_nvrtc_available()) return tpi_fail(TP_EDEVICE, "NVRTC is not installed");
    TRY_NVRTC(nvrtc.nvrtcCreateProgram(&program, source, "kernel.cu", 0, NULL, NULL));
    const tp_status status = compile(program, capability, code, bytes);
    nvrtc.nvrtcDestroyProgram(&program);
    if (status != TP_OK) tpi_free(*code), *code = NULL;
    return status;
}
