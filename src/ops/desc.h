/* Descriptors: the table of ops.def as data.
 *
 * Invariant: tpi_ops[op] describes operation `op`; every differentiable operation has a vjp, every one that
 * can be recorded has infer. */
#ifndef TAPER_OPS_DESC_H
#define TAPER_OPS_DESC_H

#include "core/error.h"
#include "core/tensor.h"
#include "ops/op.h"
#include "taper/ops.h"

/* What shape inference sees and fills. The recorder has checked the number of inputs against the table.
 * Errors by tpi_fail with the text after "matmul: " only; the recorder puts the operation and the call's
 * ordinal before it. */
typedef struct tpi_signature {
    uint8_t dtype, rank;
    const int64_t *shape; /* borrowed: a node's, or an inference's */
} tpi_signature;

typedef struct tpi_infer {
    tpi_op op;
    int n_in;
    const tpi_signature *in;
    const void *attr;
    tpi_signature out[TPI_MAX_OUT];           /* filled in: an input's signature, or by tpi_result */
    int64_t shapes[TPI_MAX_OUT][TP_MAX_RANK]; /* tpi_result's */
} tpi_infer;

typedef struct tpi_vjp tpi_vjp; /* autograd/vjp.h */

typedef struct tpi_op_desc {
    const char *name;   /* "matmul" */
    const char *inputs; /* "a, b" */
    uint8_t min_in, max_in, n_out, flags, saves;
    tp_status (*infer)(tpi_infer *call);
    void (*vjp)(tpi_vjp *call);
} tpi_op_desc;

extern const tpi_op_desc tpi_ops[TPI_OP_COUNT];

/* The functions that the table names. `none` stands for NULL: it is declared here but never defined. */
#define OP(NAME, text, min_in, max_in, n_out, flags, infer, vjp, saves, inputs)                              \
    tp_status tpi_infer_##infer(tpi_infer *call);                                                            \
    void tpi_vjp_##vjp(tpi_vjp *call);
#include "ops/ops.def"
#undef OP

/* NumPy broadcasting of two shapes (ranks may differ); TP_ESHAPE with both shapes in the message. */
tp_status tpi_broadcast_shapes(const tpi_signature *a, const tpi_signature *b, int *rank,
                               int64_t shape[TP_MAX_RANK]);

#endif
