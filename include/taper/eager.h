/* Operations that run at once: the interface of version 1.
 *
 * tp_tensor_x computes what tp_lazy_x of taper/ops.h records: same arguments, shapes, dtypes and errors, the
 * same numbers. Each call records into a private graph and evaluates it before it returns. Operands are
 * borrowed; a NULL operand that is not optional is TP_EINVAL. *out is owned, and NULL on failure; it may
 * share memory with an operand (views), never changes it.
 *
 *     tp_tensor *h, *y;
 *     tp_status status = tp_tensor_matmul(x, w, &h);
 *     if (status == TP_OK) status = tp_tensor_softmax(h, -1, &y);
 *     tp_tensor_release(h);
 *
 * With TAPER_DEPRECATE_EAGER defined, the compiler warns at each use and names the lazy call: several
 * operations in one graph cost one plan and no intermediate tensors.
 */
#ifndef TAPER_EAGER_H
#define TAPER_EAGER_H

#include "taper/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifdef TAPER_DEPRECATE_EAGER
#define TP_EAGER_DEPRECATED(text) __attribute__((deprecated(text)))
#else
#define TP_EAGER_DEPRECATED(text)
#endif

/* What stands before each function: exported, and deprecated in favour of its lazy twin. */
#define TP_EAGER(name) TP_API TP_EAGER_DEPRECATED("use tp_lazy_" #name)

/* ---- pointwise ---- */

TP_EAGER(add) tp_status tp_tensor_add(tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(sub) tp_status tp_tensor_sub(tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(mul) tp_status tp_tensor_mul(tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(div) tp_status tp_tensor_div(tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(minimum) tp_status tp_tensor_minimum(tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(maximum) tp_status tp_tensor_maximum(tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(mul_scalar) tp_status tp_tensor_mul_scalar(tp_tensor *x, double s, tp_tensor **out);
TP_EAGER(add_scalar) tp_status tp_tensor_add_scalar(tp_tensor *x, double s, tp_tensor **out);
TP_EAGER(neg) tp_status tp_tensor_neg(tp_tensor *x, tp_tensor **out);
TP_EAGER(exp) tp_status tp_tensor_exp(tp_tensor *x, tp_tensor **out);
TP_EAGER(log) tp_status tp_tensor_log(tp_tensor *x, tp_tensor **out);
TP_EAGER(sqrt) tp_status tp_tensor_sqrt(tp_tensor *x, tp_tensor **out);
TP_EAGER(rsqrt) tp_status tp_tensor_rsqrt(tp_tensor *x, tp_tensor **out);
TP_EAGER(tanh) tp_status tp_tensor_tanh(tp_tensor *x, tp_tensor **out);
TP_EAGER(sigmoid) tp_status tp_tensor_sigmoid(tp_tensor *x, tp_tensor **out);
TP_EAGER(relu) tp_status tp_tensor_relu(tp_tensor *x, tp_tensor **out);
TP_EAGER(silu) tp_status tp_tensor_silu(tp_tensor *x, tp_tensor **out);
TP_EAGER(gelu) tp_status tp_tensor_gelu(tp_tensor *x, tp_tensor **out);
TP_EAGER(gelu_tanh) tp_status tp_tensor_gelu_tanh(tp_tensor *x, tp_tensor **out);
TP_EAGER(silu_mul) tp_status tp_tensor_silu_mul(tp_tensor *gate, tp_tensor *up, tp_tensor **out);
TP_EAGER(compare) tp_status tp_tensor_compare(tp_tensor *a, tp_tensor *b, tp_compare how, tp_tensor **out);
TP_EAGER(where) tp_status tp_tensor_where(tp_tensor *condition, tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(cast) tp_status tp_tensor_cast(tp_tensor *x, tp_dtype dtype, tp_tensor **out);

/* ---- reductions ---- */

TP_EAGER(sum) tp_status tp_tensor_sum(tp_tensor *x, int dim, bool keep, tp_tensor **out);
TP_EAGER(mean) tp_status tp_tensor_mean(tp_tensor *x, int dim, bool keep, tp_tensor **out);
TP_EAGER(max) tp_status tp_tensor_max(tp_tensor *x, int dim, bool keep, tp_tensor **out);
TP_EAGER(argmax) tp_status tp_tensor_argmax(tp_tensor *x, int dim, bool keep, tp_tensor **out);
TP_EAGER(logsumexp) tp_status tp_tensor_logsumexp(tp_tensor *x, int dim, bool keep, tp_tensor **out);
TP_EAGER(softmax) tp_status tp_tensor_softmax(tp_tensor *x, int dim, tp_tensor **out);

/* ---- shape ---- */

TP_EAGER(reshape) tp_status tp_tensor_reshape(tp_tensor *x, int rank, const int64_t *shape, tp_tensor **out);
TP_EAGER(transpose) tp_status tp_tensor_transpose(tp_tensor *x, int dim0, int dim1, tp_tensor **out);
TP_EAGER(permute) tp_status tp_tensor_permute(tp_tensor *x, const int *dims, tp_tensor **out);
TP_EAGER(slice) tp_status tp_tensor_slice(tp_tensor *x, int dim, int64_t begin, int64_t end, tp_tensor **out);
TP_EAGER(pad) tp_status tp_tensor_pad(tp_tensor *x, int dim, int64_t before, int64_t after, tp_tensor **out);
TP_EAGER(broadcast)
tp_status tp_tensor_broadcast(tp_tensor *x, int rank, const int64_t *shape, tp_tensor **out);
TP_EAGER(concat) tp_status tp_tensor_concat(tp_tensor *const *parts, int n, int dim, tp_tensor **out);
TP_EAGER(gather) tp_status tp_tensor_gather(tp_tensor *table, tp_tensor *ids, tp_tensor **out);
TP_EAGER(scatter_add)
tp_status tp_tensor_scatter_add(tp_tensor *base, tp_tensor *ids, tp_tensor *values, tp_tensor **out);
TP_EAGER(cache_write)
tp_status tp_tensor_cache_write(tp_tensor *cache, tp_tensor *values, tp_tensor *start, tp_tensor **out);

/* ---- products; bias may be NULL ---- */

TP_EAGER(matmul) tp_status tp_tensor_matmul(tp_tensor *a, tp_tensor *b, tp_tensor **out);
TP_EAGER(linear) tp_status tp_tensor_linear(tp_tensor *x, tp_tensor *w, tp_tensor *bias, tp_tensor **out);
TP_EAGER(lora_fused)
tp_status tp_tensor_lora_fused(tp_tensor *x, tp_tensor *a, tp_tensor *b, double scale, tp_tensor **out);
TP_EAGER(linear_lora)
tp_status tp_tensor_linear_lora(tp_tensor *x, tp_tensor *w, tp_tensor *a, tp_tensor *b, double scale,
                                tp_tensor *bias, tp_tensor **out);

/* ---- transformer layers; weight and bias may be NULL ---- */

TP_EAGER(rms_norm) tp_status tp_tensor_rms_norm(tp_tensor *x, tp_tensor *weight, double eps, tp_tensor **out);
TP_EAGER(layer_norm)
tp_status tp_tensor_layer_norm(tp_tensor *x, tp_tensor *weight, tp_tensor *bias, double eps, tp_tensor **out);
TP_EAGER(rope)
tp_status tp_tensor_rope(tp_tensor *x, tp_tensor *positions, tp_tensor *frequencies, tp_rope_layout layout,
                         tp_tensor **out);

/* tp_attention_options with tensors. */
typedef struct tp_tensor_attention_options {
    size_t size;
    double scale;
    bool causal;
    int64_t window;
    tp_tensor *start, *lengths, *mask; /* each may be NULL */
} tp_tensor_attention_options;

#define TP_TENSOR_ATTENTION_OPTIONS_INIT                                                                     \
    { sizeof(tp_tensor_attention_options), 0.0, false, 0, NULL, NULL, NULL }

TP_EAGER(attention)
tp_status tp_tensor_attention(tp_tensor *q, tp_tensor *k, tp_tensor *v,
                              const tp_tensor_attention_options *options, tp_tensor **out);
TP_EAGER(cross_entropy)
tp_status tp_tensor_cross_entropy(tp_tensor *logits, tp_tensor *labels, int32_t ignore, tp_tensor **out);
TP_EAGER(linear_cross_entropy)
tp_status tp_tensor_linear_cross_entropy(tp_tensor *h, tp_tensor *w, tp_tensor *labels, int32_t ignore,
                                         tp_tensor **out);
TP_EAGER(dropout)
tp_status tp_tensor_dropout(tp_tensor *x, tp_tensor *seed, double rate, uint32_t stream, tp_tensor **out);

/* Writes the new values into parameter, m and v. *out is the parameter with one more reference. */
TP_EAGER(adamw)
tp_status tp_tensor_adamw(tp_tensor *parameter, tp_tensor *m, tp_tensor *v, tp_tensor *gradient,
                          tp_tensor *step, tp_tensor *gradient_scale, const tp_adamw_options *options,
                          tp_tensor **out);

#ifdef __cplusplus
}
#endif
#endif
