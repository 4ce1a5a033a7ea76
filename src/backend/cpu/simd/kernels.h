/* What the vector kernels share: operand checks, loops over rows, and the tables that simd.c joins.
 *
 * Invariant: a kernel's accepts() admits only what its run() handles; all else falls to the reference.
 * Outputs are contiguous. */
#ifndef TAPER_SIMD_KERNELS_H
#define TAPER_SIMD_KERNELS_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/simd/vec.h"

/* Kernels by name, defined in the files that say how they work. */
#define KERNEL(name)  tp_status TPI_SIMD(name)(const tpi_launch *launch)
#define ACCEPTS(name) bool TPI_SIMD(name)(const tpi_step *step)
#define SCRATCH(name) size_t TPI_SIMD(name)(const tpi_step *step, int threads)

KERNEL(matmul);
ACCEPTS(matmul_accepts);
SCRATCH(matmul_scratch);
KERNEL(linear);
ACCEPTS(linear_accepts);
SCRATCH(linear_scratch);
KERNEL(lora);
ACCEPTS(lora_accepts);
SCRATCH(lora_scratch);
KERNEL(linear_lora);
KERNEL(pointwise);
ACCEPTS(pointwise_accepts);
ACCEPTS(pointwise_rows_accepts);
KERNEL(pointwise_same);
ACCEPTS(pointwise_same_accepts);
KERNEL(softmax);
ACCEPTS(softmax_accepts);
SCRATCH(softmax_scratch);
KERNEL(softmax_grad);
KERNEL(rms_norm);
ACCEPTS(norm_accepts);
SCRATCH(norm_scratch);
KERNEL(add_rms_norm);
KERNEL(layer_norm);
KERNEL(norm_grad);
ACCEPTS(norm_grad_accepts);
SCRATCH(norm_grad_scratch);
KERNEL(cross_entropy);
ACCEPTS(cross_entropy_accepts);
SCRATCH(cross_entropy_scratch);
KERNEL(cross_entropy_grad);
KERNEL(linear_cross_entropy);
KERNEL(linear_cross_entropy_grad);
ACCEPTS(linear_cross_entropy_accepts);
SCRATCH(linear_cross_entropy_scratch);
KERNEL(rope);
ACCEPTS(rope_accepts);
SCRATCH(rope_scratch);
KERNEL(adamw);
ACCEPTS(adamw_accepts);
KERNEL(dropout);
ACCEPTS(dropout_accepts);
KERNEL(reduce);
ACCEPTS(reduce_accepts);
SCRATCH(reduce_scratch);
KERNEL(silu_mul_grad);
ACCEPTS(silu_mul_grad_accepts);
KERNEL(sum_squares);
ACCEPTS(sum_squares_accepts);
SCRATCH(sum_squares_scratch);
KERNEL(fill);
ACCEPTS(fill_accepts);
KERNEL(copy);
ACCEPTS(copy_accepts);
KERNEL(concat);
ACCEPTS(concat_accepts);
KERNEL(gather);
ACCEPTS(gather_accepts);
KERNEL(scatter_add);
ACCEPTS(scatter_add_accepts);
KERNEL(cache_write);
ACCEPTS(cache_write_accepts);
KERNEL(attention);
ACCEPTS(attention_accepts);
SCRATCH(attention_scratch);
KERNEL(attention_few);
ACCEPTS(attention_few_accepts);
SCRATCH(attention_few_scratch);
KERNEL(attention_grad);
ACCEPTS(attention_grad_accepts);
SCRATCH(attention_grad_scratch);

static inline bool tpi_float_operand(const tpi_operand *x) {
    return tpi_is_float((tp_dtype)x->dtype);
}

/* All operands contiguous floats; unwanted outputs pass. */
static inline bool tpi_all_contiguous_floats(const tpi_step *step) {
    for (int i = 0; i < step->n_in + step->n_out; i++)
        if (!step->operands[i].contiguous || !tpi_float_operand(&step->operands[i])) return false;
    return true;
}

/* The last size, and how many rows of it there are. */
static inline int64_t tpi_row_length(const tpi_operand *x) {
    return x->rank ? x->shape[x->rank - 1] : 1;
}
static inline int64_t tpi_row_count(const tpi_operand *x) {
    int64_t length = tpi_row_length(x);
    return length ? x->count / length : 0;
}

#endif
