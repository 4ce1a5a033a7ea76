/* NVIDIA's libraries as tables of functions, and what a device keeps of them: handles and plans by shape.
 *
 * Nothing is linked: a library is opened at its first use, once a process. A missing one is an ordinary
 * answer (NULL), so that the next candidate serves. Where a library lies is the dynamic loader's matter
 * (LD_LIBRARY_PATH).
 *
 * For C only: kernels that are CUDA C reach the libraries through product.h. */
#ifndef TAPER_BACKEND_CUDA_LIBRARIES_H
#define TAPER_BACKEND_CUDA_LIBRARIES_H

#include "backend/cuda/cuda.h"

#include <cublasLt.h>
#include <pthread.h>

/* ---- a table: a member is called as the function that it points to: tpi_cublaslt()->cublasLtCreate(&handle)
 * ---- */

#define TPI_CUBLASLT_FUNCTIONS(X)                                                                            \
    X(cublasLtCreate)                                                                                        \
    X(cublasLtDestroy)                                                                                       \
    X(cublasLtGetStatusString)                                                                               \
    X(cublasLtMatmul)                                                                                        \
    X(cublasLtMatmulAlgoGetHeuristic)                                                                        \
    X(cublasLtMatmulDescCreate)                                                                              \
    X(cublasLtMatmulDescDestroy)                                                                             \
    X(cublasLtMatmulDescSetAttribute)                                                                        \
    X(cublasLtMatmulPreferenceCreate)                                                                        \
    X(cublasLtMatmulPreferenceDestroy)                                                                       \
    X(cublasLtMatmulPreferenceSetAttribute)                                                                  \
    X(cublasLtMatrixLayoutCreate)                                                                            \
    X(cublasLtMatrixLayoutDestroy)                                                                           \
    X(cublasLtMatrixLayoutSetAttribute)

#define TPI_MEMBER(name) __typeof__(name) *name;
typedef struct tpi_cublaslt_api {
    TPI_CUBLASLT_FUNCTIONS(TPI_MEMBER)
} tpi_cublaslt_api;
#undef TPI_MEMBER

/* NULL if the library, or a function of it, is not there. */
const tpi_cublaslt_api *tpi_cublaslt(void);

bool tpi_cublaslt_available(void);

/* ---- of one device ---- */

/* What was prepared for one shape (descriptors, an algorithm, an execution plan) begins with this. */
typedef struct tpi_cuda_plan {
    struct tpi_cuda_plan *next;
    void (*destroy)(struct tpi_cuda_plan *plan);
    bool kept;           /* captured runs launch what it holds: never dropped */
    uint64_t hash, used; /* by the table's clock */
    size_t key_bytes;
    void *key;
} tpi_cuda_plan;

/* Makes the plan for a key: allocates a structure that begins with a tpi_cuda_plan, sets `destroy` and
 * `kept`, leaves the rest of the head to the table. */
typedef tp_status (*tpi_cuda_plan_maker)(const tpi_launch *launch, const void *key, tpi_cuda_plan **out);

#define TPI_CUDA_PLAN_CHAINS 256 /* a power of two */
#define TPI_CUDA_PLANS       512 /* that are not `kept`; of more the least recently used is dropped */

struct tpi_cuda_libraries {
    pthread_mutex_t lock;      /* guards all that follows, and plans in use */
    cublasLtHandle_t cublaslt; /* NULL: the library is missing */
    tpi_cuda_plan *plans[TPI_CUDA_PLAN_CHAINS];
    uint64_t clock;
    int count; /* of plans that are not `kept` */
};

/* For the current device. */
tp_status tpi_cuda_libraries_create(tpi_cuda_libraries **out);
void tpi_cuda_libraries_destroy(tpi_cuda_libraries *libraries);

/* The plan for `key`, whose bytes are compared (padding cleared), made at first sight. Keys of different
 * makers are different. The caller holds the lock, and may use the plan until it gives that back: a
 * plan that is made again for its key is the same. One that is `kept` lives as long as the device; so sizes
 * must not be a part of its key. */
tp_status tpi_cuda_plan_of(const tpi_launch *launch, tpi_cuda_plan_maker make, const void *key,
                           size_t key_bytes, tpi_cuda_plan **out);

#endif
