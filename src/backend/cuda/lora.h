/* The low-rank kernels that more than one file lists. */
#ifndef TAPER_BACKEND_CUDA_LORA_H
#define TAPER_BACKEND_CUDA_LORA_H

#include "backend/cuda/layer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TPI_LARGEST_RANK 256 /* for which kernels of low rank pay */

/* y = scale · (x·a)·b + bias of a LORA or LINEAR_LORA step (whose w is another's work), by tensor cores: bf16
 * x and y, many rows. */
tp_status tpi_cuda_lora_tensor(const tpi_launch *launch);
bool tpi_cuda_lora_tensor_accepts(const tpi_step *step);

/* silu(gate) · up and its gradients, all [m, n]; of what is written NULL: not wanted. */
typedef struct tpi_gate {
    const void *gate, *up;
    void *dgate, *dup, *y;
} tpi_gate;

/* LINEAR_LORA layers that are one product: one, two of the same x, or up to three that are summed. */
#define TPI_LAYERS_AT_ONCE 3
typedef struct tpi_lora_layers {
    tpi_launch launch[TPI_LAYERS_AT_ONCE]; /* of each one's step */
    tpi_layer layer[TPI_LAYERS_AT_ONCE];
    int count;
    bool twins;           /* two layers of one x, each with its y; else they are summed */
    bool steady;          /* no step of the plan before them writes their a, b and biases */
    void *sum;            /* where the sum goes; NULL: into the first layer's y */
    void *gated;          /* silu(y of the first) · y of the second, too; NULL: not wanted */
    const tpi_gate *gate; /* y, which is not written, is the gradient of this; NULL: it is not */
} tpi_lora_layers;

/* Such layers on Hopper, with output 1 where that is wanted, if tpi_cuda_lora_hopper_fits says so: what
 * tpi_cuda_lora_tensor_accepts, with bf16 w. Invariant: what is written lies apart from all that is read, but
 * for gate and up: there it may lie in one's place. */
tp_status tpi_cuda_lora_hopper(const tpi_lora_layers *layers);
bool tpi_cuda_lora_hopper_fits(const tpi_lora_layers *layers);
size_t tpi_cuda_lora_hopper_scratch(const tpi_layer *layer);

/* The same with f32 arithmetic, for any dtype of x, into y of x's dtype or f32; the bias if asked for. */
bool tpi_lora_fused_fits(const tpi_layer *layer);
tp_status tpi_cuda_lora_fused_into(const tpi_launch *launch, const tpi_layer *layer, bool with_bias, void *y,
                                   tp_dtype y_type);

/* MATMUL of many bf16 rows by a thin matrix, by tensor cores: [m, k] · [k, up to TPI_LARGEST_RANK]. */
tp_status tpi_cuda_thin_matmul(const tpi_launch *launch);
bool tpi_cuda_thin_matmul_accepts(const tpi_step *step);

/* y = scale · x · a with x the step's input 0 and a its input `a_in`: that kernel where it fits, else the
 * plain one. */
tp_status tpi_cuda_thin_product(const tpi_launch *launch, const tpi_matrix *x, int a_in, const tpi_matrix *a,
                                float scale, void *y, tp_dtype y_type);

/* MATMUL aᵀ·b of two row-major matrices with many rows, one of them thin: gradients of adapters. */
tp_status tpi_cuda_thin_gradient(const tpi_launch *launch);
bool tpi_cuda_thin_gradient_accepts(const tpi_step *step);
size_t tpi_cuda_thin_gradient_scratch(const tpi_step *step, int threads);

#ifdef __cplusplus
}
#endif
#endif
