/* Operations to record.
 *
 * Each function records one operation and returns its output, borrowed from the graph of its operands; it
 * computes nothing. NULL operands give NULL; an error (shapes, dtypes, operands of different graphs) sticks
 * in the graph and gives NULL (see taper/graph.h). `dim` < 0 counts from the end. Broadcasting is NumPy's.
 * Floating dtypes are f32, bf16 and f16; arithmetic is in f32, and results are rounded to the output's dtype.
 *
 *     tp_lazy *h = tp_lazy_silu(tp_lazy_matmul(x, tp_lazy_transpose(w, -1, -2)));
 *     tp_lazy *y = tp_lazy_add(x, tp_lazy_matmul(h, v));
 */
#ifndef TAPER_OPS_H
#define TAPER_OPS_H

#include "taper/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- filled ---- */

TP_API tp_lazy *tp_lazy_full(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank,
                             const int64_t *shape, double value);
TP_API tp_lazy *tp_lazy_zeros(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank,
                              const int64_t *shape);
TP_API tp_lazy *tp_lazy_ones(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank,
                             const int64_t *shape);

/* ---- pointwise: floats of one dtype; add, sub, mul, minimum, maximum and compares take i32 too ---- */

TP_API tp_lazy *tp_lazy_add(tp_lazy *a, tp_lazy *b);
TP_API tp_lazy *tp_lazy_sub(tp_lazy *a, tp_lazy *b);
TP_API tp_lazy *tp_lazy_mul(tp_lazy *a, tp_lazy *b);
TP_API tp_lazy *tp_lazy_div(tp_lazy *a, tp_lazy *b);
TP_API tp_lazy *tp_lazy_minimum(tp_lazy *a, tp_lazy *b); /* NaN if either is NaN */
TP_API tp_lazy *tp_lazy_maximum(tp_lazy *a, tp_lazy *b);
TP_API tp_lazy *tp_lazy_mul_scalar(tp_lazy *x, double s); /* x · s */
TP_API tp_lazy *tp_lazy_add_scalar(tp_lazy *x, double s); /* x + s */
TP_API tp_lazy *tp_lazy_neg(tp_lazy *x);
TP_API tp_lazy *tp_lazy_exp(tp_lazy *x);
TP_API tp_lazy *tp_lazy_log(tp_lazy *x);
TP_API tp_lazy *tp_lazy_sqrt(tp_lazy *x);
TP_API tp_lazy *tp_lazy_rsqrt(tp_lazy *x); /* 1 / √x */
TP_API tp_lazy *tp_lazy_tanh(tp_lazy *x);
TP_API tp_lazy *tp_lazy_sigmoid(tp_lazy *x);
TP_API tp_lazy *tp_lazy_relu(tp_lazy *x);
TP_API tp_lazy *tp_lazy_silu(tp_lazy *x);      /* x · sigmoid(x) */
TP_API tp_lazy *tp_lazy_gelu(tp_lazy *x);      /* x · Φ(x), exact (erf); Hendrycks and Gimpel 2016 */
TP_API tp_lazy *tp_lazy_gelu_tanh(tp_lazy *x); /* its tanh approximation, same paper */
TP_API tp_lazy *tp_lazy_silu_mul(tp_lazy *gate, tp_lazy *up); /* silu(gate) · up; Shazeer 2020 (SwiGLU) */

typedef enum tp_compare { TP_EQ, TP_NE, TP_LT, TP_LE, TP_GT, TP_GE } tp_compare;

TP_API tp_lazy *tp_lazy_compare(tp_lazy *a, tp_lazy *b, tp_compare how);   /* u8: 1 where true */
TP_API tp_lazy *tp_lazy_where(tp_lazy *condition, tp_lazy *a, tp_lazy *b); /* condition u8: ≠ 0 gives a */
TP_API tp_lazy *tp_lazy_cast(tp_lazy *x,
                             tp_dtype dtype); /* float to integer truncates and saturates; NaN gives 0 */

/* ---- reductions; TP_ALL_DIMS reduces to one element ---- */

#define TP_ALL_DIMS 127

TP_API tp_lazy *tp_lazy_sum(tp_lazy *x, int dim, bool keep);
TP_API tp_lazy *tp_lazy_mean(tp_lazy *x, int dim, bool keep);
TP_API tp_lazy *tp_lazy_max(tp_lazy *x, int dim, bool keep);
TP_API tp_lazy *tp_lazy_argmax(tp_lazy *x, int dim, bool keep); /* i32; the first of equals */
TP_API tp_lazy *tp_lazy_logsumexp(tp_lazy *x, int dim, bool keep);

/* Σ x² over all elements of all `n` ≤ 255 float nodes, of any shapes: f32, one element. */
TP_API tp_lazy *tp_lazy_sum_squares(tp_lazy *const *xs, int n);

/* exp(x - max) / Σ exp(x - max) over `dim`. A slice that is all -inf gives zeros. */
TP_API tp_lazy *tp_lazy_softmax(tp_lazy *x, int dim);

/* ---- shape ---- */

TP_API tp_lazy *tp_lazy_reshape(tp_lazy *x, int rank, const int64_t *shape); /* one size may be -1 */
TP_API tp_lazy *tp_lazy_transpose(tp_lazy *x, int dim0, int dim1);
TP_API tp_lazy *tp_lazy_permute(tp_lazy *x, const int *dims); /* rank numbers */
TP_API tp_lazy *tp_lazy_slice(tp_lazy *x, int dim, int64_t begin, int64_t end);
TP_API tp_lazy *tp_lazy_pad(tp_lazy *x, int dim, int64_t before, int64_t after); /* with zeros */
TP_API tp_lazy *tp_lazy_broadcast(tp_lazy *x, int rank, const int64_t *shape);
TP_API tp_lazy *tp_lazy_concat(tp_lazy *const *parts, int n, int dim);

/* x on another device of the context. An evaluation that crosses devices runs a plan on each side, one after
 * the other; its outputs and assignments are on one device. Returns x where it is there already. */
TP_API tp_lazy *tp_lazy_to_device(tp_lazy *x, tp_device *device);

/* Rows of table [V, ...] chosen by ids (i32, any shape): [ids..., ...]. An id outside [0, V) fails the
 * evaluation with TP_EINVAL. */
TP_API tp_lazy *tp_lazy_gather(tp_lazy *table, tp_lazy *ids);

/* base [V, ...] with rows of `values` [ids..., ...] added at ids. */
TP_API tp_lazy *tp_lazy_scatter_add(tp_lazy *base, tp_lazy *ids, tp_lazy *values);

/* cache [B, C, ...] with values [B, T, ...] written at positions start[b] ... start[b]+T-1 of dimension 1;
 * start is i32 [B]. Positions past C fail the evaluation with TP_EINVAL. No gradient. */
TP_API tp_lazy *tp_lazy_cache_write(tp_lazy *cache, tp_lazy *values, tp_lazy *start);

/* ---- products ---- */

/* a [..., M, K] · b [..., K, N] → [..., M, N]; leading dimensions broadcast; transposed views cost no copy.
 * Floats of any two dtypes; the result has a's dtype. */
TP_API tp_lazy *tp_lazy_matmul(tp_lazy *a, tp_lazy *b);

/* The same, rounded once to a float dtype of the caller's choice: f32 gradients of bf16 activations. */
TP_API tp_lazy *tp_lazy_matmul_as(tp_lazy *a, tp_lazy *b, tp_dtype dtype);

/* x · w + bias: x [..., in], w [in, out], bias [out] or NULL. */
TP_API tp_lazy *tp_lazy_linear(tp_lazy *x, tp_lazy *w, tp_lazy *bias);

/* scale · x · a · b, the low-rank update (Hu et al. 2021): x [..., in], a [in, r], b [r, out] → [..., out].
 */
TP_API tp_lazy *tp_lazy_lora_fused(tp_lazy *x, tp_lazy *a, tp_lazy *b, double scale);

/* x · w + scale · x · a · b + bias: one adapted linear layer, whose low-rank product serves the gradients
 * too. w [in, out], bias [out] or NULL. */
TP_API tp_lazy *tp_lazy_linear_lora(tp_lazy *x, tp_lazy *w, tp_lazy *a, tp_lazy *b, double scale,
                                    tp_lazy *bias);

/* ---- transformer layers ---- */

/* x / √(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019); weight [last] or NULL. */
TP_API tp_lazy *tp_lazy_rms_norm(tp_lazy *x, tp_lazy *weight, double eps);

/* (x - mean) / √(variance + eps) · weight + bias over the last dimension (Ba et al. 2016); weight and bias
 * [last], both or neither. */
TP_API tp_lazy *tp_lazy_layer_norm(tp_lazy *x, tp_lazy *weight, tp_lazy *bias, double eps);

typedef enum tp_rope_layout {
    TP_ROPE_HALF,       /* pairs (i, i + R), R = D/2 in Hugging Face's Llama */
    TP_ROPE_INTERLEAVED /* pairs (2i, 2i + 1), as the paper and GGUF's Llama */
} tp_rope_layout;

/* Rotary embedding (Su et al. 2021): x [B, T, H, D]; positions i32 [B, T]; frequencies f32 [R], R ≤ D/2, in
 * radians a position. The first 2R of the D features are rotated. Frequencies have no gradient. */
TP_API tp_lazy *tp_lazy_rope(tp_lazy *x, tp_lazy *positions, tp_lazy *frequencies, tp_rope_layout layout);

typedef struct tp_attention_options {
    size_t size;
    double scale;     /* of the scores; 0: 1/√D */
    bool causal;      /* a query sees keys at its own position and before */
    int64_t window;   /* > 0: and only the last `window` of them; needs causal */
    tp_lazy *start;   /* i32 [B]: position of the first query; NULL: 0. Keys are at positions 0 ... S-1 */
    tp_lazy *lengths; /* i32 [B]: keys at positions ≥ lengths[b] are not seen; NULL: all are seen */
    tp_lazy *mask; /* f32, broadcast to [B, H, T, S], added to the scaled scores; no gradient; NULL: none */
} tp_attention_options;

#define TP_ATTENTION_OPTIONS_INIT                                                                            \
    { sizeof(tp_attention_options), 0.0, false, 0, NULL, NULL, NULL }

/* softmax(q·kᵀ·scale + mask)·v, computed in blocks without storing the scores (Dao et al. 2022): q [B, T, H,
 * D], k and v [B, S, G, D], H a multiple of G (grouped heads) → [B, T, H, D]. A query that sees no key gives
 * zeros. `options` may be NULL. */
TP_API tp_lazy *tp_lazy_attention(tp_lazy *q, tp_lazy *k, tp_lazy *v, const tp_attention_options *options);

/* -log softmax(logits)[label] of each row: logits [..., V], labels i32 [...] → f32 [...]. Rows whose label is
 * `ignore` give 0 and no gradient; another label outside [0, V) fails the evaluation with TP_EINVAL. */
TP_API tp_lazy *tp_lazy_cross_entropy(tp_lazy *logits, tp_lazy *labels, int32_t ignore);

/* tp_lazy_cross_entropy of the logits h·w, which are never all in memory: a slice of the vocabulary at a time
 * is computed and forgotten (Wijmans et al. 2024), with the gradient by h along the way, so that it costs no
 * further product. h [..., D], w [D, V] (a transposed view is read as it lies), labels i32 [...] → f32 [...].
 * Rows whose label is `ignore` give 0, no gradient, and no work; another label outside [0, V) fails the
 * evaluation with TP_EINVAL. The gradient by w computes the logits again. */
TP_API tp_lazy *tp_lazy_linear_cross_entropy(tp_lazy *h, tp_lazy *w, tp_lazy *labels, int32_t ignore);

/* x with elements zeroed with probability `rate` and the others divided by 1 - rate (Srivastava et al. 2014).
 * seed: i32 [2]. Element i of stream s is decided by Philox4x32-10 (Salmon et al. 2011) with key seed and
 * counter (i, s): the mask is not stored. Different layers take different streams. */
TP_API tp_lazy *tp_lazy_dropout(tp_lazy *x, tp_lazy *seed, double rate, uint32_t stream);

typedef struct tp_adamw_options {
    size_t size;
    double beta1, beta2, eps, weight_decay;
} tp_adamw_options;

#define TP_ADAMW_OPTIONS_INIT                                                                                \
    { sizeof(tp_adamw_options), 0.9, 0.999, 1e-8, 0.0 }

/* Records one AdamW step (Loshchilov and Hutter 2019) of the leaf `parameter` with moments `m`, `v` (leaves,
 * f32, same shape) and assigns all three. step: f32 [3] = {learning rate, 1 - beta1^t, 1 - beta2^t};
 * gradient_scale: f32, one element, multiplies the gradient (clipping); if it is not finite the step changes
 * nothing. Returns the new parameter. */
TP_API tp_lazy *tp_lazy_adamw(tp_lazy *parameter, tp_lazy *m, tp_lazy *v, tp_lazy *gradient, tp_lazy *step,
                              tp_lazy *gradient_scale, const tp_adamw_options *options);

#ifdef __cplusplus
}
#endif
#endif
