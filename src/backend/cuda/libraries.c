/* cuBLASLt, opened once a process, and a device's handles and plans. */
#include "backend/cuda/libraries.h"
#include "backend/cuda/library.h"
#include "core/alloc.h"
#include "core/hash.h"

#include <string.h>

#define TPI_NAME(name) #name,
static const char *const cublaslt_files[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
static const char *const cublaslt_names[] = {TPI_CUBLASLT_FUNCTIONS(TPI_NAME) NULL};
#undef TPI_NAME

static tpi_cublaslt_api cublaslt_table;
static tpi_library cublaslt = {cublaslt_files, cublaslt_names, &cublaslt_table, false};

static void load_cublaslt(void) {
    tpi_library_load(&cublaslt);
}

const tpi_cublaslt_api *tpi_cublaslt(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load_cublaslt);
    return cublaslt.complete ? &cublaslt_table : NULL;
}

bool tpi_cublaslt_available(void) {
    return tpi_cublaslt() != NULL;
}

/* ---- of one device ---- */

tp_status tpi_cuda_libraries_create(tpi_cuda_libraries **out) {
    *out = NULL;
    tpi_cuda_libraries *libraries = tpi_calloc(1, sizeof *libraries);
    if (!libraries) return TP_ENOMEM;
    if (tpi_cublaslt()) {
        cublasStatus_t got = tpi_cublaslt()->cublasLtCreate(&libraries->cublaslt);
        if (got != CUBLAS_STATUS_SUCCESS) {
            tpi_free(libraries);
            return tpi_fail(TP_EDEVICE, "cuBLASLt: %s", tpi_cublaslt()->cublasLtGetStatusString(got));
        }
    }
    pthread_mutex_init(&libraries->lock, NULL);
    *out = libraries;
    return TP_OK;
}

static void destroy_plan(tpi_cuda_plan *plan) {
    tpi_free(plan->key);
    plan->destroy(plan);
}

void tpi_cuda_libraries_destroy(tpi_cuda_libraries *libraries) {
    if (!libraries) return;
    for (int c = 0; c < TPI_CUDA_PLAN_CHAINS; c++)
        for (tpi_cuda_plan *plan = libraries->plans[c], *next; plan; plan = next) {
            next = plan->next;
            destroy_plan(plan);
        }
    if (libraries->cublaslt) tpi_cublaslt()->cublasLtDestroy(libraries->cublaslt);
    pthread_mutex_destroy(&libraries->lock);
    tpi_free(libraries);
}

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t n) {
    for (size_t at = 0; at < n; at += sizeof(uint64_t)) {
        uint64_t word = 0;
        memcpy(&word, (const char *)bytes + at, n - at < sizeof word ? n - at : sizeof word);
        hash = tpi_hash_mix(hash, word);
    }
    return hash;
}

/* The place of the plan that was used least recently. */
static tpi_cuda_plan **find_oldest(tpi_cuda_libraries *libraries) {
    tpi_cuda_plan **oldest = NULL;
    for (int c = 0; c < TPI_CUDA_PLAN_CHAINS; c++)
        for (tpi_cuda_plan **at = &libraries->plans[c]; *at; at = &(*at)->next)
            if (!(*at)->kept && (!oldest || (*at)->used < (*oldest)->used)) oldest = at;
    return oldest;
}

static void make_room(tpi_cuda_libraries *libraries) {
    if (libraries->count < TPI_CUDA_PLANS) return;
    tpi_cuda_plan **at = find_oldest(libraries), *plan = *at;
    *at = plan->next;
    libraries->count--;
    destroy_plan(plan);
}

static void insert(tpi_cuda_libraries *libraries, tpi_cuda_plan *plan) {
    if (!plan->kept) make_room(libraries), libraries->count++;
    tpi_cuda_plan **chain = &libraries->plans[plan->hash & (TPI_CUDA_PLAN_CHAINS - 1)];
    plan->used = ++libraries->clock;
    plan->next = *chain;
    *chain = plan;
}

tp_status tpi_cuda_plan_of(const tpi_launch *launch, tpi_cuda_plan_maker make, const void *key,
                           size_t key_bytes, tpi_cuda_plan **out) {
    tpi_cuda_libraries *libraries = tpi_cuda_of(launch)->libraries;
    uint64_t hash = hash_bytes((uint64_t)(uintptr_t)make, key, key_bytes);
    tpi_cuda_plan *first = libraries->plans[hash & (TPI_CUDA_PLAN_CHAINS - 1)];
    for (tpi_cuda_plan *plan = first; plan; plan = plan->next)
        if (plan->hash == hash && plan->key_bytes == key_bytes && memcmp(plan->key, key, key_bytes) == 0) {
            plan->used = ++libraries->clock;
            *out = plan;
            return TP_OK;
        }
    void *copy = tpi_malloc(key_bytes);
    if (!copy) return TP_ENOMEM;
    memcpy(copy, key, key_bytes);
    tp_status status = make(launch, key, out);
    if (status != TP_OK) {
        tpi_free(copy);
        return status;
    }
    (*out)->hash = hash;
    (*out)->key_bytes = key_bytes;
    (*out)->key = copy;
    insert(libraries, *out);
    return TP_OK;
}
