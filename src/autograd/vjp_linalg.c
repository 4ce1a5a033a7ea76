/* Reverse rules of products. Leading dimensions are flattened, so that a weight's gradient is one product;
 * the input's gradient of an adapted layer is an adapted layer itself, over transposed views of the same
 * matrices. A frozen matrix costs nothing. */
#include "autograd/vjp.h"

#include "ops/check.h"

static tp_lazy *transposed(tp_lazy *m) {
    return tp_lazy_transpose(m, -1, -2);
}

/* x [..., features] as [rows, features]. */
static tp_lazy *flat(tp_lazy *x) {
    if (!x) return NULL;
    int64_t rows = 1;
    for (int d = 0; d + 1 < tp_lazy_rank(x); d++) rows *= tp_lazy_shape(x)[d];
    return tp_lazy_reshape(x, 2, (int64_t[]){rows, tp_lazy_size(x, -1)});
}

/* xᵀ · dy over all rows: the gradient of `weight` in y = x · weight, in the weight's dtype. */
static tp_lazy *weight_gradient(tp_lazy *x, tp_lazy *dy, const tp_lazy *weight) {
    return tp_lazy_matmul_as(transposed(flat(x)), flat(dy), tp_lazy_dtype(weight));
}

void tpi_vjp_matmul(tpi_vjp *call) {
    const tpi_attr_matmul *attr = tpi_vjp_attr(call);
    const double s = attr ? attr->scale : 1.0;
    const tp_lazy *a = tpi_vjp_like(call, 0), *b = tpi_vjp_like(call, 1);
    if (call->wanted[0])
        call->dx[0] = tpi_unbroadcast(
            tpi_lazy_product(call->dy, transposed(tpi_vjp_in(call, 1)), tp_lazy_dtype(a), s), a);
    if (!call->wanted[1]) return;
    tp_lazy *x = tpi_vjp_in(call, 0);
    const bool flatten = b->record.rank == 2;
    tp_lazy *product = tpi_lazy_product(transposed(flatten ? flat(x) : x),
                                        flatten ? flat(call->dy) : call->dy, tp_lazy_dtype(b), s);
    call->dx[1] = flatten ? product : tpi_unbroadcast(product, b);
}

static bool wants(const tpi_vjp *call, int k) {
    return k < call->node->record.n_in && call->wanted[k];
}

/* Gradients of w and bias, where the operation has them. */
static void give_weight(tpi_vjp *call, int w) {
    call->dx[w] = weight_gradient(tpi_vjp_in(call, 0), call->dy, tpi_vjp_like(call, w));
}

static void give_bias(tpi_vjp *call, int bias) {
    call->dx[bias] = tpi_unbroadcast(call->dy, tpi_vjp_like(call, bias));
}

/* s · x · m over all rows. */
static tp_lazy *scaled_product(tp_lazy *x, tp_lazy *m, double s) {
    return x ? tpi_lazy_product(flat(x), m, tp_lazy_dtype(x), s) : NULL;
}

/* y = s·x·a·b: da = xᵀ·up with up = s·dy·bᵀ, db = downᵀ·dy with down = s·x·a. */
static void give_a(tpi_vjp *call, int a, tp_lazy *up) {
    call->dx[a] = weight_gradient(tpi_vjp_in(call, 0), up, tpi_vjp_like(call, a));
}

static void give_b(tpi_vjp *call, int b, tp_lazy *down) {
    call->dx[b] = weight_gradient(down, call->dy, tpi_vjp_like(call, b));
}

void tpi_vjp_linear(tpi_vjp *call) {
    if (call->wanted[0]) call->dx[0] = tp_lazy_linear(call->dy, transposed(tpi_vjp_in(call, 1)), NULL);
    if (call->wanted[1]) give_weight(call, 1);
    if (wants(call, 2)) give_bias(call, 2);
}

void tpi_vjp_lora(tpi_vjp *call) {
    const tpi_attr_scalar *attr = tpi_vjp_attr(call);
    if (call->wanted[0])
        call->dx[0] = tp_lazy_lora_fused(call->dy, transposed(tpi_vjp_in(call, 2)),
                                         transposed(tpi_vjp_in(call, 1)), attr->s);
    if (call->wanted[1]) give_a(call, 1, scaled_product(call->dy, transposed(tpi_vjp_in(call, 2)), attr->s));
    if (call->wanted[2]) give_b(call, 2, scaled_product(tpi_vjp_in(call, 0), tpi_vjp_in(call, 1), attr->s));
}

/* The low-rank products are by-products: the forward layer's output 1 is s·x·a, that of the input's gradient
 * s·dy·bᵀ. */
void tpi_vjp_linear_lora(tpi_vjp *call) {
    const tpi_attr_scalar *attr = tpi_vjp_attr(call);
    if (call->wanted[0]) {
        tp_lazy *w = transposed(tpi_vjp_in(call, 1));
        tp_lazy *a = transposed(tpi_vjp_in(call, 2)), *b = transposed(tpi_vjp_in(call, 3));
        call->dx[0] = tp_lazy_linear_lora(call->dy, w, b, a, attr->s, NULL);
    }
    if (call->wanted[1]) give_weight(call, 1);
    if (call->wanted[2])
        give_a(call, 2,
               call->wanted[0] ? tpi_record_part(call->dx[0], 1)
                               : scaled_product(call->dy, transposed(tpi_vjp_in(call, 3)), attr->s));
    if (call->wanted[3]) give_b(call, 3, tpi_vjp_out(call, 1));
    if (wants(call, 4)) give_bias(call, 4);
}
