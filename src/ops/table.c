/* The table of ops.def as an array: its words become flags and function names here. */
#include "ops/desc.h"

#define tpi_infer_none NULL
#define tpi_vjp_none   NULL

enum {
    NO_GRAD = TPI_FLAG_NO_GRAD,
    VIEW = TPI_FLAG_VIEW,
    POINTWISE = TPI_FLAG_POINTWISE,
    IN_PLACE = TPI_FLAG_IN_PLACE,
    CAN_FAIL = TPI_FLAG_CAN_FAIL,
    PLANNED = TPI_FLAG_PLANNED,
    REMADE = TPI_FLAG_REMADE
};

const tpi_op_desc tpi_ops[TPI_OP_COUNT] = {
#define OP(NAME, text, min_in, max_in, n_out, flags, infer, vjp, saves, inputs)                              \
    {text, inputs, min_in, max_in, n_out, flags, TPI_SAVES_##saves, tpi_infer_##infer, tpi_vjp_##vjp},
#include "ops/ops.def"
#undef OP
};
