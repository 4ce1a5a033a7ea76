/* The forward pass of Llama, Mistral, Qwen2 and Qwen3 (Touvron et al. 2023; Jiang et al. 2023; Qwen 2024,
 * 2025):
 *
 *     x = embedding[tokens]
 *     each layer:  x = x + attention(norm(x));  x = x + down(silu(gate(n)) · up(n)) with n = norm(x)
 *     logits = head(norm(x))
 *
 * The families differ in what the configuration says: biases, norms of q and k, windows. */
#include "models/adapter.h"
#include "models/model.h"

#include "core/alloc.h"
#include "graph/node.h"
#include "taper/ops.h"

/* What all layers of one pass share. */
typedef struct pass {
    const tp_model *model;
    const tp_forward *forward;
    tp_graph *graph;
    int64_t batch, length;
    tp_lazy *positions, *frequencies;
    tp_lazy *start; /* NULL without a cache */
} pass;

static tp_lazy *weight(const pass *p, int64_t layer, tpi_slot slot) {
    return tp_lazy_from_tensor(p->graph, tpi_model_weight(p->model, layer, slot));
}

static tp_lazy *norm(const pass *p, tp_lazy *x, int64_t layer, tpi_slot slot) {
    return tp_lazy_rms_norm(x, weight(p, layer, slot), p->model->config.norm_eps);
}

/* Linear layer `index` with its adapters: x [..., in] → [..., out]. */
static tp_lazy *linear(const pass *p, tp_lazy *x, int index) {
    tpi_update updates[TPI_MAX_USES];
    tp_tensor *bias, *w = tpi_model_linear_weight(p->model, index, &bias);
    int count = tpi_adapter_updates(p->forward->adapters, p->forward->adapter_count, index, updates);
    return tpi_linear_lazy(x, w, bias, updates, count, p->forward->dropout_seed);
}

static tp_lazy *project(const pass *p, tp_lazy *x, int64_t layer, tpi_linear_kind kind) {
    return linear(p, x, (int)layer * TPI_LINEARS + (int)kind);
}

/* ---- attention ---- */

/* [B, T, heads · D] → [B, T, heads, D] */
static tp_lazy *split_heads(const pass *p, tp_lazy *x, int64_t heads) {
    return tp_lazy_reshape(x, 4, (int64_t[]){p->batch, p->length, heads, p->model->config.head_dim});
}

/* Queries or keys: split, normalised where the family does, rotated by their positions. */
static tp_lazy *rotated(const pass *p, tp_lazy *x, int64_t layer, int64_t heads, tpi_slot head_norm) {
    tp_lazy *y = split_heads(p, x, heads);
    if (p->model->config.family->qk_norm) y = norm(p, y, layer, head_norm);
    return tp_lazy_rope(y, p->positions, p->frequencies, TP_ROPE_HALF);
}

/* The cache's tensor with `x` written at `start`, as the evaluation will leave it. */
static tp_lazy *remember(const pass *p, tp_tensor *state, tp_lazy *x) {
    tp_lazy *old = tp_lazy_from_tensor(p->graph, state);
    return tp_lazy_assign(old, tp_lazy_cache_write(old, x, p->start));
}

static tp_lazy *attention(const pass *p, tp_lazy *x, int64_t layer) {
    const tpi_model_config *c = &p->model->config;
    /* Products of one x follow each other, so that a backend may make them together. */
    tp_lazy *q = project(p, x, layer, TPI_LINEAR_Q), *k = project(p, x, layer, TPI_LINEAR_K),
            *v = project(p, x, layer, TPI_LINEAR_V);
    q = rotated(p, q, layer, c->heads, TPI_SLOT_Q_NORM);
    k = rotated(p, k, layer, c->kv_heads, TPI_SLOT_K_NORM);
    v = split_heads(p, v, c->kv_heads);
    if (p->forward->cache) {
        k = remember(p, p->forward->cache->keys[layer], k);
        v = remember(p, p->forward->cache->values[layer], v);
    }
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.causal = true;
    options.window = tpi_model_config_window(c, layer);
    options.start = p->start;
    options.lengths = p->forward->lengths;
    tp_lazy *y = tp_lazy_attention(q, k, v, &options);
    y = tp_lazy_reshape(y, 3, (int64_t[]){p->batch, p->length, c->heads * c->head_dim});
    return project(p, y, layer, TPI_LINEAR_O);
}

/* ---- layers ---- */

static tp_lazy *mlp(const pass *p, tp_lazy *x, int64_t layer) {
    tp_lazy *gate = project(p, x, layer, TPI_LINEAR_GATE), *up = project(p, x, layer, TPI_LINEAR_UP);
    return project(p, tp_lazy_silu_mul(gate, up), layer, TPI_LINEAR_DOWN);
}

static tp_lazy *block(const pass *p, tp_lazy *x, int64_t layer) {
    x = tp_lazy_add(x, attention(p, norm(p, x, layer, TPI_SLOT_ATTENTION_NORM), layer));
    return tp_lazy_add(x, mlp(p, norm(p, x, layer, TPI_SLOT_MLP_NORM), layer));
}

/* A layer whose inner values are not kept for the backward pass. */
static tp_lazy *recomputed_block(const pass *p, tp_lazy *x, int64_t layer) {
    if (tp_graph_recompute_begin(p->graph) != TP_OK)
        return tpi_graph_fail(p->graph, TP_EINVAL, "model: recompute inside a segment of the caller's");
    x = block(p, x, layer);
    tp_graph_recompute_end(p->graph);
    return x;
}

/* ---- the ends ---- */

/* 0 ... length-1 as i32 [1, length]. */
static tp_lazy *count_up(const pass *p) {
    int32_t *values = tpi_calloc((size_t)p->length, sizeof *values);
    if (!values) return tpi_graph_fail(p->graph, TP_ENOMEM, "%s", tp_error_message());
    for (int64_t t = 0; t < p->length; t++) values[t] = (int32_t)t;
    tp_lazy *x = tp_lazy_from_slice(p->graph, p->model->device, TP_I32, 2, (int64_t[]){1, p->length}, values);
    tpi_free(values);
    return x;
}

static tp_lazy *make_positions(const pass *p) {
    if (p->forward->positions) return p->forward->positions;
    tp_lazy *first = p->start ? tp_lazy_reshape(p->start, 2, (int64_t[]){p->batch, 1}) : NULL;
    if (first && p->length == 1) return first;
    tp_lazy *steps = count_up(p);
    if (first) return tp_lazy_add(first, steps);
    return tp_lazy_broadcast(steps, 2, (int64_t[]){p->batch, p->length});
}

static tp_lazy *embed(const pass *p) {
    tp_tensor *table = tpi_model_outer_weight(p->model, TPI_SLOT_EMBEDDING);
    tp_lazy *x = tp_lazy_gather(tp_lazy_from_tensor(p->graph, table), p->forward->tokens);
    return tp_lazy_cast(x, p->model->activations);
}

/* The chosen rows of x [B, T, H]: [N, H]. */
static tp_lazy *choose_rows(const pass *p, tp_lazy *x) {
    if (!p->forward->rows) return x;
    const int64_t shape[] = {p->batch * p->length, p->model->config.hidden_size};
    return tp_lazy_gather(tp_lazy_reshape(x, 2, shape), p->forward->rows);
}

/* ---- the whole ---- */

static tp_status check_forward(const tp_model *model, const tp_forward *f) {
    if (f->size != sizeof *f)
        return tpi_fail(TP_EINVAL, "forward.size is %zu, expected %zu", f->size, sizeof *f);
    if (tp_lazy_rank(f->tokens) != 2)
        return tpi_fail(TP_ESHAPE, "tokens have %d dimensions, expected 2: [batch, length]",
                        tp_lazy_rank(f->tokens));
    if (f->cache && f->cache->model != model)
        return tpi_fail(TP_EINVAL, "the cache belongs to another model");
    if (f->start && !f->cache) return tpi_fail(TP_EINVAL, "start without a cache");
    return tpi_adapter_check_uses(model, f->adapters, f->adapter_count);
}

/* False, with the error in the graph, where there is nothing to record. */
static bool begin(pass *p, const tp_model *model, const tp_forward *f) {
    if (!model || !f || !f->tokens) return false;
    tp_graph *g = tp_lazy_graph(f->tokens);
    tp_status status = check_forward(model, f);
    if (status != TP_OK) {
        tpi_graph_fail(g, status, "model: %s", tp_error_message());
        return false;
    }
    *p = (pass){.model = model, .forward = f, .graph = g};
    p->batch = tp_lazy_size(f->tokens, 0);
    p->length = tp_lazy_size(f->tokens, 1);
    if (f->cache) p->start = f->start ? f->start : tp_lazy_zeros(g, model->device, TP_I32, 1, &p->batch);
    p->positions = make_positions(p);
    p->frequencies = tp_lazy_from_tensor(g, model->frequencies);
    return p->positions && p->frequencies;
}

static tp_lazy *hidden(const pass *p) {
    tp_lazy *x = embed(p);
    for (int64_t layer = 0; layer < p->model->config.layers; layer++)
        x = p->forward->recompute ? recomputed_block(p, x, layer) : block(p, x, layer);
    tp_tensor *w = tpi_model_outer_weight(p->model, TPI_SLOT_FINAL_NORM);
    return tp_lazy_rms_norm(choose_rows(p, x), tp_lazy_from_tensor(p->graph, w), p->model->config.norm_eps);
}

tp_lazy *tp_model_hidden_lazy(const tp_model *model, const tp_forward *forward) {
    pass p;
    return begin(&p, model, forward) ? hidden(&p) : NULL;
}

tp_lazy *tp_model_forward_lazy(const tp_model *model, const tp_forward *forward) {
    pass p;
    return begin(&p, model, forward) ? linear(&p, hidden(&p), tpi_model_head_index(model)) : NULL;
}

/* The head's weight [out, in] where the head is that product alone and nobody trains it, else NULL. */
static tp_tensor *plain_head(const pass *p) {
    tpi_update updates[TPI_MAX_USES];
    int head = tpi_model_head_index(p->model);
    tp_tensor *bias, *w = tpi_model_linear_weight(p->model, head, &bias);
    int count = tpi_adapter_updates(p->forward->adapters, p->forward->adapter_count, head, updates);
    return bias || count > 0 || p->model->options.trainable ? NULL : w;
}

tp_lazy *tp_model_loss_lazy(const tp_model *model, const tp_forward *forward, tp_lazy *labels,
                            int32_t ignore) {
    pass p;
    if (!begin(&p, model, forward)) return NULL;
    tp_lazy *x = hidden(&p);
    tp_tensor *w = plain_head(&p);
    if (!w) return tp_lazy_cross_entropy(linear(&p, x, tpi_model_head_index(model)), labels, ignore);
    tp_lazy *head = tp_lazy_transpose(tp_lazy_from_tensor(p.graph, w), 0, 1);
    return tp_lazy_linear_cross_entropy(x, head, labels, ignore);
}
