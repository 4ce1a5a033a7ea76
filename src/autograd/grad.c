/* Gradients: one sweep down the ordinals from the loss. Inputs have smaller ordinals than their users, so a
 * node's gradient is complete when the sweep meets it, and no recursion or sorting is needed. */
#include "autograd/reverse.h"
#include "autograd/vjp.h"

#include "core/alloc.h"
#include "core/convert.h"

#include <stdio.h>
#include <string.h>

/* ---- arguments ---- */

static tp_status sticky(const tp_graph *graph) {
    return tpi_fail(graph->status, "%s", graph->message);
}

static tp_status check_node(tp_graph *graph, const tp_lazy *node, const char *what) {
    if (!node) return tpi_fail(TP_EINVAL, "%s is NULL", what);
    if (node->graph != graph) return tpi_fail(TP_EGRAPH, "%s belongs to another graph", what);
    if (node->generation != graph->generation)
        return tpi_fail(TP_EGRAPH, "%s was recorded before the graph was reset", what);
    if (!tpi_is_float((tp_dtype)node->record.dtype))
        return tpi_fail(TP_EDTYPE, "%s is %s, expected a floating dtype", what,
                        tp_dtype_name(tp_lazy_dtype(node)));
    return TP_OK;
}

static tp_status check_arguments(tp_graph *graph, const tp_lazy *loss, tp_lazy *const *wrt, int n) {
    bool loss_wanted = false;
    if (n < 0 || (n > 0 && !wrt)) return tpi_fail(TP_EINVAL, "%d nodes to differentiate by", n);
    if (graph->segment) return tpi_fail(TP_EINVAL, "a recompute segment is open");
    TPI_TRY(check_node(graph, loss, "the loss"));
    if (tpi_node_count(loss) != 1) {
        char text[TPI_SHAPE_TEXT];
        return tpi_fail(TP_EINVAL, "the loss has shape %s, expected one element",
                        tpi_shape_text(loss->record.rank, tpi_node_shape(loss), text));
    }
    for (int i = 0; i < n; i++) {
        char what[24];
        snprintf(what, sizeof what, "wrt[%d]", i);
        TPI_TRY(check_node(graph, wrt[i], what));
        loss_wanted = loss_wanted || wrt[i] == loss;
    }
    if (loss->record.op == TPI_LEAF && !loss_wanted)
        return tpi_fail(TP_EINVAL, "the loss is a leaf: record gradients before evaluating it");
    return TP_OK;
}

/* ---- the walk ---- */

static tp_lazy *node_at(const tpi_reverse *reverse, uint32_t id) {
    return reverse->graph->tape.nodes[id];
}

/* Marks what depends on a wanted node, upwards from `first`. Integers carry no gradient. */
static void mark_needs(tpi_reverse *reverse, uint32_t first) {
    for (uint32_t id = first; id <= reverse->loss->id; id++) {
        const tp_lazy *node = node_at(reverse, id);
        bool *needs = &reverse->needs[id];
        if (!tpi_is_float((tp_dtype)node->record.dtype)) continue;
        for (int k = 0; k < node->record.n_in && !*needs; k++)
            *needs = reverse->needs[id - tpi_node_distances(node)[k]];
    }
}

static tp_status no_gradient(const tp_graph *graph, const tp_lazy *node, int k) {
    const tpi_op_desc *desc = &tpi_ops[node->record.op];
    if (graph->status != TP_OK) return sticky(graph);
    if (!desc->vjp) return tpi_fail(TP_EUNSUPPORTED, "%s (node %u) has no gradient", desc->name, node->id);
    return tpi_fail(TP_EUNSUPPORTED, "%s (node %u) has no gradient for input %d of (%s)", desc->name,
                    node->id, k, desc->inputs);
}

static bool same_kind(const tp_lazy *a, const tp_lazy *b) {
    return a->record.dtype == b->record.dtype && a->record.rank == b->record.rank &&
           !memcmp(tpi_node_shape(a), tpi_node_shape(b), a->record.rank * sizeof(int64_t));
}

static tp_status accumulate(tpi_reverse *reverse, const tp_lazy *node, const tp_lazy *input, tp_lazy *dx) {
    tp_lazy **sum = &reverse->gradient[input->id];
    if (!same_kind(dx, input))
        return tpi_fail(TP_EINTERNAL, "the rule of %s gives a gradient unlike its input",
                        tpi_ops[node->record.op].name);
    *sum = *sum ? tp_lazy_add(*sum, dx) : dx;
    return *sum ? TP_OK : sticky(reverse->graph);
}

/* Applies the node's rule and adds what it gives to its inputs' gradients. */
static tp_status step(tpi_reverse *reverse, tp_lazy *node, tp_lazy *dy) {
    bool wanted[TPI_MAX_IN], any = false;
    tp_lazy *dx[TPI_MAX_IN];
    int n_in = node->record.n_in;
    for (int k = 0; k < n_in; k++) {
        dx[k] = NULL;
        wanted[k] = reverse->needs[tpi_node_input(node, k)->id];
        any = any || wanted[k];
    }
    if (!any) return TP_OK;
    tpi_vjp call = {node, dy, wanted, dx, reverse};
    if (!tpi_ops[node->record.op].vjp) return no_gradient(reverse->graph, node, 0);
    tpi_ops[node->record.op].vjp(&call);
    for (int k = 0; k < n_in; k++) {
        if (!wanted[k]) continue;
        if (!dx[k]) return no_gradient(reverse->graph, node, k);
        TPI_TRY(accumulate(reverse, node, tpi_node_input(node, k), dx[k]));
    }
    return TP_OK;
}

static tp_lazy *filled_like(const tp_lazy *x, double value) {
    return tp_lazy_full(x->graph, x->device, tp_lazy_dtype(x), x->record.rank, tpi_node_shape(x), value);
}

static tp_status walk(tpi_reverse *reverse, tp_lazy *const *wrt, int n) {
    uint32_t last = reverse->loss->id, first = last;
    for (int i = 0; i < n; i++) {
        if (wrt[i]->id > last) continue;
        reverse->needs[wrt[i]->id] = true;
        if (wrt[i]->id < first) first = wrt[i]->id;
    }
    mark_needs(reverse, first);
    if (!reverse->needs[last]) return TP_OK;
    if (!(reverse->gradient[last] = filled_like(reverse->loss, 1.0))) return sticky(reverse->graph);
    for (uint32_t id = last; id > first; id--) /* `first` has no input that is needed */
        if (reverse->gradient[id]) TPI_TRY(step(reverse, node_at(reverse, id), reverse->gradient[id]));
    return TP_OK;
}

static bool is_state(const tp_lazy *x) {
    return x->record.op == TPI_LEAF || x->record.op == TPI_ASSIGN;
}

static tp_status collect(const tpi_reverse *reverse, tp_lazy *const *wrt, int n, tp_lazy **grads) {
    for (int i = 0; i < n; i++) {
        tp_lazy *gradient = wrt[i]->id <= reverse->loss->id ? reverse->gradient[wrt[i]->id] : NULL;
        if (!gradient)
            gradient = filled_like(wrt[i], 0.0);
        else if (is_state(gradient)) /* a value of its own, whatever is assigned later */
            gradient = tp_lazy_mul_scalar(gradient, 1.0);
        if (!(grads[i] = gradient)) return sticky(reverse->graph);
    }
    return TP_OK;
}

static tp_status run(tpi_reverse *reverse, tp_lazy *const *wrt, int n, tp_lazy **grads) {
    size_t count = (size_t)reverse->loss->id + 1;
    if (!(reverse->gradient = tpi_calloc(count, sizeof(tp_lazy *)))) return TP_ENOMEM;
    if (!(reverse->needs = tpi_calloc(count, sizeof(bool)))) return TP_ENOMEM;
    TPI_TRY(walk(reverse, wrt, n));
    return collect(reverse, wrt, n, grads);
}

/* An error sticks: a training step that goes on recording with NULL gradients must not pass for a sound one.
 */
static tp_status fail_graph(tp_graph *graph, tp_status status) {
    if (graph->status != TP_OK) return sticky(graph);
    tpi_fail_within(status, "grad (call %zu)", graph->tape.count);
    tpi_graph_fail(graph, status, "%s", tp_error_message());
    return status;
}

static tp_status differentiate(tp_graph *graph, tp_lazy *loss, tp_lazy *const *wrt, int n, tp_lazy **grads) {
    if (!graph) return tpi_fail(TP_EINVAL, "grad: graph is NULL");
    if (graph->status != TP_OK) return sticky(graph);
    tpi_reverse reverse = {.graph = graph, .loss = loss};
    tp_status status = check_arguments(graph, loss, wrt, n);
    if (status == TP_OK) status = run(&reverse, wrt, n, grads);
    tpi_free(reverse.gradient);
    tpi_free(reverse.needs);
    tpi_free(reverse.clone);
    tpi_free(reverse.stack);
    return status == TP_OK ? TP_OK : fail_graph(graph, status);
}

tp_status tp_graph_grad(tp_graph *graph, tp_lazy *loss, tp_lazy *const *wrt, int n, tp_lazy **grads) {
    if (n > 0 && !grads) return tpi_fail(TP_EINVAL, "grad: grads is NULL");
    tp_status status = differentiate(graph, loss, wrt, n, grads);
    for (int i = 0; status != TP_OK && i < n; i++) grads[i] = NULL;
    return status;
}
