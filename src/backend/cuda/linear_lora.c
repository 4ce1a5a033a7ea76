/* LINEAR_LORA: y = x·w + scale·(x·a)·b + bias.
 *
 * Many bf16 rows: on Hopper one product does it all. Elsewhere the low-rank term and the bias go first, by
 * one kernel that reads x and writes y, and the large product then adds y on its way out. So y is read within
 * the large product's arithmetic, not after it, and no pass of its own adds the term; the term is rounded to
 * bf16 once more than the sum. All else: products one after another, in f32. */
#include "backend/cuda/lora.h"

/* Nobody trains with a bias of f16 beside bf16: it takes the way that rounds once. */
static bool accepts(const tpi_step *step) {
    tpi_layer l;
    return tpi_cublaslt_available() && tpi_cuda_lora_tensor_accepts(step) && tpi_layer_of(step, &l) &&
           l.mw.dtype == TP_BF16 && !(l.bias && tpi_in_operand(step, l.bias)->dtype == TP_F16);
}

static size_t scratch(const tpi_step *step, int threads) {
    (void)threads;
    tpi_layer l;
    return tpi_layer_of(step, &l) ? tpi_cuda_lora_hopper_scratch(&l) : 0;
}

/* Output 1, scale · x · a, for whom it is wanted. */
static tp_status give_low_rank(const tpi_launch *launch, const tpi_layer *l) {
    if (!tpi_wants_low_rank(launch->step)) return TP_OK;
    return tpi_cuda_thin_product(launch, &l->mx, l->a, &l->ma, l->scale, tpi_out(launch, 1),
                                 (tp_dtype)tpi_out_operand(launch->step, 1)->dtype);
}

/* y holds the rest already. */
static tp_status add_product(const tpi_launch *launch, const tpi_layer *l) {
    const tpi_product product = {.m = l->m,
                                 .n = l->n,
                                 .k = l->k,
                                 .a_type = TP_BF16,
                                 .b_type = TP_BF16,
                                 .c_type = TP_BF16,
                                 .b_transposed = l->mw.transposed,
                                 .lda = l->mx.leading,
                                 .ldb = l->mw.leading,
                                 .ldc = l->n,
                                 .alpha = 1,
                                 .beta = 1};
    return tpi_cuda_product(launch, &product, tpi_in(launch, 0), tpi_in(launch, l->w), tpi_out(launch, 0),
                            tpi_scratch(launch), TPI_PRODUCT_WORKSPACE);
}

static tp_status tensor(const tpi_launch *launch) {
    tpi_layer l;
    if (!tpi_layer_of(launch->step, &l))
        return tpi_fail(TP_EINTERNAL, "linear_lora: a step that was not accepted");
    if (tpi_out_operand(launch->step, 0)->count > 0) {
        const tpi_lora_layers one = {.launch = {*launch}, .layer = {l}, .count = 1};
        if (tpi_cuda_lora_hopper_fits(&one)) return tpi_cuda_lora_hopper(&one);
        TPI_TRY(tpi_cuda_lora_tensor(launch));
        TPI_TRY(add_product(launch, &l));
    }
    return give_low_rank(launch, &l);
}

static tp_status layer(const tpi_launch *launch) {
    tpi_layer l;
    TPI_TRY(tpi_cuda_layer(launch));
    if (!tpi_layer_of(launch->step, &l))
        return tpi_fail(TP_EINTERNAL, "linear_lora: a step that was not accepted");
    return give_low_rank(launch, &l);
}

const tpi_kernel_entry tpi_cuda_linear_lora[] = {
    {TPI_LINEAR_LORA, {"cuda-tensor", tensor, accepts, scratch}},
    {TPI_LINEAR_LORA, {"cublaslt", layer, tpi_cuda_layer_in_library, tpi_cuda_layer_scratch}},
    {TPI_LINEAR_LORA, {"cuda", layer, tpi_cuda_layer_accepts, tpi_cuda_layer_scratch}},
    TPI_KERNELS_END,
};
