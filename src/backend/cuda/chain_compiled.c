#include "backend/cuda/chain_compiled.h"
#include "backend/cuda/compiler.h"
#include "backend/cuda/libraries.h"
#include "core/alloc.h"

typedef struct compiled_chain {
    tpi_cuda_plan head;
    bool met, refused; /* met before; nothing that was compiled can be loaded */
    cudaLibrary_t library;
    cudaKernel_t kernel; /* NULL: not yet */
} compiled_chain;

static void destroy_chain(tpi_cuda_plan *plan) {
    compiled_chain *c = (compiled_chain *)plan;
    if (c->library) cudaLibraryUnload(c->library);
    tpi_free(c);
}

static tp_status make_chain(const tpi_launch *launch, const void *key, tpi_cuda_plan **out) {
    compiled_chain *c = tpi_calloc(1, sizeof *c);
    (void)launch, (void)key;
    if (!c) return TP_ENOMEM;
    c->head.destroy = destroy_chain;
    c->head.kept = true;
    *out = &c->head;
    return TP_OK;
}

static bool load(compiled_chain *c, const void *code) {
    return cudaLibraryLoadData(&c->library, code, NULL, NULL, 0, NULL, NULL, 0) == cudaSuccess &&
           cudaLibraryGetKernel(&c->kernel, c->library, "chain") == cudaSuccess;
}

/* What the compiler refuses, as a device that is newer than it, is interpreted. */
static void compile(compiled_chain *c, const tpi_chain_shape *shape, const tpi_cuda *cuda) {
    char *source = NULL;
    void *code = NULL;
    size_t bytes;
    c->refused = tpi_chain_source(shape, cuda->capability >= 90, &source) != TP_OK ||
                 tpi_nvrtc_compile(source, cuda->card, &code, &bytes) != TP_OK || !load(c, code);
    if (c->refused) c->kernel = NULL, cudaGetLastError();
    tpi_free(source), tpi_free(code);
}

/* Code is not loaded while a plan is captured. */
static bool may_compile(const tpi_cuda *cuda, const compiled_chain *c) {
    return c->met && !c->kernel && !c->refused && !tpi_cuda_capturing(cuda);
}

/* The lock is held. */
static tp_status find_chain(const tpi_launch *launch, const tpi_chain_shape *shape, compiled_chain **out) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    tpi_cuda_plan *plan;
    TPI_TRY(tpi_cuda_plan_of(launch, make_chain, shape, sizeof *shape, &plan));
    *out = (compiled_chain *)plan;
    if (may_compile(cuda, *out)) compile(*out, shape, cuda);
    return TP_OK;
}

tp_status tpi_cuda_compiled_chain(const tpi_launch *launch, const tpi_chain_shape *shape, cudaKernel_t *out) {
    tpi_cuda_libraries *libraries = tpi_cuda_of(launch)->libraries;
    compiled_chain *c;
    *out = NULL;
    if (!tpi_nvrtc_available()) return TP_OK;
    pthread_mutex_lock(&libraries->lock);
    const tp_status status = find_chain(launch, shape, &c);
    if (status == TP_OK) {
        c->met = true;
        *out = c->kernel;
    }
    pthread_mutex_unlock(&libraries->lock);
    return status;
}

void tpi_cuda_compile_chain(const tpi_launch *launch, const tpi_chain_shape *shape) {
    tpi_cuda_libraries *libraries = tpi_cuda_of(launch)->libraries;
    compiled_chain *c;
    if (!tpi_nvrtc_available()) return;
    pthread_mutex_lock(&libraries->lock);
    find_chain(launch, shape, &c);
    pthread_mutex_unlock(&libraries->lock);
}
