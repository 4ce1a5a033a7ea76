/* Reverse rules of pointwise operations: dx = dy · f'(x), summed where the input was broadcast. */
#include "autograd/vjp.h"

#define RULE(name) void tpi_vjp_##name(tpi_vjp *call)

static void give(tpi_vjp *call, int k, tp_lazy *gradient) {
    call->dx[k] = tpi_unbroadcast(gradient, tpi_vjp_like(call, k));
}

static tp_lazy *squared(tp_lazy *x) {
    return tp_lazy_mul(x, x);
}

/* ---- one operand ---- */

RULE(neg) {
    call->dx[0] = tp_lazy_neg(call->dy);
}
RULE(exp) {
    call->dx[0] = tp_lazy_mul(call->dy, tpi_vjp_out(call, 0));
}
RULE(log) {
    call->dx[0] = tp_lazy_div(call->dy, tpi_vjp_in(call, 0));
}
RULE(sqrt) {
    call->dx[0] = tp_lazy_mul_scalar(tp_lazy_div(call->dy, tpi_vjp_out(call, 0)), 0.5);
}
RULE(add_scalar) {
    call->dx[0] = call->dy;
}

RULE(rsqrt) {
    tp_lazy *y = tpi_vjp_out(call, 0);
    call->dx[0] = tp_lazy_mul_scalar(tp_lazy_mul(call->dy, tp_lazy_mul(y, squared(y))), -0.5);
}

RULE(tanh) {
    call->dx[0] = tp_lazy_sub(call->dy, tp_lazy_mul(call->dy, squared(tpi_vjp_out(call, 0))));
}

RULE(sigmoid) {
    tp_lazy *y = tpi_vjp_out(call, 0);
    call->dx[0] = tp_lazy_mul(call->dy, tp_lazy_sub(y, squared(y)));
}

RULE(relu) {
    tp_lazy *zero = tpi_constant(call->dy, 0.0);
    call->dx[0] = tp_lazy_where(tp_lazy_compare(tpi_vjp_out(call, 0), zero, TP_GT), call->dy, zero);
}

static tp_lazy *slope_of(tpi_op grad_op, tp_lazy *x, tp_lazy *dy) {
    return tpi_record_op(NULL, NULL, grad_op, (tp_lazy *[]){x, dy}, 2, NULL, 0);
}

RULE(silu) {
    call->dx[0] = slope_of(TPI_SILU_GRAD, tpi_vjp_in(call, 0), call->dy);
}
RULE(gelu) {
    call->dx[0] = slope_of(TPI_GELU_GRAD, tpi_vjp_in(call, 0), call->dy);
}
RULE(gelu_tanh) {
    call->dx[0] = slope_of(TPI_GELU_TANH_GRAD, tpi_vjp_in(call, 0), call->dy);
}

RULE(mul_scalar) {
    const tpi_attr_scalar *attr = tpi_vjp_attr(call);
    call->dx[0] = tpi_scaled(call->dy, attr->s);
}

RULE(cast) {
    call->dx[0] = tp_lazy_cast(call->dy, tp_lazy_dtype(tpi_vjp_like(call, 0)));
}

/* ---- two operands ---- */

RULE(add) {
    for (int k = 0; k < 2; k++)
        if (call->wanted[k]) give(call, k, call->dy);
}

RULE(sub) {
    if (call->wanted[0]) give(call, 0, call->dy);
    if (call->wanted[1]) give(call, 1, tp_lazy_neg(call->dy));
}

RULE(mul) {
    for (int k = 0; k < 2; k++)
        if (call->wanted[k]) give(call, k, tpi_times(call->dy, tpi_vjp_in(call, 1 - k)));
}

RULE(div) {
    tp_lazy *b = tpi_vjp_in(call, 1), *da = tp_lazy_div(call->dy, b);
    if (call->wanted[0]) give(call, 0, da);
    if (call->wanted[1]) give(call, 1, tp_lazy_neg(tp_lazy_mul(da, tp_lazy_div(tpi_vjp_in(call, 0), b))));
}

/* The operand that was chosen gets dy; equal ones share it. */
static void choose(tpi_vjp *call, tp_compare how) {
    tp_lazy *zero = tpi_constant(call->dy, 0.0), *half = tp_lazy_mul_scalar(call->dy, 0.5);
    for (int k = 0; k < 2; k++) {
        if (!call->wanted[k]) continue;
        tp_lazy *own = tpi_vjp_in(call, k), *other = tpi_vjp_in(call, 1 - k);
        tp_lazy *shared = tp_lazy_where(tp_lazy_compare(own, other, TP_EQ), half, zero);
        give(call, k, tp_lazy_where(tp_lazy_compare(own, other, how), call->dy, shared));
    }
}

RULE(minimum) {
    choose(call, TP_LT);
}
RULE(maximum) {
    choose(call, TP_GT);
}

RULE(where) {
    tp_lazy *condition = tpi_vjp_in(call, 0), *zero = tpi_constant(call->dy, 0.0);
    if (call->wanted[1]) give(call, 1, tp_lazy_where(condition, call->dy, zero));
    if (call->wanted[2]) give(call, 2, tp_lazy_where(condition, zero, call->dy));
}

RULE(silu_mul) {
    tp_lazy *gate = tpi_vjp_in(call, 0);
    if (call->wanted[0] && call->wanted[1] &&
        tpi_vjp_same_shape(tpi_vjp_like(call, 0), tpi_vjp_like(call, 1))) {
        tp_lazy *in[] = {gate, tpi_vjp_in(call, 1), call->dy};
        call->dx[0] = tpi_record_op(NULL, NULL, TPI_SILU_MUL_GRAD, in, 3, NULL, 0);
        call->dx[1] = tpi_record_part(call->dx[0], 1);
        return;
    }
    if (call->wanted[0])
        give(call, 0, slope_of(TPI_SILU_GRAD, gate, tp_lazy_mul(call->dy, tpi_vjp_in(call, 1))));
    if (call->wanted[1]) give(call, 1, tp_lazy_mul(call->dy, tp_lazy_silu(gate)));
}
