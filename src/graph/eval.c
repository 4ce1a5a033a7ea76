/* Evaluating a graph: find the plan, check what can be checked before running, run, and only then let the
 * graph know. A failure at any point leaves graph, state and results as they were. */
#include "graph/eval.h"
#include "core/alloc.h"
#include "core/text.h"
#include "graph/evaluation.h"

#include <limits.h>
#include <string.h>

/* ---- before running ---- */

static tp_status check_outputs(const tp_graph *graph, tp_lazy *const *outputs, int n) {
    for (int i = 0; i < n; i++) {
        if (!outputs[i]) return tpi_fail(TP_EINVAL, "eval: output %d is NULL", i);
        if (outputs[i]->graph != graph)
            return tpi_fail(TP_EGRAPH, "eval: output %d belongs to another graph", i);
        if (outputs[i]->generation != graph->generation)
            return tpi_fail(TP_EGRAPH, "eval: output %d was recorded before the graph was reset", i);
    }
    return TP_OK;
}

static tp_status check_leaves(const tpi_order *order, const tpi_plan *plan) {
    for (uint32_t i = 0; i < plan->n_leaves; i++) {
        const tp_lazy *leaf = order->nodes[plan->leaves[i]];
        if (leaf->version != tpi_storage_version(leaf->value->storage))
            return tpi_fail(TP_ESTALE, "eval: node %u reads state that was assigned after it was recorded",
                            leaf->id);
    }
    return TP_OK;
}

/* Assignments are made by the plan of the outputs, so they are on its device. */
static tp_status check_devices(const tp_graph *graph, tp_lazy *const *outputs, int n) {
    const tp_lazy *first = n > 0 ? outputs[0] : NULL;
    for (size_t i = 0; i < (size_t)n + graph->assigned_count; i++) {
        const tp_lazy *node = i < (size_t)n ? outputs[i] : graph->tape.nodes[graph->assigned[i - (size_t)n]];
        if (!first) first = node;
        if (node->device != first->device)
            return tpi_fail(TP_EINVAL,
                            "eval: node %u is on %s, node %u on %s: outputs and assignments of one "
                            "evaluation are on one device",
                            node->id, node->device->name, first->id, first->device->name);
    }
    return TP_OK;
}

static tp_status check_request(const tp_graph *graph, tp_lazy *const *outputs, int n) {
    if (!graph) return tpi_fail(TP_EINVAL, "eval: graph is NULL");
    if (graph->status != TP_OK) return tpi_fail(graph->status, "%s", graph->message);
    if (n < 0 || (n > 0 && !outputs)) return tpi_fail(TP_EINVAL, "eval: outputs is NULL");
    TPI_TRY(check_outputs(graph, outputs, n));
    return check_devices(graph, outputs, n);
}

/* With outputs that were checked. */
static tp_status plan_of(tp_graph *graph, tp_lazy *const *outputs, int n, tpi_order *order, tpi_plan **plan) {
    *plan = NULL;
    TPI_TRY(tpi_linearise(graph, outputs, n, order));
    if (order->crosses) return TP_OK;
    TPI_TRY(tpi_plan_find(graph, order, plan));
    return check_leaves(order, *plan);
}

tp_status tpi_find_plan(tp_graph *graph, tp_lazy *const *outputs, int n, tpi_order *order, tpi_plan **plan) {
    *plan = NULL;
    TPI_TRY(check_request(graph, outputs, n));
    return plan_of(graph, outputs, n, order, plan);
}

/* ---- evaluating ---- */

static void set_asked(tp_lazy *const *outputs, int n, bool asked) {
    for (int i = 0; i < n; i++) outputs[i]->asked = asked;
}

/* Appends to the outputs, of which the caller gave the first `n`. */
static tp_status push_output(tp_graph *graph, tp_lazy *const *outputs, int n, int *total, tp_lazy *more) {
    if (*total == INT_MAX) return tpi_fail(TP_EINVAL, "eval: more than %d outputs", INT_MAX);
    TPI_TRY(tpi_grow(&graph->outputs, &graph->outputs_capacity, (size_t)*total + 1, sizeof(tp_lazy *)));
    if (*total == n) memcpy(graph->outputs, outputs, (size_t)n * sizeof(tp_lazy *));
    graph->outputs[(*total)++] = more;
    more->asked = true;
    return TP_OK;
}

/* An evaluated operation is a leaf and cannot run again, so its further outputs that were recorded are
 * evaluated with output 0, where they are not asked for anyway. */
static tp_status add_parts(tp_graph *graph, tp_lazy *const **outputs, int *n) {
    tp_status status = TP_OK;
    int total = *n;
    set_asked(*outputs, *n, true);
    for (int i = 0; i < *n; i++) {
        const tp_lazy *producer = (*outputs)[i];
        if (producer->value || producer->record.op == TPI_PART) continue;
        for (tp_lazy *part = producer->parts; part; part = part->parts)
            if (status == TP_OK && !part->value && !part->asked)
                status = push_output(graph, *outputs, *n, &total, part);
    }
    if (total > *n) *outputs = graph->outputs;
    *n = total;
    set_asked(*outputs, total, false);
    return status;
}

/* Evaluates what the first node that comes from another device is a copy of, and makes it a leaf: a plan has
 * one device. Pending assignments wait for the evaluation's own plan. */
static tp_status cross(tp_graph *graph, const tpi_order *order) {
    size_t i = order->count - 1;
    while (order->nodes[i]->record.op != TPI_TO_DEVICE) i--;
    tp_lazy *node = order->nodes[i], *source = tpi_node_input(node, 0);
    while (source->record.op == TPI_ASSIGN)
        source = tpi_node_input(source, 1); /* its value is what is assigned */
    const size_t assigned = graph->assigned_count;
    tp_tensor *value = NULL, *copy = NULL;
    graph->assigned_count = 0;
    tp_status status = tp_graph_eval(graph, &source, 1, &value);
    graph->assigned_count = assigned;
    if (status == TP_OK) status = tp_tensor_to_device(value, node->device, &copy);
    if (status == TP_OK) status = tpi_leaves_reserve(graph, 1);
    tp_tensor_release(value);
    if (status == TP_OK)
        tpi_node_become_leaf(node, copy);
    else
        tp_tensor_release(copy);
    return status;
}

/* What is asked of a graph, until it is done. */
typedef struct request {
    tp_graph *graph;
    tpi_order order;
    uint32_t n_wanted; /* outputs that the caller asked for; further ones follow */
    tpi_evaluation evaluation;
} request;

/* *plan is NULL where something has to be brought from another device first. */
static tp_status look_for_plan(request *r, tp_lazy *const *outputs, int n, tpi_plan **plan) {
    TPI_TRY(check_request(r->graph, outputs, n));
    r->n_wanted = (uint32_t)n;
    TPI_TRY(add_parts(r->graph, &outputs, &n));
    return plan_of(r->graph, outputs, n, &r->order, plan);
}

static tp_status find_plan(request *r, tp_lazy *const *outputs, int n, tpi_plan **plan) {
    for (;;) {
        TPI_TRY(look_for_plan(r, outputs, n, plan));
        if (*plan) return TP_OK;
        TPI_TRY(cross(r->graph, &r->order));
    }
}

/* The plan alone: nothing runs. */
static tp_status only_plan(request *r, tp_lazy *const *outputs, int n, tpi_plan **plan) {
    TPI_TRY(look_for_plan(r, outputs, n, plan));
    return *plan
               ? TP_OK
               : tpi_fail(TP_EUNSUPPORTED, "the recording copies between devices, so its plan is known only "
                                           "when what comes first has been evaluated");
}

static tp_status lay_out(request *r, tpi_plan *plan) {
    tp_graph *graph = r->graph;
    TPI_TRY(
        tpi_grow(&graph->pointers, &graph->pointers_capacity, tpi_evaluation_pointers(plan), sizeof(void *)));
    TPI_TRY(tpi_leaves_reserve(graph, (size_t)plan->n_results + plan->n_assigned));
    tpi_evaluation_init(&r->evaluation, graph->context, plan, graph->pointers);
    for (uint32_t i = 0; i < plan->n_leaves; i++)
        r->evaluation.leaves[i] = r->order.nodes[plan->leaves[i]]->value;
    return TP_OK;
}

/* Hands out results; outputs and assignments become leaves. Nothing here can fail. */
static void commit(request *r, tp_tensor **results) {
    tp_graph *graph = r->graph;
    tpi_evaluation *e = &r->evaluation;
    const tpi_plan *plan = e->run.plan;
    for (uint32_t i = 0; i < plan->n_assigned; i++) { /* of two to one state, the first is stale at once */
        tp_tensor *state = tp_tensor_retain(e->leaves[plan->assigned[i]]);
        state->storage->version++;
        tpi_node_become_leaf(graph->tape.nodes[graph->assigned[i]], state);
    }
    for (uint32_t i = 0; i < plan->n_results; i++) {
        if (results && i < r->n_wanted) results[i] = tp_tensor_retain(e->results[i]);
        if (r->order.outputs[i]->value) continue;
        tpi_node_become_leaf(r->order.outputs[i], e->results[i]);
        e->results[i] = NULL;
    }
    graph->assigned_count = 0;
    graph->evaluated_bytes = graph->tape.arena.bytes;
}

static tp_status evaluate(tp_graph *graph, tp_lazy *const *outputs, int n, tp_tensor **results, bool queued,
                          tp_event **event) {
    request r = {.graph = graph};
    tpi_plan *plan;
    for (int i = 0; results && i < n; i++) results[i] = NULL;
    TPI_TRY(find_plan(&r, outputs, n, &plan));
    TPI_TRY(lay_out(&r, plan));
    tp_status status = tpi_evaluation_perform(&r.evaluation, queued, event);
    if (status == TP_OK) commit(&r, results);
    tpi_evaluation_discard(&r.evaluation);
    return status;
}

tp_status tp_graph_eval(tp_graph *graph, tp_lazy *const *outputs, int n, tp_tensor **results) {
    return evaluate(graph, outputs, n, results, false, NULL);
}

tp_status tp_lazy_eval(tp_lazy *x, tp_tensor **out) {
    if (out) *out = NULL;
    if (!x) return tpi_fail(TP_EINVAL, "eval: the node is NULL: ask its graph's status for the reason");
    return tp_graph_eval(x->graph, &x, 1, out);
}

tp_status tp_graph_eval_async(tp_graph *graph, tp_lazy *const *outputs, int n, tp_tensor **results,
                              tp_event **event) {
    if (event) *event = NULL;
    return evaluate(graph, outputs, n, results, true, event);
}

tp_status tp_lazy_eval_async(tp_lazy *x, tp_tensor **out, tp_event **event) {
    if (out) *out = NULL;
    if (event) *event = NULL;
    if (!x) return tpi_fail(TP_EINVAL, "eval: the node is NULL: ask its graph's status for the reason");
    return tp_graph_eval_async(x->graph, &x, 1, out, event);
}

/* ---- plans without running ---- */

tp_status tp_graph_memory(tp_graph *graph, tp_lazy *const *outputs, int n, uint64_t *bytes) {
    request r = {.graph = graph};
    tpi_plan *plan;
    TPI_TRY(only_plan(&r, outputs, n, &plan));
    *bytes = plan->arena_bytes + plan->buffer_bytes;
    return TP_OK;
}

typedef struct explanation {
    tpi_text text;
    tp_status status;
} explanation;

static void add_line(void *user, const char *line) {
    explanation *e = user;
    if (e->status == TP_OK) e->status = tpi_text_append(&e->text, line, strlen(line));
    if (e->status == TP_OK) e->status = tpi_text_append(&e->text, "\n", 2);
    if (e->status == TP_OK) e->text.length--; /* the NUL does not count */
}

tp_status tp_graph_explain(tp_graph *graph, tp_lazy *const *outputs, int n, char **out) {
    request r = {.graph = graph};
    tpi_plan *plan;
    explanation e = {0};
    *out = NULL;
    tp_status status = only_plan(&r, outputs, n, &plan);
    if (status == TP_OK) {
        tpi_plan_describe(plan, add_line, &e);
        status = e.status;
    }
    if (status != TP_OK)
        tpi_text_free(&e.text);
    else
        *out = e.text.data;
    return status;
}
