/* Products by cuBLASLt.
 *
 * cuBLASLt is column-major, and a row-major matrix is its own transpose there: so cᵀ = op(b)ᵀ · op(a)ᵀ is
 * computed, with b as its first matrix, and a bias along c's rows is its bias along columns. Descriptors and
 * the algorithm are prepared once for a shape; a run looks them up. */
#include "backend/cuda/product.h"
#include "backend/cuda/libraries.h"
#include "core/alloc.h"

#include <string.h>

#define WORKSPACE_ALIGNMENT 256
#define LARGEST_ALIGNMENT   64 /* of a value's root; more would depend on the allocation */

/* What the choice of an algorithm depends on. */
typedef struct product_key {
    tpi_product product; /* without the bias's address */
    int64_t has_bias, workspace;
    int64_t align_a, align_b, align_c;
} product_key;

typedef struct product_plan {
    tpi_cuda_plan head;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c; /* of our product */
    cublasLtMatmulAlgo_t algorithm;
    bool known; /* false: cuBLASLt has no algorithm for this */
} product_plan;

static tp_status failed(cublasStatus_t got) {
    return tpi_fail(TP_EDEVICE, "cuBLASLt: %s", tpi_cublaslt()->cublasLtGetStatusString(got));
}

#define TRY_LT(call)                                                                                         \
    do {                                                                                                     \
        cublasStatus_t got_ = (call);                                                                        \
        if (got_ != CUBLAS_STATUS_SUCCESS) return failed(got_);                                              \
    } while (0)

static cudaDataType_t type_of(tp_dtype dtype) {
    return dtype == TP_F32 ? CUDA_R_32F : dtype == TP_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

/* The library's own gelu is the one by tanh, less exact than f32 results should be. */
static bool has_epilogue(const tpi_product *p) {
    return p->activation == TPI_LEAF || (p->activation == TPI_GELU_TANH && p->c_type != TP_F32);
}

static cublasLtEpilogue_t epilogue_of(tpi_op activation, bool bias) {
    if (activation == TPI_GELU_TANH) return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

bool tpi_product_in_library(const tpi_product *p) {
    bool types = p->a_type == p->b_type && (p->c_type == p->a_type || p->c_type == TP_F32);
    bool bias = !p->bias || p->bias_type == p->c_type;
    return tpi_cublaslt_available() && types && bias && has_epilogue(p) && p->k > 0 && p->batch <= INT32_MAX;
}

/* A matrix of `rows` rows that are `leading` apart. */
static tp_status make_layout(cublasLtMatrixLayout_t *out, tp_dtype dtype, int64_t rows, int64_t columns,
                             int64_t leading, int64_t batch, int64_t stride) {
    const tpi_cublaslt_api *lt = tpi_cublaslt();
    int32_t count = (int32_t)batch;
    TRY_LT(lt->cublasLtMatrixLayoutCreate(out, type_of(dtype), (uint64_t)columns, (uint64_t)rows, leading));
    if (batch <= 1) return TP_OK;
    TRY_LT(
        lt->cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
    TRY_LT(lt->cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                sizeof stride));
    return TP_OK;
}

static tp_status set_operation(product_plan *plan, cublasLtMatmulDescAttributes_t name, const void *value,
                               size_t bytes) {
    TRY_LT(tpi_cublaslt()->cublasLtMatmulDescSetAttribute(plan->operation, name, value, bytes));
    return TP_OK;
}

static tp_status make_operation(product_plan *plan, const product_key *key) {
    const tpi_product *p = &key->product;
    cublasOperation_t first = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = epilogue_of(p->activation, key->has_bias != 0);
    TRY_LT(tpi_cublaslt()->cublasLtMatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TPI_TRY(set_operation(plan, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    TPI_TRY(set_operation(plan, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    TPI_TRY(set_operation(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (!key->has_bias) return TP_OK;
    /* An address must be there while an algorithm is chosen; each run sets its own. */
    const void *somewhere = plan;
    cudaDataType_t type = type_of(p->bias_type);
    TPI_TRY(set_operation(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type));
    return set_operation(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &somewhere, sizeof(void *));
}

static tp_status make_layouts(product_plan *plan, const tpi_product *p) {
    int64_t a_rows = p->a_transposed ? p->k : p->m, a_columns = p->a_transposed ? p->m : p->k;
    int64_t b_rows = p->b_transposed ? p->n : p->k, b_columns = p->b_transposed ? p->k : p->n;
    TPI_TRY(make_layout(&plan->a, p->a_type, a_rows, a_columns, p->lda, p->batch, p->a_stride));
    TPI_TRY(make_layout(&plan->b, p->b_type, b_rows, b_columns, p->ldb, p->batch, p->b_stride));
    return make_layout(&plan->c, p->c_type, p->m, p->n, p->ldc, p->batch, p->c_stride);
}

/* Sums over split inner dimensions are kept in f32: no partial sum is rounded to c's dtype. */
static tp_status set_preference(cublasLtMatmulPreference_t preference, const product_key *key) {
    const tpi_cublaslt_api *lt = tpi_cublaslt();
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        uint32_t value;
    } numbers[] = {
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)key->align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)key->align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)key->align_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)key->align_c},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        TRY_LT(lt->cublasLtMatmulPreferenceSetAttribute(preference, numbers[i].name, &numbers[i].value,
                                                        sizeof numbers[i].value));
    const size_t bytes = (size_t)key->workspace;
    TRY_LT(lt->cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                    &bytes, sizeof bytes));
    return TP_OK;
}

static tp_status ask(const tpi_launch *launch, product_plan *plan, const product_key *key,
                     cublasLtMatmulPreference_t preference) {
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    TPI_TRY(set_preference(preference, key));
    cublasStatus_t got = tpi_cublaslt()->cublasLtMatmulAlgoGetHeuristic(
        tpi_cuda_of(launch)->libraries->cublaslt, plan->operation, plan->b, plan->a, plan->c, plan->c,
        preference, 1, &best, &found);
    plan->known = got == CUBLAS_STATUS_SUCCESS && found > 0 && best.state == CUBLAS_STATUS_SUCCESS;
    if (plan->known) plan->algorithm = best.algo;
    return TP_OK;
}

static tp_status choose_algorithm(const tpi_launch *launch, product_plan *plan, const product_key *key) {
    cublasLtMatmulPreference_t preference;
    TRY_LT(tpi_cublaslt()->cublasLtMatmulPreferenceCreate(&preference));
    tp_status status = ask(launch, plan, key, preference);
    tpi_cublaslt()->cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

static void destroy_plan(tpi_cuda_plan *head) {
    product_plan *plan = (product_plan *)head;
    const tpi_cublaslt_api *lt = tpi_cublaslt();
    if (plan->operation) lt->cublasLtMatmulDescDestroy(plan->operation);
    if (plan->a) lt->cublasLtMatrixLayoutDestroy(plan->a);
    if (plan->b) lt->cublasLtMatrixLayoutDestroy(plan->b);
    if (plan->c) lt->cublasLtMatrixLayoutDestroy(plan->c);
    tpi_free(plan);
}

static tp_status make_plan(const tpi_launch *launch, const void *key_bytes, tpi_cuda_plan **out) {
    const product_key *key = key_bytes;
    product_plan *plan = tpi_calloc(1, sizeof *plan);
    if (!plan) return TP_ENOMEM;
    tp_status status = make_operation(plan, key);
    if (status == TP_OK) status = make_layouts(plan, &key->product);
    if (status == TP_OK) status = choose_algorithm(launch, plan, key);
    if (status != TP_OK) {
        destroy_plan(&plan->head);
        return status;
    }
    plan->head.destroy = destroy_plan;
    *out = &plan->head;
    return TP_OK;
}

static int64_t alignment(const void *pointer) {
    uintptr_t bits = (uintptr_t)pointer | LARGEST_ALIGNMENT;
    return (int64_t)(bits & -bits);
}

/* Field by field, so that padding is zero: keys are compared by bytes. */
static void fill_key(product_key *key, const tpi_product *p, const void *a, const void *b, const void *c,
                     size_t workspace_bytes) {
    memset(key, 0, sizeof *key);
    tpi_product *k = &key->product;
    k->m = p->m, k->n = p->n, k->k = p->k;
    k->a_type = p->a_type, k->b_type = p->b_type, k->c_type = p->c_type;
    k->a_transposed = p->a_transposed, k->b_transposed = p->b_transposed;
    k->lda = p->lda, k->ldb = p->ldb, k->ldc = p->ldc;
    k->alpha = p->alpha, k->beta = p->beta;
    k->batch = p->batch > 1 ? p->batch : 1;
    k->a_stride = p->a_stride, k->b_stride = p->b_stride, k->c_stride = p->c_stride;
    k->bias_type = p->bias ? p->bias_type : TP_F32;
    k->activation = p->activation;
    key->has_bias = p->bias != NULL;
    key->workspace = (int64_t)workspace_bytes;
    key->align_a = alignment(a), key->align_b = alignment(b), key->align_c = alignment(c);
}

/* Sets *served to false where the library has no algorithm. The lock is held. */
static tp_status run_plan(const tpi_launch *launch, const tpi_product *p, const void *a, const void *b,
                          void *c, void *workspace, size_t workspace_bytes, bool *served) {
    product_key key;
    tpi_cuda_plan *head;
    fill_key(&key, p, a, b, c, workspace_bytes);
    TPI_TRY(tpi_cuda_plan_of(launch, make_plan, &key, sizeof key, &head));
    product_plan *plan = (product_plan *)head;
    *served = plan->known;
    if (!plan->known) return TP_OK;
    if (p->bias)
        TPI_TRY(
            set_operation(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, (const void *)&p->bias, sizeof p->bias));
    tpi_cuda *cuda = tpi_cuda_of(launch);
    TRY_LT(tpi_cublaslt()->cublasLtMatmul(cuda->libraries->cublaslt, plan->operation, &p->alpha, b, plan->b,
                                          a, plan->a, &p->beta, c, plan->c, c, plan->c, &plan->algorithm,
                                          workspace, workspace_bytes, cuda->stream));
    return TP_OK;
}

/* Scratch is aligned to 64 bytes, cuBLASLt asks for 256. What is left does not depend on where the scratch
 * lies. */
static void align_workspace(void **workspace, size_t *bytes) {
    if (*bytes < WORKSPACE_ALIGNMENT) *bytes = WORKSPACE_ALIGNMENT;
    *bytes -= WORKSPACE_ALIGNMENT;
    const uintptr_t at = (uintptr_t)*workspace + WORKSPACE_ALIGNMENT - 1;
    *workspace = *bytes ? (void *)(at / WORKSPACE_ALIGNMENT * WORKSPACE_ALIGNMENT) : NULL;
}

tp_status tpi_cuda_product(const tpi_launch *launch, const tpi_product *product, const void *a, const void *b,
                           void *c, void *workspace, size_t workspace_bytes) {
    tpi_cuda_libraries *libraries = tpi_cuda_of(launch)->libraries;
    if (product->m == 0 || product->n == 0) return TP_OK;
    bool served = false;
    align_workspace(&workspace, &workspace_bytes);
    if (tpi_product_in_library(product) && libraries && libraries->cublaslt) {
        pthread_mutex_lock(&libraries->lock);
        tp_status status = run_plan(launch, product, a, b, c, workspace, workspace_bytes, &served);
        pthread_mutex_unlock(&libraries->lock);
        TPI_TRY(status);
    }
    return served ? TP_OK : tpi_cuda_tiled_product(launch, product, a, b, c);
}
