/* Pointwise operations: the output has the broadcast shape of the inputs. Also values:
 * fill and assignment. */
#include "graph/repeat.h"
#include "ops/check.h"

#include <string.h>

/* ---- values ---- */

tp_status tpi_infer_fill(tpi_infer *call) {
    const tpi_attr_fill *attr = call->attr;
    return tpi_result(call, 0, (tp_dtype)attr->dtype, attr->rank, attr->shape);
}

tp_status tpi_infer_assign(tpi_infer *call) {
    const tpi_signature *state = &call->in[0], *value = &call->in[1];
    TPI_TRY(tpi_expect_dtype(value, "value", (tp_dtype)state->dtype));
    TPI_TRY(tpi_expect_shape(value, "value", state->rank, state->shape));
    call->out[0] = *state;
    return TP_OK;
}

tp_lazy *tp_lazy_full(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                      double value) {
    if (!graph || !tpi_sound_shape(graph, TPI_FILL, rank, shape)) return NULL;
    TPI_ATTR(tpi_attr_fill, attr);
    if (rank) memcpy(attr.shape, shape, (size_t)rank * sizeof *shape);
    attr.rank = rank;
    attr.dtype = (int32_t)dtype;
    attr.value = value;
    return tpi_record_op(graph, device, TPI_FILL, NULL, 0, &attr, sizeof attr);
}

tp_lazy *tp_lazy_zeros(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank, const int64_t *shape) {
    return tp_lazy_full(graph, device, dtype, rank, shape, 0.0);
}

tp_lazy *tp_lazy_ones(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank, const int64_t *shape) {
    return tp_lazy_full(graph, device, dtype, rank, shape, 1.0);
}

/* ---- inference ---- */

tp_status tpi_infer_unary(tpi_infer *call) {
    TPI_TRY(tpi_expect_float(&call->in[0], "x"));
    call->out[0] = call->in[0];
    return TP_OK;
}

static tp_status result_broadcast(tpi_infer *call, tp_dtype dtype, const tpi_signature *a,
                                  const tpi_signature *b) {
    int rank;
    int64_t shape[TP_MAX_RANK];
    TPI_TRY(tpi_broadcast_shapes(a, b, &rank, shape));
    return tpi_result(call, 0, dtype, rank, shape);
}

/* Two operands of one dtype, broadcast; the output takes `dtype`. */
static tp_status infer_pair(tpi_infer *call, const tpi_signature *a, const tpi_signature *b, tp_dtype dtype) {
    if (a->dtype != b->dtype)
        return tpi_fail(TP_EDTYPE, "operands are %s and %s, expected one dtype (tp_lazy_cast converts)",
                        tp_dtype_name((tp_dtype)a->dtype), tp_dtype_name((tp_dtype)b->dtype));
    if (tpi_same_shape(a, b) && a->dtype == dtype) {
        call->out[0] = *a;
        return TP_OK;
    }
    return result_broadcast(call, dtype, a, b);
}

tp_status tpi_infer_binary(tpi_infer *call) {
    const tpi_signature *a = &call->in[0];
    TPI_TRY(call->op == TPI_DIV ? tpi_expect_float(a, "a") : tpi_expect_number(a, "a"));
    return infer_pair(call, a, &call->in[1], (tp_dtype)a->dtype);
}

tp_status tpi_infer_binary_float(tpi_infer *call) {
    const tpi_signature *a = &call->in[0];
    TPI_TRY(tpi_expect_float(a, "the first operand"));
    return infer_pair(call, a, &call->in[1], (tp_dtype)a->dtype);
}

/* Operands of one shape: broadcast ones have gradients that are summed, by other operations. */
tp_status tpi_infer_silu_mul_grad(tpi_infer *call) {
    const tpi_signature *gate = &call->in[0];
    static const char *const names[] = {"gate", "up", "dy"};
    TPI_TRY(tpi_expect_float(gate, "gate"));
    for (int k = 1; k < 3; k++) {
        TPI_TRY(tpi_expect_dtype(&call->in[k], names[k], (tp_dtype)gate->dtype));
        TPI_TRY(tpi_expect_shape(&call->in[k], names[k], gate->rank, gate->shape));
    }
    call->out[0] = call->out[1] = *gate;
    return TP_OK;
}

tp_status tpi_infer_compare(tpi_infer *call) {
    const tpi_attr_index *attr = call->attr;
    if (attr->index < TP_EQ || attr->index > TP_GE)
        return tpi_fail(TP_EINVAL, "%lld is no tp_compare", (long long)attr->index);
    TPI_TRY(tpi_expect_number(&call->in[0], "a"));
    return infer_pair(call, &call->in[0], &call->in[1], TP_U8);
}

tp_status tpi_infer_where(tpi_infer *call) {
    const tpi_signature *a = &call->in[1];
    TPI_TRY(tpi_expect_dtype(&call->in[0], "condition", TP_U8));
    TPI_TRY(tpi_expect_float(a, "a"));
    TPI_TRY(infer_pair(call, a, &call->in[2], (tp_dtype)a->dtype));
    return result_broadcast(call, (tp_dtype)a->dtype, &call->in[0], &call->out[0]);
}

tp_status tpi_infer_cast(tpi_infer *call) {
    const tpi_attr_cast *attr = call->attr;
    return tpi_result(call, 0, (tp_dtype)attr->dtype, call->in[0].rank, call->in[0].shape);
}

/* ---- builders ---- */

#define UNARY(NAME, name)                                                                                    \
    tp_lazy *tp_lazy_##name(tp_lazy *x) {                                                                    \
        return tpi_record_inline(TPI_##NAME, &x, 1, NULL, 0);                                                \
    }
#define SCALAR(NAME, name)                                                                                   \
    tp_lazy *tp_lazy_##name(tp_lazy *x, double s) {                                                          \
        const tpi_attr_scalar attr = {s};                                                                    \
        return tpi_record_inline(TPI_##NAME, &x, 1, &attr, sizeof attr);                                     \
    }
#define BINARY(NAME, name)                                                                                   \
    tp_lazy *tp_lazy_##name(tp_lazy *a, tp_lazy *b) {                                                        \
        return tpi_record_inline(TPI_##NAME, (tp_lazy *[]){a, b}, 2, NULL, 0);                               \
    }

UNARY(NEG, neg)
UNARY(EXP, exp)
UNARY(LOG, log)
UNARY(SQRT, sqrt)
UNARY(RSQRT, rsqrt)
UNARY(TANH, tanh)
UNARY(SIGMOID, sigmoid)
UNARY(RELU, relu)
UNARY(SILU, silu)
UNARY(GELU, gelu)
UNARY(GELU_TANH, gelu_tanh)
SCALAR(MUL_SCALAR, mul_scalar)
SCALAR(ADD_SCALAR, add_scalar)
BINARY(ADD, add)
BINARY(SUB, sub)
BINARY(MUL, mul)
BINARY(DIV, div)
BINARY(MINIMUM, minimum)
BINARY(MAXIMUM, maximum)
BINARY(SILU_MUL, silu_mul)

tp_lazy *tp_lazy_compare(tp_lazy *a, tp_lazy *b, tp_compare how) {
    const tpi_attr_index attr = {(int64_t)how};
    return TPI_RECORD(TPI_COMPARE, ((tp_lazy *[]){a, b}), 2, attr);
}

tp_lazy *tp_lazy_where(tp_lazy *condition, tp_lazy *a, tp_lazy *b) {
    return tpi_record_op(NULL, NULL, TPI_WHERE, (tp_lazy *[]){condition, a, b}, 3, NULL, 0);
}

tp_lazy *tp_lazy_cast(tp_lazy *x, tp_dtype dtype) {
    if (x && tp_lazy_dtype(x) == dtype) return x;
    const tpi_attr_cast attr = {(int64_t)dtype};
    return TPI_RECORD(TPI_CAST, &x, 1, attr);
}
