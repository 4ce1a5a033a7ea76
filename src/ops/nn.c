/* Transformer layers, their gradient operations, and AdamW. */
#include "ops/check.h"

#include <math.h>

/* ---- norms ---- */

static tp_status expect_eps(const tpi_infer *call) {
    const tpi_attr_norm *attr = call->attr;
    if (attr->eps >= 0.0 && attr->eps < (double)INFINITY) return TP_OK;
    return tpi_fail(TP_EINVAL, "eps is %g, expected a finite number of 0 or more", attr->eps);
}

/* Input k, if there is one, is a float vector over x's last dimension. */
static tp_status expect_feature_vector(const tpi_infer *call, int k, const char *name) {
    const tpi_signature *x = &call->in[0];
    if (k >= call->n_in) return TP_OK;
    TPI_TRY(tpi_expect_float(&call->in[k], name));
    return tpi_expect_shape(&call->in[k], name, 1, &x->shape[x->rank - 1]);
}

static tp_status infer_norm(tpi_infer *call) {
    const tpi_signature *x = &call->in[0];
    TPI_TRY(tpi_expect_float(x, "x"));
    TPI_TRY(tpi_expect_min_rank(x, "x", 1));
    TPI_TRY(expect_eps(call));
    call->out[0] = *x;
    return TP_OK;
}

tp_status tpi_infer_rms_norm(tpi_infer *call) {
    TPI_TRY(infer_norm(call));
    return expect_feature_vector(call, 1, "weight");
}

tp_status tpi_infer_layer_norm(tpi_infer *call) {
    TPI_TRY(infer_norm(call));
    if (call->n_in == 1) return TP_OK;
    if (call->n_in == 2) return tpi_fail(TP_EINVAL, "one of weight and bias, expected both or neither");
    TPI_TRY(expect_feature_vector(call, 1, "weight"));
    TPI_TRY(expect_feature_vector(call, 2, "bias"));
    return tpi_expect_dtype(&call->in[2], "bias", (tp_dtype)call->in[1].dtype);
}

/* (x, dy, weight): output 0 is dx, the others are as the weight; without a weight nobody asks for them. */
static tp_status infer_norm_grad(tpi_infer *call) {
    const tpi_signature *x = &call->in[0], *dy = &call->in[1];
    TPI_TRY(infer_norm(call));
    TPI_TRY(tpi_expect_dtype(dy, "dy", (tp_dtype)x->dtype));
    TPI_TRY(tpi_expect_shape(dy, "dy", x->rank, x->shape));
    TPI_TRY(expect_feature_vector(call, 2, "weight"));
    tp_dtype dtype = (tp_dtype)(call->n_in > 2 ? call->in[2].dtype : x->dtype);
    TPI_TRY(tpi_result(call, 1, dtype, 1, &x->shape[x->rank - 1]));
    call->out[2] = call->out[1];
    return TP_OK;
}

tp_status tpi_infer_rms_norm_grad(tpi_infer *call) {
    return infer_norm_grad(call);
}
tp_status tpi_infer_layer_norm_grad(tpi_infer *call) {
    return infer_norm_grad(call);
}

tp_lazy *tp_lazy_rms_norm(tp_lazy *x, tp_lazy *weight, double eps) {
    const tpi_attr_norm attr = {eps};
    return TPI_RECORD(TPI_RMS_NORM, ((tp_lazy *[]){x, weight}), weight ? 2 : 1, attr);
}

tp_lazy *tp_lazy_layer_norm(tp_lazy *x, tp_lazy *weight, tp_lazy *bias, double eps) {
    const tpi_attr_norm attr = {eps};
    int n_in = 1 + (weight || bias) + (weight && bias);
    return TPI_RECORD(TPI_LAYER_NORM, ((tp_lazy *[]){x, weight ? weight : bias, bias}), n_in, attr);
}

/* ---- rotary embedding ---- */

tp_status tpi_infer_rope(tpi_infer *call) {
    const tpi_attr_rope *attr = call->attr;
    const tpi_signature *x = &call->in[0], *positions = &call->in[1], *frequencies = &call->in[2];
    if (attr->layout != TP_ROPE_HALF && attr->layout != TP_ROPE_INTERLEAVED)
        return tpi_fail(TP_EINVAL, "%d is no tp_rope_layout", attr->layout);
    TPI_TRY(tpi_expect_float(x, "x"));
    TPI_TRY(tpi_expect_rank(x, "x", 4));
    TPI_TRY(tpi_expect_dtype(positions, "positions", TP_I32));
    TPI_TRY(tpi_expect_shape(positions, "positions", 2, x->shape));
    TPI_TRY(tpi_expect_dtype(frequencies, "frequencies", TP_F32));
    TPI_TRY(tpi_expect_rank(frequencies, "frequencies", 1));
    if (frequencies->shape[0] > x->shape[3] / 2)
        return tpi_fail(TP_ESHAPE, "%lld frequencies for %lld features, expected %lld or fewer",
                        (long long)frequencies->shape[0], (long long)x->shape[3],
                        (long long)(x->shape[3] / 2));
    call->out[0] = *x;
    return TP_OK;
}

tp_lazy *tpi_lazy_rope(tp_lazy *x, tp_lazy *positions, tp_lazy *frequencies, tpi_attr_rope attr) {
    return TPI_RECORD(TPI_ROPE, ((tp_lazy *[]){x, positions, frequencies}), 3, attr);
}

tp_lazy *tp_lazy_rope(tp_lazy *x, tp_lazy *positions, tp_lazy *frequencies, tp_rope_layout layout) {
    return tpi_lazy_rope(x, positions, frequencies, (tpi_attr_rope){(int32_t)layout, 0});
}

/* ---- attention ---- */

static tp_status expect_heads(const tpi_signature *q, const tpi_signature *k, const tpi_signature *v) {
    TPI_TRY(tpi_expect_float(q, "q"));
    TPI_TRY(tpi_expect_float(k, "k"));
    TPI_TRY(tpi_expect_float(v, "v"));
    TPI_TRY(tpi_expect_rank(q, "q", 4));
    TPI_TRY(tpi_expect_rank(k, "k", 4));
    TPI_TRY(tpi_expect_shape(v, "v", k->rank, k->shape));
    if (q->shape[0] != k->shape[0] || q->shape[3] != k->shape[3])
        return tpi_fail(TP_ESHAPE, "q has shape %s and k %s, expected the same first and last sizes",
                        TPI_TEXT(q), TPI_TEXT(k));
    if (k->shape[2] == 0 ? q->shape[2] != 0 : q->shape[2] % k->shape[2] != 0)
        return tpi_fail(TP_ESHAPE, "%lld query heads are no multiple of %lld key heads",
                        (long long)q->shape[2], (long long)k->shape[2]);
    return TP_OK;
}

/* start, lengths and mask from input `first` on. */
static tp_status expect_attention_options(const tpi_infer *call, int first) {
    const tpi_attr_attention *attr = call->attr;
    const tpi_signature *q = &call->in[0], *k = &call->in[1], *next = &call->in[first];
    if (call->n_in != first + attr->has_start + attr->has_lengths + attr->has_mask)
        return tpi_fail(TP_EINVAL, "its options name %d further inputs, got %d",
                        attr->has_start + attr->has_lengths + attr->has_mask, call->n_in - first);
    if (attr->window < 0 || (attr->window > 0 && !attr->causal))
        return tpi_fail(TP_EINVAL, "window is %lld, expected 0, or more with causal",
                        (long long)attr->window);
    if (attr->has_start) {
        TPI_TRY(tpi_expect_dtype(next, "start", TP_I32));
        TPI_TRY(tpi_expect_shape(next++, "start", 1, q->shape));
    }
    if (attr->has_lengths) {
        TPI_TRY(tpi_expect_dtype(next, "lengths", TP_I32));
        TPI_TRY(tpi_expect_shape(next++, "lengths", 1, q->shape));
    }
    if (!attr->has_mask) return TP_OK;
    TPI_TRY(tpi_expect_dtype(next, "mask", TP_F32));
    const int64_t shape[] = {q->shape[0], q->shape[2], q->shape[1], k->shape[1]};
    return tpi_expect_broadcast(next, "mask", &(tpi_signature){TP_F32, 4, shape});
}

tp_status tpi_infer_attention(tpi_infer *call) {
    const tpi_signature *q = &call->in[0];
    TPI_TRY(expect_heads(q, &call->in[1], &call->in[2]));
    TPI_TRY(expect_attention_options(call, 3));
    call->out[0] = *q;
    return tpi_result(call, 1, TP_F32, 3, (int64_t[]){q->shape[0], q->shape[2], q->shape[1]});
}

/* (q, k, v, out, lse, dout, options...) */
tp_status tpi_infer_attention_grad(tpi_infer *call) {
    const tpi_signature *q = &call->in[0];
    TPI_TRY(expect_heads(q, &call->in[1], &call->in[2]));
    TPI_TRY(expect_attention_options(call, 6));
    TPI_TRY(tpi_expect_shape(&call->in[3], "out", q->rank, q->shape));
    TPI_TRY(tpi_expect_dtype(&call->in[4], "lse", TP_F32));
    TPI_TRY(tpi_expect_shape(&call->in[4], "lse", 3, (int64_t[]){q->shape[0], q->shape[2], q->shape[1]}));
    TPI_TRY(tpi_expect_shape(&call->in[5], "dout", q->rank, q->shape));
    for (int k = 0; k < 3; k++) call->out[k] = call->in[k];
    return TP_OK;
}

tp_lazy *tp_lazy_attention(tp_lazy *q, tp_lazy *k, tp_lazy *v, const tp_attention_options *options) {
    static const tp_attention_options defaults = TP_ATTENTION_OPTIONS_INIT;
    const tp_attention_options *o = options ? options : &defaults;
    if (!q) return NULL;
    if (o->size != sizeof *o)
        return tpi_build_fail(tp_lazy_graph(q), TPI_ATTENTION, TP_EINVAL, "options.size is %zu, expected %zu",
                              o->size, sizeof *o);
    TPI_ATTR(tpi_attr_attention, attr);
    int64_t features = tp_lazy_size(q, -1);
    attr.scale = o->scale != 0.0 || features == 0 ? o->scale : 1.0 / sqrt((double)features);
    attr.window = o->window;
    attr.causal = o->causal;
    tp_lazy *inputs[6] = {q, k, v};
    int n_in = 3;
    if ((attr.has_start = o->start != NULL)) inputs[n_in++] = o->start;
    if ((attr.has_lengths = o->lengths != NULL)) inputs[n_in++] = o->lengths;
    if ((attr.has_mask = o->mask != NULL)) inputs[n_in++] = o->mask;
    return TPI_RECORD(TPI_ATTENTION, inputs, n_in, attr);
}

/* ---- loss ---- */

/* logits [..., V]: labels, losses and log-sum-exps are [...]. */
static tp_status expect_logits(const tpi_infer *call) {
    const tpi_signature *logits = &call->in[0], *labels = &call->in[1];
    TPI_TRY(tpi_expect_float(logits, "logits"));
    TPI_TRY(tpi_expect_min_rank(logits, "logits", 1));
    TPI_TRY(tpi_expect_dtype(labels, "labels", TP_I32));
    return tpi_expect_shape(labels, "labels", logits->rank - 1, logits->shape);
}

tp_status tpi_infer_cross_entropy(tpi_infer *call) {
    const tpi_signature *labels = &call->in[1];
    TPI_TRY(expect_logits(call));
    TPI_TRY(tpi_result(call, 0, TP_F32, labels->rank, labels->shape));
    call->out[1] = call->out[0];
    return TP_OK;
}

/* Inputs `first` and the next are lse and dloss: a number for each label. */
static tp_status expect_row_values(const tpi_infer *call, int first, const tpi_signature *labels) {
    static const char *const names[] = {"lse", "dloss"};
    for (int k = 0; k < 2; k++) {
        TPI_TRY(tpi_expect_dtype(&call->in[first + k], names[k], TP_F32));
        TPI_TRY(tpi_expect_shape(&call->in[first + k], names[k], labels->rank, labels->shape));
    }
    return TP_OK;
}

/* (logits, labels, lse, dloss) */
tp_status tpi_infer_cross_entropy_grad(tpi_infer *call) {
    TPI_TRY(expect_logits(call));
    TPI_TRY(expect_row_values(call, 2, &call->in[1]));
    call->out[0] = call->in[0];
    return TP_OK;
}

/* h [..., D] and w [D, V] stand for the logits. */
static tp_status expect_linear_logits(const tpi_infer *call) {
    const tpi_signature *h = &call->in[0], *w = &call->in[1], *labels = &call->in[2];
    TPI_TRY(tpi_expect_float(h, "h"));
    TPI_TRY(tpi_expect_min_rank(h, "h", 1));
    TPI_TRY(tpi_expect_float(w, "w"));
    TPI_TRY(tpi_expect_rank(w, "w", 2));
    if (w->shape[0] != h->shape[h->rank - 1])
        return tpi_fail(TP_ESHAPE, "w has shape %s, expected %lld rows", TPI_TEXT(w),
                        (long long)h->shape[h->rank - 1]);
    TPI_TRY(tpi_expect_dtype(labels, "labels", TP_I32));
    return tpi_expect_shape(labels, "labels", h->rank - 1, h->shape);
}

/* Losses, log-sum-exps, and the gradient of each loss by its row of h. */
tp_status tpi_infer_linear_cross_entropy(tpi_infer *call) {
    const tpi_signature *h = &call->in[0], *labels = &call->in[2];
    TPI_TRY(expect_linear_logits(call));
    TPI_TRY(tpi_result(call, 0, TP_F32, labels->rank, labels->shape));
    call->out[1] = call->out[0];
    return tpi_result(call, 2, TP_F32, h->rank, h->shape);
}

/* (h, w, labels, lse, dloss): the gradient by w, in f32. */
tp_status tpi_infer_linear_cross_entropy_grad(tpi_infer *call) {
    TPI_TRY(expect_linear_logits(call));
    TPI_TRY(expect_row_values(call, 3, &call->in[2]));
    return tpi_result(call, 0, TP_F32, 2, call->in[1].shape);
}

tp_lazy *tp_lazy_linear_cross_entropy(tp_lazy *h, tp_lazy *w, tp_lazy *labels, int32_t ignore) {
    const tpi_attr_ignore attr = {ignore};
    return TPI_RECORD(TPI_LINEAR_CROSS_ENTROPY, ((tp_lazy *[]){h, w, labels}), 3, attr);
}

tp_lazy *tp_lazy_cross_entropy(tp_lazy *logits, tp_lazy *labels, int32_t ignore) {
    const tpi_attr_ignore attr = {ignore};
    return TPI_RECORD(TPI_CROSS_ENTROPY, ((tp_lazy *[]){logits, labels}), 2, attr);
}

/* ---- dropout ---- */

tp_status tpi_infer_dropout(tpi_infer *call) {
    const tpi_attr_dropout *attr = call->attr;
    const int64_t two = 2;
    if (!(attr->rate >= 0.0 && attr->rate < 1.0))
        return tpi_fail(TP_EINVAL, "rate is %g, expected 0 ≤ rate < 1", attr->rate);
    TPI_TRY(tpi_expect_float(&call->in[0], "x"));
    TPI_TRY(tpi_expect_dtype(&call->in[1], "seed", TP_I32));
    TPI_TRY(tpi_expect_shape(&call->in[1], "seed", 1, &two));
    call->out[0] = call->in[0];
    return TP_OK;
}

tp_lazy *tp_lazy_dropout(tp_lazy *x, tp_lazy *seed, double rate, uint32_t stream) {
    const tpi_attr_dropout attr = {rate, stream};
    return TPI_RECORD(TPI_DROPOUT, ((tp_lazy *[]){x, seed}), 2, attr);
}

/* ---- optimizer ---- */

static tp_status expect_adamw_options(const tpi_attr_adamw *attr) {
    if (!(attr->beta1 >= 0.0 && attr->beta1 < 1.0 && attr->beta2 >= 0.0 && attr->beta2 < 1.0))
        return tpi_fail(TP_EINVAL, "betas are %g and %g, expected 0 ≤ beta < 1", attr->beta1, attr->beta2);
    if (!(attr->eps >= 0.0 && attr->weight_decay >= 0.0))
        return tpi_fail(TP_EINVAL, "eps is %g and weight_decay %g, expected 0 or more", attr->eps,
                        attr->weight_decay);
    return TP_OK;
}

tp_status tpi_infer_adamw(tpi_infer *call) {
    static const char *const names[] = {"parameter", "m", "v", "gradient", "step", "gradient_scale"};
    const tpi_signature *parameter = &call->in[0], *scale = &call->in[5];
    const int64_t three = 3;
    TPI_TRY(expect_adamw_options(call->attr));
    if (parameter->dtype == TP_BF16 || parameter->dtype == TP_F16)
        return tpi_fail(TP_EDTYPE,
                        "parameter is %s, expected f32: train an f32 copy and cast it where it is used",
                        tp_dtype_name((tp_dtype)parameter->dtype));
    for (int k = 0; k < 6; k++) TPI_TRY(tpi_expect_dtype(&call->in[k], names[k], TP_F32));
    for (int k = 1; k < 4; k++)
        TPI_TRY(tpi_expect_shape(&call->in[k], names[k], parameter->rank, parameter->shape));
    TPI_TRY(tpi_expect_shape(&call->in[4], "step", 1, &three));
    for (int d = 0; d < scale->rank; d++)
        if (scale->shape[d] != 1)
            return tpi_fail(TP_ESHAPE, "gradient_scale has shape %s, expected one element", TPI_TEXT(scale));
    for (int k = 0; k < 3; k++) call->out[k] = *parameter;
    return TP_OK;
}

tp_lazy *tp_lazy_adamw(tp_lazy *parameter, tp_lazy *m, tp_lazy *v, tp_lazy *gradient, tp_lazy *step,
                       tp_lazy *gradient_scale, const tp_adamw_options *options) {
    static const tp_adamw_options defaults = TP_ADAMW_OPTIONS_INIT;
    const tp_adamw_options *o = options ? options : &defaults;
    if (!parameter) return NULL;
    if (o->size != sizeof *o)
        return tpi_build_fail(tp_lazy_graph(parameter), TPI_ADAMW, TP_EINVAL,
                              "options.size is %zu, expected %zu", o->size, sizeof *o);
    const tpi_attr_adamw attr = {o->beta1, o->beta2, o->eps, o->weight_decay};
    tp_lazy *next =
        TPI_RECORD(TPI_ADAMW, ((tp_lazy *[]){parameter, m, v, gradient, step, gradient_scale}), 6, attr);
    tp_lazy *next_m = tpi_record_part(next, 1), *next_v = tpi_record_part(next, 2);
    if (!tp_lazy_assign(m, next_m) || !tp_lazy_assign(v, next_v)) return NULL;
    return tp_lazy_assign(parameter, next);
}
