/* Which kernels there are, the special before the general; which leave state alone after a fault. */
#include "backend/cuda/device.h"

#include "backend/table.h"

static const tpi_kernel_entry *const lists[] = {
    tpi_cuda_attention_decode,
    tpi_cuda_attention,
    tpi_cuda_attention_grad,
    tpi_cuda_skinny,
    tpi_cuda_lora,
    tpi_cuda_linear_lora,
    tpi_cuda_matmul,
    tpi_cuda_softmax,
    tpi_cuda_norm,
    tpi_cuda_norm_grad,
    tpi_cuda_rope,
    tpi_cuda_cross_entropy,
    tpi_cuda_linear_cross_entropy,
    tpi_cuda_pointwise,
    tpi_cuda_reduce,
    tpi_cuda_sum_squares,
    tpi_cuda_silu_mul_grad,
    tpi_cuda_move,
    tpi_cuda_index,
    tpi_cuda_dropout,
    tpi_cuda_adamw,
    NULL,
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static tpi_kernel_table table;

static void merge(void) {
    tpi_kernel_table_merge(&table, lists);
}

const tpi_kernel *tpi_cuda_kernels(tpi_op op) {
    pthread_once(&once, merge);
    return tpi_kernel_table_find(&table, op);
}

const char *tpi_cuda_op_name(int op) {
    static const char *const names[] = {
#define OP(NAME, text, min_in, max_in, n_out, flags, infer, vjp, saves, inputs) text,
#include "ops/ops.def"
#undef OP
    };
    return (unsigned)op < TPI_OP_COUNT ? names[op] : "?";
}
