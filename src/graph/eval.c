/* Evaluation: find the plan, check what can be checked before running, make the results, run, and only then
 * let the graph know. A failure at any point leaves graph, state and results as they were. */
#include "graph/run.h"
#include "core/alloc.h"

#include <limits.h>
#include <string.h>

typedef struct evaluation {
    tp_graph *graph;
    tpi_order order;
    uint32_t n_wanted;   /* outputs that the caller asked for; further ones follow */
    tpi_plan *plan;      /* the graph's last */
    tpi_storage **fresh; /* one for each result buffer; owned */
    tp_tensor **results; /* one for each output; owned */
    tpi_run run;
} evaluation;

static tp_lazy *leaf_node(const evaluation *e, uint32_t leaf) {
    return e->order.nodes[e->plan->leaves[leaf]];
}

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

/* An evaluated operation is a leaf and cannot run again, so its further outputs that were recorded are
 * evaluated with output 0. */
static tp_status add_parts(tp_graph *graph, tp_lazy *const **outputs, int *n) {
    size_t total = (size_t)*n;
    for (int i = 0; i < *n; i++)
        for (tp_lazy *part = (*outputs)[i]->parts; part && !(*outputs)[i]->value; part = part->parts)
            total += !part->value;
    if (total == (size_t)*n) return TP_OK;
    if (total > INT_MAX) return tpi_fail(TP_EINVAL, "eval: %zu outputs are too many", total);
    TPI_TRY(tpi_grow(&graph->outputs, &graph->outputs_capacity, total, sizeof(tp_lazy *)));
    memcpy(graph->outputs, *outputs, (size_t)*n * sizeof(tp_lazy *));
    tp_lazy **next = graph->outputs + *n;
    for (int i = 0; i < *n; i++)
        for (tp_lazy *part = (*outputs)[i]->parts; part && !(*outputs)[i]->value; part = part->parts)
            if (!part->value) *next++ = part;
    *outputs = graph->outputs;
    *n = (int)total;
    return TP_OK;
}

static tp_status check_leaves(const evaluation *e) {
    for (uint32_t i = 0; i < e->plan->n_leaves; i++) {
        const tp_lazy *leaf = leaf_node(e, i);
        if (leaf->version != leaf->value->storage->version)
            return tpi_fail(TP_ESTALE, "eval: node %u reads state that was assigned after it was recorded",
                            leaf->id);
    }
    return TP_OK;
}

static tp_status check_limit(const tpi_plan *plan) {
    tpi_memory *memory = plan->device->memory;
    uint64_t limit = tpi_memory_limit(memory);
    if (!limit) return TP_OK;
    uint64_t now = tpi_memory_get_stats(memory).now, needed = plan->arena_bytes + plan->buffer_bytes;
    if (now + needed <= limit) return TP_OK;
    return tpi_fail(
        TP_ELIMIT,
        "eval: needs %.3f GiB (%.3f intermediate, %.3f results) beside %.3f GiB in use, limit %.3f GiB: "
        "raise the limit, or use smaller batches, shorter sequences or recomputation",
        (double)needed / 0x1p30, (double)plan->arena_bytes / 0x1p30, (double)plan->buffer_bytes / 0x1p30,
        (double)now / 0x1p30, (double)limit / 0x1p30);
}

/* Evaluates what the first node that comes from another device is a copy of, and makes it a leaf: a plan has
 * one device. Pending assignments wait for the evaluation's own plan. */
static tp_status cross(tp_graph *graph, const tpi_order *order) {
    size_t i = order->count - 1;
    while (order->nodes[i]->record.op != TPI_TO_DEVICE) i--;
    tp_lazy *node = order->nodes[i], *source = tpi_node_input(node, 0);
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

/* Assignments are made by the plan of the outputs, so they are on its device. */
static tp_status check_devices(const tp_graph *graph, tp_lazy *const *outputs, int n) {
    const tp_lazy *first = n > 0 ? outputs[0] : NULL;
    for (size_t i = 0; i < (size_t)n + graph->assigned_count; i++) {
        const tp_lazy *node = i < (size_t)n ? outputs[i] : graph->nodes[graph->assigned[i - (size_t)n]];
        if (!first) first = node;
        if (node->device != first->device)
            return tpi_fail(TP_EINVAL,
                            "eval: node %u is on %s, node %u on %s: outputs and assignments of one "
                            "evaluation are on one device",
                            node->id, node->device->name, first->id, first->device->name);
    }
    return TP_OK;
}

static tp_status find_plan(tp_graph *graph, tp_lazy *const *outputs, int n, evaluation *e) {
    if (!graph) return tpi_fail(TP_EINVAL, "eval: graph is NULL");
    if (graph->status != TP_OK) return tpi_fail(graph->status, "%s", graph->message);
    if (n < 0 || (n > 0 && !outputs)) return tpi_fail(TP_EINVAL, "eval: outputs is NULL");
    e->graph = graph;
    e->n_wanted = (uint32_t)n;
    TPI_TRY(check_outputs(graph, outputs, n));
    TPI_TRY(check_devices(graph, outputs, n));
    TPI_TRY(add_parts(graph, &outputs, &n));
    TPI_TRY(tpi_linearise(graph, outputs, n, &e->order));
    while (e->order.crosses) {
        TPI_TRY(cross(graph, &e->order));
        TPI_TRY(tpi_linearise(graph, outputs, n, &e->order));
    }
    return tpi_plan_find(graph, &e->order, &e->plan);
}

static tp_status make_result(evaluation *e, uint32_t i) {
    const tpi_result *result = &e->plan->results[i];
    const tpi_operand *view = &result->view;
    if (result->place == TPI_PLACE_LEAF)
        return e->results[i] = tp_tensor_retain(leaf_node(e, result->index)->value), TP_OK;
    return tpi_tensor_on(tpi_storage_retain(e->fresh[result->index]), (tp_dtype)view->dtype, view->rank,
                         view->shape, NULL, result->offset, &e->results[i]);
}

static tp_status make_results(evaluation *e) {
    const tpi_plan *plan = e->plan;
    for (uint32_t b = 0; b < plan->n_buffers; b++)
        TPI_TRY(tpi_storage_create(plan->device, plan->buffers[b], &e->fresh[b]));
    for (uint32_t i = 0; i < plan->n_results; i++) TPI_TRY(make_result(e, i));
    return TP_OK;
}

/* Splits the graph's pointer scratch: slots, bases, fresh storages, results. */
static tp_status reserve_pointers(evaluation *e) {
    const tpi_plan *plan = e->plan;
    size_t n_bases = (size_t)plan->n_leaves + plan->n_buffers;
    size_t n = plan->n_slots + n_bases + plan->n_buffers + plan->n_results;
    tp_graph *graph = e->graph;
    TPI_TRY(tpi_grow(&graph->pointers, &graph->pointers_capacity, n, sizeof(void *)));
    e->run = (tpi_run){graph->context, e->plan, graph->pointers + plan->n_slots, graph->pointers};
    e->fresh = (tpi_storage **)(e->run.bases + n_bases);
    e->results = (tp_tensor **)(e->fresh + plan->n_buffers);
    memset(e->fresh, 0, (plan->n_buffers + plan->n_results) * sizeof(void *));
    return TP_OK;
}

static void log_memory(tp_context *ctx, const tpi_plan *plan) {
    if (!tpi_verbose(ctx, TPI_TOPIC_MEMORY)) return;
    tpi_memory_stats stats = tpi_memory_get_stats(plan->device->memory);
    tpi_log(ctx, TP_LOG_INFO,
            "memory: arena %.2f MiB, results %.2f MiB; in use %.2f MiB, peak %.2f MiB, kept %.2f MiB",
            (double)plan->arena_bytes / 0x1p20, (double)plan->buffer_bytes / 0x1p20,
            (double)stats.now / 0x1p20, (double)stats.peak / 0x1p20, (double)stats.kept / 0x1p20);
}

static tp_status prepare(tp_graph *graph, tp_lazy *const *outputs, int n, evaluation *e) {
    TPI_TRY(find_plan(graph, outputs, n, e));
    TPI_TRY(check_leaves(e));
    TPI_TRY(check_limit(e->plan));
    TPI_TRY(reserve_pointers(e));
    TPI_TRY(tpi_leaves_reserve(graph, (size_t)e->plan->n_results + e->plan->n_assigned));
    TPI_TRY(make_results(e));
    log_memory(graph->context, e->plan);
    for (uint32_t i = 0; i < e->plan->n_leaves; i++)
        e->run.bases[i] = tpi_tensor_pointer(leaf_node(e, i)->value);
    for (uint32_t b = 0; b < e->plan->n_buffers; b++) e->run.bases[e->plan->n_leaves + b] = e->fresh[b]->data;
    return TP_OK;
}

static void discard(evaluation *e) {
    for (uint32_t i = 0; e->results && i < e->plan->n_results; i++) tp_tensor_release(e->results[i]);
    for (uint32_t b = 0; e->fresh && b < e->plan->n_buffers; b++) tpi_storage_release(e->fresh[b]);
}

/* A run on a device may fail after its evaluation returned: what reads its results finds out first. */
static tp_status check_storage(tpi_storage *storage) {
    TPI_TRY(tpi_storage_check(storage));
    if (!storage->unchecked) return TP_OK;
    TPI_TRY(storage->device->calls->wait(storage->device->state, storage->mark));
    storage->unchecked = false;
    return TP_OK;
}

/* ---- after running ---- */

/* Says where in the device's order results and state are made. */
static void set_marks(const evaluation *e) {
    const tpi_plan *plan = e->plan;
    if (tpi_is_host(plan->device)) return;
    const uint64_t mark = plan->device->calls->mark(plan->device->state);
    for (uint32_t b = 0; b < plan->n_buffers; b++) {
        e->fresh[b]->mark = mark;
        e->fresh[b]->unchecked = plan->can_fail;
    }
    for (uint32_t i = 0; i < plan->n_assigned; i++)
        leaf_node(e, plan->assigned[i])->value->storage->mark = mark;
}

/* Hands out results; outputs and assignments become leaves. Nothing here can fail. */
static void commit(evaluation *e, tp_tensor **results) {
    tp_graph *graph = e->graph;
    for (uint32_t i = 0; i < e->plan->n_assigned; i++) {
        tp_tensor *state = leaf_node(e, e->plan->assigned[i])->value;
        state->storage->version++; /* of two assignments to one state, the first is stale at once */
        tpi_node_become_leaf(graph->nodes[graph->assigned[i]], tp_tensor_retain(state));
    }
    for (uint32_t i = 0; i < e->plan->n_results; i++) {
        if (results && i < e->n_wanted) results[i] = tp_tensor_retain(e->results[i]);
        if (e->order.outputs[i]->value) continue;
        tpi_node_become_leaf(e->order.outputs[i], e->results[i]);
        e->results[i] = NULL;
    }
    graph->assigned_count = 0;
    graph->evaluated_bytes = graph->arena.bytes;
}

/* Runs behind what was queued before. On a device with its own order the run itself is queued. */
static tp_status run_in_order(const evaluation *e) {
    if (tpi_is_host(e->plan->device)) tpi_queue_drain(e->graph->context->queue);
    for (uint32_t i = 0; i < e->plan->n_leaves; i++) TPI_TRY(check_storage(leaf_node(e, i)->value->storage));
    TPI_TRY(tpi_run_now(&e->run));
    set_marks(e);
    return TP_OK;
}

tp_status tp_graph_eval(tp_graph *graph, tp_lazy *const *outputs, int n, tp_tensor **results) {
    evaluation e = {0};
    for (int i = 0; results && i < n; i++) results[i] = NULL;
    tp_status status = prepare(graph, outputs, n, &e);
    if (status == TP_OK) status = run_in_order(&e);
    if (status == TP_OK) commit(&e, results);
    discard(&e);
    return status;
}

tp_status tp_lazy_eval(tp_lazy *x, tp_tensor **out) {
    if (out) *out = NULL;
    if (!x) return tpi_fail(TP_EINVAL, "eval: the node is NULL: ask its graph's status for the reason");
    return tp_graph_eval(x->graph, &x, 1, out);
}

/* ---- on the queue ---- */

/* The job in one block: the struct, the storages it retains, bases, slots. */
static tp_status make_job(const evaluation *e, tpi_job **out) {
    const tpi_plan *plan = e->plan;
    size_t n_bases = (size_t)plan->n_leaves + plan->n_buffers;
    tpi_job *job = tpi_malloc(sizeof *job + (2 * n_bases + plan->n_slots) * sizeof(void *));
    *out = job;
    if (!job) return TP_ENOMEM;
    void **pointers = (void **)(job + 1);
    *job = (tpi_job){
        .run = {e->graph->context, tpi_plan_retain(e->plan), pointers + n_bases, pointers + 2 * n_bases},
        .storages = (tpi_storage **)pointers,
        .n_storages = n_bases};
    memcpy(job->run.bases, e->run.bases, n_bases * sizeof(void *));
    for (uint32_t i = 0; i < plan->n_leaves; i++)
        job->storages[i] = tpi_storage_retain(leaf_node(e, i)->value->storage);
    for (uint32_t b = 0; b < plan->n_buffers; b++)
        job->storages[plan->n_leaves + b] = tpi_storage_retain(e->fresh[b]);
    return TP_OK;
}

static void discard_job(tpi_job *job) {
    for (size_t i = 0; i < job->n_storages; i++) tpi_storage_release(job->storages[i]);
    tpi_plan_release(job->run.plan);
    tp_event_release(job->event);
    tpi_free(job);
}

static tp_status enqueue(evaluation *e, tp_event **event) {
    tpi_job *job;
    tp_device *device = e->plan->device;
    TPI_TRY(make_job(e, &job));
    tp_status status = tpi_event_create(&job->event);
    if (status == TP_OK && !tpi_is_host(device)) {
        status = run_in_order(e);
        job->mark = device->calls->mark(device->state);
    }
    if (status != TP_OK) {
        discard_job(job);
        return status;
    }
    tp_event *done = tpi_event_retain(job->event);
    for (size_t i = 0; i < job->n_storages; i++) tpi_storage_set_busy(job->storages[i], done);
    if ((status = tpi_queue_push(e->graph->context->queue, job)) != TP_OK) {
        tpi_event_finish(done, status);
        discard_job(job);
    }
    if (status == TP_OK && event)
        *event = done;
    else
        tp_event_release(done);
    return status;
}

tp_status tp_graph_eval_async(tp_graph *graph, tp_lazy *const *outputs, int n, tp_tensor **results,
                              tp_event **event) {
    evaluation e = {0};
    if (event) *event = NULL;
    for (int i = 0; results && i < n; i++) results[i] = NULL;
    tp_status status = prepare(graph, outputs, n, &e);
    if (status == TP_OK) status = enqueue(&e, event);
    if (status == TP_OK) commit(&e, results);
    discard(&e);
    return status;
}

tp_status tp_lazy_eval_async(tp_lazy *x, tp_tensor **out, tp_event **event) {
    if (out) *out = NULL;
    if (event) *event = NULL;
    if (!x) return tpi_fail(TP_EINVAL, "eval: the node is NULL: ask its graph's status for the reason");
    return tp_graph_eval_async(x->graph, &x, 1, out, event);
}

/* ---- plans without running ---- */

tp_status tp_graph_memory(tp_graph *graph, tp_lazy *const *outputs, int n, uint64_t *bytes) {
    evaluation e = {0};
    tp_status status = find_plan(graph, outputs, n, &e);
    if (status == TP_OK) *bytes = e.plan->arena_bytes + e.plan->buffer_bytes;
    return status;
}

typedef struct text {
    char *data;
    size_t used, capacity;
    tp_status status;
} text;

static void add_line(void *user, const char *line) {
    text *t = user;
    size_t length = strlen(line);
    if (t->status == TP_OK) t->status = tpi_grow(&t->data, &t->capacity, t->used + length + 2, 1);
    if (t->status != TP_OK) return;
    memcpy(t->data + t->used, line, length);
    memcpy(t->data + t->used + length, "\n", 2);
    t->used += length + 1;
}

tp_status tp_graph_explain(tp_graph *graph, tp_lazy *const *outputs, int n, char **out) {
    evaluation e = {0};
    text t = {0};
    *out = NULL;
    tp_status status = find_plan(graph, outputs, n, &e);
    if (status == TP_OK) {
        tpi_plan_describe(e.plan, add_line, &t);
        status = t.status;
    }
    if (status != TP_OK)
        tpi_free(t.data);
    else
        *out = t.data;
    return status;
}
