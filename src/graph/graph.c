/* The life of a graph. A reset gives up nodes and leaves but keeps memory, so that a loop of record,
 * evaluate, reset allocates nothing. */
#include "graph/graph.h"
#include "core/alloc.h"
#include "graph/plan.h"
#include "graph/run.h"

#include <string.h>

#define KEEP_BYTES ((size_t)8 << 20) /* of nodes, kept for the next recording */
#define KEEP_NODES ((size_t)1 << 18)

void tp_free(void *pointer) {
    tpi_free(pointer);
}

tp_status tp_graph_create(tp_graph **out, tp_context *ctx) {
    if (!out || !ctx) return tpi_fail(TP_EINVAL, "tp_graph_create: out or context is NULL");
    tp_graph *graph = tpi_calloc(1, sizeof *graph);
    *out = graph;
    if (!graph) return TP_ENOMEM;
    graph->context = ctx;
    graph->generation = 1; /* 0 marks empty entries of the leaf map */
    return TP_OK;
}

static void release_values(tp_graph *graph) {
    for (tp_lazy *node = graph->valued; node; node = node->next_valued) tp_tensor_release(node->value);
    graph->valued = NULL;
}

void tp_graph_destroy(tp_graph *graph) {
    if (!graph) return;
    tpi_queue_drain(graph->context->queue);
    release_values(graph);
    tpi_arena_release(&graph->arena);
    tpi_arena_release(&graph->quarantine);
    tpi_free(graph->nodes);
    tpi_free(graph->leaves.entries);
    tpi_free(graph->assigned);
    tpi_free(graph->marks);
    tpi_free(graph->order);
    tpi_free(graph->outputs);
    tpi_free(graph->pointers);
    tpi_plan_release(graph->last_plan);
    tpi_free(graph);
}

/* Debug builds keep the last generation's nodes readable, so that a stale handle is reported, not followed.
 */
static void retire_nodes(tp_graph *graph) {
#ifndef NDEBUG
    tpi_arena old = graph->quarantine;
    graph->quarantine = graph->arena;
    graph->arena = old;
#endif
    tpi_arena_reset(&graph->arena, KEEP_BYTES);
}

/* A long recording's tables are given back, or one large graph would hold its memory for ever. */
static void shrink_tables(tp_graph *graph) {
    if (graph->capacity <= KEEP_NODES) return;
    tpi_free(graph->nodes);
    tpi_free(graph->marks);
    tpi_free(graph->order);
    graph->nodes = NULL;
    graph->marks = NULL;
    graph->order = NULL;
    graph->capacity = graph->marks_capacity = graph->order_capacity = 0;
}

/* Generations wrap after 2^32 resets: then the map is emptied for real. */
static void next_generation(tp_graph *graph) {
    graph->leaves.count = 0;
    if (++graph->generation) return;
    graph->generation = 1;
    if (graph->leaves.entries)
        memset(graph->leaves.entries, 0, graph->leaves.capacity * sizeof *graph->leaves.entries);
}

void tp_graph_reset(tp_graph *graph) {
    if (!graph) return;
    release_values(graph);
    retire_nodes(graph);
    shrink_tables(graph);
    next_generation(graph);
    graph->count = graph->assigned_count = graph->evaluated_bytes = 0;
    graph->segment = graph->segments = 0;
    graph->warned = false;
    graph->status = TP_OK;
    graph->message[0] = 0;
}

size_t tp_graph_size(const tp_graph *graph) {
    return graph ? graph->count : 0;
}
tp_context *tp_graph_context(const tp_graph *graph) {
    return graph ? graph->context : NULL;
}

tp_status tp_graph_status(const tp_graph *graph) {
    if (!graph) return tpi_fail(TP_EINVAL, "graph is NULL");
    return graph->status == TP_OK ? TP_OK : tpi_fail(graph->status, "%s", graph->message);
}
