/* The list of vector kernels of one instruction set: all, or those that its products of bf16 make quicker;
 * the others are then the next set's. */
#include "backend/cpu/simd/bf16.h"
#include "backend/cpu/simd/kernels.h"

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)
#define ENTRY(op, run, accepts, scratch)                                                                     \
    {                                                                                                        \
        op, {                                                                                                \
            TEXT(TPI_ISA), TPI_SIMD(run), TPI_SIMD(accepts), scratch                                         \
        }                                                                                                    \
    }

/* A kernel without scratch; with; one that shares its relatives' checks. */
#define PLAIN(op, name)          ENTRY(op, name, name##_accepts, NULL)
#define SPACE(op, name)          ENTRY(op, name, name##_accepts, TPI_SIMD(name##_scratch))
#define SHARED(op, name, family) ENTRY(op, name, family##_accepts, TPI_SIMD(family##_scratch))
#define POINTWISE(NAME)                                                                                      \
    ENTRY(TPI_##NAME, pointwise, pointwise_rows_accepts, NULL), PLAIN(TPI_##NAME, pointwise_same),           \
        PLAIN(TPI_##NAME, pointwise)

const tpi_kernel_entry TPI_SIMD(kernels)[] = {
    SPACE(TPI_MATMUL, matmul),
    SPACE(TPI_LINEAR, linear),
    SPACE(TPI_LORA, lora),
    SHARED(TPI_LINEAR_LORA, linear_lora, lora),
    SPACE(TPI_LINEAR_CROSS_ENTROPY, linear_cross_entropy),
    SHARED(TPI_LINEAR_CROSS_ENTROPY_GRAD, linear_cross_entropy_grad, linear_cross_entropy),
#if !defined(BF16_TILES)
    SPACE(TPI_ATTENTION, attention_few),
#endif
    SPACE(TPI_ATTENTION, attention),
    SPACE(TPI_ATTENTION_GRAD, attention_grad),
#if !BF16_PRODUCTS
#define OP(NAME, ...)
#define POINTWISE_OP(NAME, ...) POINTWISE(NAME),
#include "ops/ops.def"
#undef OP
    SPACE(TPI_SOFTMAX, softmax),
    SHARED(TPI_SOFTMAX_GRAD, softmax_grad, softmax),
    SHARED(TPI_RMS_NORM, rms_norm, norm),
    SHARED(TPI_ADD_RMS_NORM, add_rms_norm, norm),
    SHARED(TPI_LAYER_NORM, layer_norm, norm),
    SPACE(TPI_RMS_NORM_GRAD, norm_grad),
    SPACE(TPI_LAYER_NORM_GRAD, norm_grad),
    SPACE(TPI_SUM, reduce),
    SPACE(TPI_MEAN, reduce),
    SPACE(TPI_MAX, reduce),
    SPACE(TPI_ARGMAX, reduce),
    SPACE(TPI_LOGSUMEXP, reduce),
    SPACE(TPI_SUM_SQUARES, sum_squares),
    PLAIN(TPI_SILU_MUL_GRAD, silu_mul_grad),
    SPACE(TPI_CROSS_ENTROPY, cross_entropy),
    SHARED(TPI_CROSS_ENTROPY_GRAD, cross_entropy_grad, cross_entropy),
    SPACE(TPI_ROPE, rope),
    PLAIN(TPI_ADAMW, adamw),
    PLAIN(TPI_DROPOUT, dropout),
    PLAIN(TPI_FILL, fill),
    PLAIN(TPI_COPY, copy),
    PLAIN(TPI_CONCAT, concat),
    PLAIN(TPI_GATHER, gather),
    PLAIN(TPI_SCATTER_ADD, scatter_add),
    PLAIN(TPI_CACHE_WRITE, cache_write),
#endif
    TPI_KERNELS_END,
};
