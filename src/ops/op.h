/* Operation identities, flags and attributes: what recordings, plans and backends all know.
 *
 * Invariant: attributes are plain bytes whose padding is zero and whose size is a multiple of 8, since they
 * are part of the plan key. Build them from TPI_ATTR so that padding is cleared. What changes from step to
 * step is an input tensor, never an attribute. */
#ifndef TAPER_OPS_OP_H
#define TAPER_OPS_OP_H

#include "taper/tensor.h"

typedef enum tpi_op {
#define OP(NAME, text, min_in, max_in, n_out, flags, infer, vjp, saves, inputs) TPI_##NAME,
#include "ops/ops.def"
#undef OP
    TPI_OP_COUNT
} tpi_op;

#define TPI_MAX_OUT 3
#define TPI_MAX_IN  255

enum tpi_op_flags {
    TPI_FLAG_NO_GRAD = 1,   /* not differentiable */
    TPI_FLAG_VIEW = 2,      /* the output is the input's memory under other strides, where they allow it */
    TPI_FLAG_POINTWISE = 4, /* element i of the output depends on element i of each (broadcast) input */
    TPI_FLAG_IN_PLACE = 8,  /* output k may take input k's memory, for each output k */
    TPI_FLAG_CAN_FAIL = 16, /* kernels check data and may return an error while running */
    TPI_FLAG_PLANNED = 32,  /* made by the planner only */
    TPI_FLAG_REMADE = 64    /* quick, of inputs that are kept in any case: the backward pass makes it again */
};

enum tpi_saves { TPI_SAVES_NOTHING = 0, TPI_SAVES_INPUTS = 1, TPI_SAVES_OUTPUT = 2, TPI_SAVES_BOTH = 3 };

typedef struct tpi_attr_scalar { /* mul_scalar, add_scalar, lora, linear_lora */
    double s;
} tpi_attr_scalar;
typedef struct tpi_attr_index { /* part: output number; compare: tp_compare */
    int64_t index;
} tpi_attr_index;
typedef struct tpi_attr_reduce { /* bit d of dims: dimension d is reduced; keep: with size 1 */
    uint32_t dims;
    int32_t keep;
} tpi_attr_reduce;
typedef struct tpi_attr_dim { /* softmax, softmax_grad, concat: a dimension in [0, rank) */
    int64_t dim;
} tpi_attr_dim;
typedef struct tpi_attr_permute {
    int8_t dims[8];
} tpi_attr_permute;
typedef struct tpi_attr_range { /* slice: begin, end; pad: zeros before, after */
    int64_t dim, begin, end;
} tpi_attr_range;
typedef struct tpi_attr_shape { /* reshape, broadcast: the target */
    int64_t shape[TP_MAX_RANK];
    int64_t rank;
} tpi_attr_shape;
typedef struct tpi_attr_fill {
    int64_t shape[TP_MAX_RANK];
    int32_t rank, dtype;
    double value;
} tpi_attr_fill;
typedef struct tpi_attr_cast {
    int64_t dtype;
} tpi_attr_cast;
typedef struct tpi_attr_matmul { /* none: a's dtype, unscaled */
    int64_t dtype;
    double scale;
} tpi_attr_matmul;
typedef struct tpi_attr_linear { /* activation: 0 or the tpi_op of a unary pointwise operation (planner) */
    int64_t activation;
} tpi_attr_linear;
typedef struct tpi_attr_norm {
    double eps;
} tpi_attr_norm;
typedef struct tpi_attr_rope {
    int32_t layout;  /* tp_rope_layout */
    int32_t inverse; /* 1: rotate by the negative angle, which is the gradient */
} tpi_attr_rope;
typedef struct tpi_attr_attention { /* optional inputs follow the fixed ones in this order */
    double scale;
    int64_t window;
    uint8_t causal, has_start, has_lengths, has_mask;
    uint8_t zero[4];
} tpi_attr_attention;
typedef struct tpi_attr_ignore {
    int64_t ignore;
} tpi_attr_ignore;
typedef struct tpi_attr_dropout {
    double rate;
    uint64_t stream;
} tpi_attr_dropout;
typedef struct tpi_attr_adamw {
    double beta1, beta2, eps, weight_decay;
} tpi_attr_adamw;

/* A fused pointwise chain: instruction i computes op(register a, b, c; s) in f32 into register dst. Registers
 * 0 ... n_in-1 hold the inputs, converted to f32, and nothing else; the last instruction's register is the
 * output. */
#define TPI_CHAIN_INPUTS    8
#define TPI_CHAIN_REGISTERS 16
#define TPI_CHAIN_LENGTH    32
typedef struct tpi_chain_step {
    uint16_t op; /* tpi_op */
    uint8_t dst, a, b, c;
    uint8_t how; /* compare: tp_compare */
    uint8_t zero;
    double s;
} tpi_chain_step;
typedef struct tpi_attr_chain {
    int64_t length;
    tpi_chain_step steps[TPI_CHAIN_LENGTH];
} tpi_attr_chain;

/* A cleared attribute variable: TPI_ATTR(tpi_attr_norm, attr); attr.eps = eps; */
#define TPI_ATTR(type, name)                                                                                 \
    type name;                                                                                               \
    __builtin_memset(&name, 0, sizeof name)

#endif
