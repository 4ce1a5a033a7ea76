/* The eager interface: each function is its lazy twin in a private graph, evaluated at once. One macro makes
 * them all: EAGER(name, an operand to find the context by, parameters, the recording). */
#include "taper/eager.h"

#include "graph/graph.h"

static tp_status take_graph(const char *function, const tp_tensor *operand, tp_tensor **out,
                            tp_graph **graph) {
    if (!out) return tpi_fail(TP_EINVAL, "%s: out is NULL", function);
    *out = NULL;
    if (!operand) return tpi_fail(TP_EINVAL, "%s: the first operand is NULL", function);
    return tpi_context_graph_take(operand->storage->device->context, graph);
}

static tp_status evaluate(tp_graph *graph, tp_lazy *value, tp_tensor **out) {
    tp_context *ctx = graph->context;
    tp_status status = graph->status;
    if (status == TP_OK)
        status = tp_graph_eval(graph, &value, 1, out);
    else
        tpi_fail(status, "%s", graph->message);
    tpi_context_graph_give(ctx, graph);
    return status;
}

static tp_lazy *operand(tp_graph *graph, const char *function, const char *name, tp_tensor *tensor) {
    if (!tensor) return tpi_graph_fail(graph, TP_EINVAL, "%s: %s is NULL", function, name);
    return tp_lazy_from_tensor(graph, tensor);
}

#define EAGER(name, first, parameters, recording)                                                            \
    tp_status tp_tensor_##name parameters {                                                                  \
        tp_graph *graph;                                                                                     \
        tp_status status = take_graph(__func__, first, out, &graph);                                         \
        return status == TP_OK ? evaluate(graph, recording, out) : status;                                   \
    }

/* In a recording: an operand, and one that may be NULL. */
#define X(tensor)        operand(graph, __func__, #tensor, tensor)
#define OPTIONAL(tensor) ((tensor) ? tp_lazy_from_tensor(graph, tensor) : NULL)

/* clang-format takes the lists of parameters for products. */
/* clang-format off */
#define UNARY(name)  EAGER(name, x, (tp_tensor *x, tp_tensor **out), tp_lazy_##name(X(x)))
#define SCALAR(name) EAGER(name, x, (tp_tensor *x, double s, tp_tensor **out), tp_lazy_##name(X(x), s))
#define BINARY(name, a, b)                                                                                   \
    EAGER(name, a, (tp_tensor *a, tp_tensor *b, tp_tensor **out), tp_lazy_##name(X(a), X(b)))
#define TERNARY(name, a, b, c)                                                                               \
    EAGER(name, a, (tp_tensor *a, tp_tensor *b, tp_tensor *c, tp_tensor **out),                          \
          tp_lazy_##name(X(a), X(b), X(c)))
#define REDUCE(name)                                                                                         \
    EAGER(name, x, (tp_tensor *x, int dim, bool keep, tp_tensor **out), tp_lazy_##name(X(x), dim, keep))

UNARY(neg)
UNARY(exp)
UNARY(log)
UNARY(sqrt)
UNARY(rsqrt)
UNARY(tanh)
UNARY(sigmoid)
UNARY(relu)
UNARY(silu)
UNARY(gelu)
UNARY(gelu_tanh)
SCALAR(mul_scalar)
SCALAR(add_scalar)
BINARY(add, a, b)
BINARY(sub, a, b)
BINARY(mul, a, b)
BINARY(div, a, b)
BINARY(minimum, a, b)
BINARY(maximum, a, b)
BINARY(silu_mul, gate, up)
EAGER(compare, a, (tp_tensor *a, tp_tensor *b, tp_compare how, tp_tensor **out),
      tp_lazy_compare(X(a), X(b), how))
TERNARY(where, condition, a, b)
EAGER(cast, x, (tp_tensor *x, tp_dtype dtype, tp_tensor **out), tp_lazy_cast(X(x), dtype))

REDUCE(sum)
REDUCE(mean)
REDUCE(max)
REDUCE(argmax)
REDUCE(logsumexp)
EAGER(softmax, x, (tp_tensor *x, int dim, tp_tensor **out), tp_lazy_softmax(X(x), dim))

EAGER(reshape, x, (tp_tensor *x, int rank, const int64_t *shape, tp_tensor **out),
      tp_lazy_reshape(X(x), rank, shape))
EAGER(transpose, x, (tp_tensor *x, int dim0, int dim1, tp_tensor **out), tp_lazy_transpose(X(x), dim0, dim1))
EAGER(permute, x, (tp_tensor *x, const int *dims, tp_tensor **out), tp_lazy_permute(X(x), dims))
EAGER(slice, x, (tp_tensor *x, int dim, int64_t begin, int64_t end, tp_tensor **out),
      tp_lazy_slice(X(x), dim, begin, end))
EAGER(pad, x, (tp_tensor *x, int dim, int64_t before, int64_t after, tp_tensor **out),
      tp_lazy_pad(X(x), dim, before, after))
EAGER(broadcast, x, (tp_tensor *x, int rank, const int64_t *shape, tp_tensor **out),
      tp_lazy_broadcast(X(x), rank, shape))

static tp_lazy *record_concat(tp_graph *graph, const char *function, tp_tensor *const *parts, int n,
                              int dim) {
    tp_lazy *nodes[TPI_MAX_IN];
    if (n > TPI_MAX_IN)
        return tpi_graph_fail(graph, TP_EINVAL, "%s: takes 1 to %d parts, got %d", function, TPI_MAX_IN, n);
    for (int k = 0; k < n; k++) nodes[k] = operand(graph, function, "a part", parts[k]);
    return tp_lazy_concat(nodes, n, dim);
}

EAGER(concat, parts &&n > 0 ? parts[0] : NULL, (tp_tensor *const *parts, int n, int dim, tp_tensor **out),
      record_concat(graph, __func__, parts, n, dim))
BINARY(gather, table, ids)
TERNARY(scatter_add, base, ids, values)
TERNARY(cache_write, cache, values, start)

BINARY(matmul, a, b)
EAGER(linear, x, (tp_tensor *x, tp_tensor *w, tp_tensor *bias, tp_tensor **out),
      tp_lazy_linear(X(x), X(w), OPTIONAL(bias)))
EAGER(lora_fused, x, (tp_tensor *x, tp_tensor *a, tp_tensor *b, double scale, tp_tensor **out),
      tp_lazy_lora_fused(X(x), X(a), X(b), scale))
EAGER(linear_lora, x,
      (tp_tensor *x, tp_tensor *w, tp_tensor *a, tp_tensor *b, double scale, tp_tensor *bias,
       tp_tensor **out),
      tp_lazy_linear_lora(X(x), X(w), X(a), X(b), scale, OPTIONAL(bias)))

EAGER(rms_norm, x, (tp_tensor *x, tp_tensor *weight, double eps, tp_tensor **out),
      tp_lazy_rms_norm(X(x), OPTIONAL(weight), eps))
EAGER(layer_norm, x, (tp_tensor *x, tp_tensor *weight, tp_tensor *bias, double eps, tp_tensor **out),
      tp_lazy_layer_norm(X(x), OPTIONAL(weight), OPTIONAL(bias), eps))
EAGER(rope, x,
      (tp_tensor *x, tp_tensor *positions, tp_tensor *frequencies, tp_rope_layout layout, tp_tensor **out),
      tp_lazy_rope(X(x), X(positions), X(frequencies), layout))

static tp_lazy *record_attention(tp_graph *graph, tp_lazy *q, tp_lazy *k, tp_lazy *v,
                                 const tp_tensor_attention_options *o) {
    tp_attention_options lazy = TP_ATTENTION_OPTIONS_INIT;
    if (!o) return tp_lazy_attention(q, k, v, NULL);
    if (o->size != sizeof *o)
        return tpi_graph_fail(graph, TP_EINVAL, "attention: options.size is %zu, expected %zu", o->size,
                              sizeof *o);
    lazy.scale = o->scale;
    lazy.causal = o->causal;
    lazy.window = o->window;
    lazy.start = OPTIONAL(o->start);
    lazy.lengths = OPTIONAL(o->lengths);
    lazy.mask = OPTIONAL(o->mask);
    return tp_lazy_attention(q, k, v, &lazy);
}

EAGER(attention, q,
      (tp_tensor *q, tp_tensor *k, tp_tensor *v, const tp_tensor_attention_options *options,
       tp_tensor **out),
      record_attention(graph, X(q), X(k), X(v), options))
EAGER(cross_entropy, logits, (tp_tensor *logits, tp_tensor *labels, int32_t ignore, tp_tensor **out),
      tp_lazy_cross_entropy(X(logits), X(labels), ignore))
EAGER(linear_cross_entropy, h,
      (tp_tensor *h, tp_tensor *w, tp_tensor *labels, int32_t ignore, tp_tensor **out),
      tp_lazy_linear_cross_entropy(X(h), X(w), X(labels), ignore))
EAGER(dropout, x, (tp_tensor *x, tp_tensor *seed, double rate, uint32_t stream, tp_tensor **out),
      tp_lazy_dropout(X(x), X(seed), rate, stream))
EAGER(adamw, parameter,
      (tp_tensor *parameter, tp_tensor *m, tp_tensor *v, tp_tensor *gradient, tp_tensor *step,
       tp_tensor *gradient_scale, const tp_adamw_options *options, tp_tensor **out),
      tp_lazy_adamw(X(parameter), X(m), X(v), X(gradient), X(step), X(gradient_scale), options))
/* clang-format on */
