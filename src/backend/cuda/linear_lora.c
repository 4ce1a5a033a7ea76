/* LINEAR_LORA: y = x·w + scale·(x·a)·b + bias.
 *
 * Many bf16 rows: the low-rank term goes first, by one kernel that reads x and writes y, and the large
 * product then adds y on its way out. So y is read within the large product's arithmetic, not after it, and
 * no pass of its own adds the term; the term is rounded to bf16 once more than the sum. All else: products
 * one after another, in f32. */
#include "backend/cuda/lora.h"

static bool accepts(const tpi_step *step) {
    tpi_layer l;
    if (!tpi_cublaslt_available() || !tpi_cuda_lora_tensor_accepts(step) || !tpi_layer_of(step, &l))
        return false;
    return l.mw.dtype == TP_BF16 && (!l.bias || tpi_in_operand(step, l.bias)->dtype == TP_BF16);
}

static size_t scratch(const tpi_step *step, int threads) {
    (void)step, (void)threads;
    return TPI_PRODUCT_WORKSPACE;
}

static tp_status linear_lora(const tpi_launch *launch) {
    tpi_layer l;
    if (tpi_out_operand(launch->step, 0)->count == 0) return TP_OK;
    if (!tpi_layer_of(launch->step, &l))
        return tpi_fail(TP_EINTERNAL, "linear_lora: a step that was not accepted");
    TPI_TRY(tpi_cuda_lora_tensor(launch));
    tpi_product product = {.m = l.m,
                           .n = l.n,
                           .k = l.k,
                           .a_type = TP_BF16,
                           .b_type = TP_BF16,
                           .c_type = TP_BF16,
                           .b_transposed = l.mw.transposed,
                           .lda = l.mx.leading,
                           .ldb = l.mw.leading,
                           .ldc = l.n,
                           .alpha = 1,
                           .beta = 1,
                           .bias = l.bias ? tpi_in(launch, l.bias) : NULL,
                           .bias_type = TP_BF16};
    return tpi_cuda_product(launch, &product, tpi_in(launch, 0), tpi_in(launch, l.w), tpi_out(launch, 0),
                            tpi_scratch(launch), TPI_PRODUCT_WORKSPACE);
}

const tpi_kernel_entry tpi_cuda_linear_lora[] = {
    {TPI_LINEAR_LORA, {"cuda-tensor", linear_lora, accepts, scratch}},
    {TPI_LINEAR_LORA, {"cublaslt", tpi_cuda_layer, tpi_cuda_layer_in_library, tpi_cuda_layer_scratch}},
    {TPI_LINEAR_LORA, {"cuda", tpi_cuda_layer, tpi_cuda_layer_accepts, tpi_cuda_layer_scratch}},
    TPI_KERNELS_END,
};
