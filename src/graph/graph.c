/* The life of a graph. A reset gives up nodes and leaves but keeps memory, so that a loop of record,
 * evaluate, reset allocates nothing. */
#include "graph/graph.h"
#include "core/alloc.h"
#include "graph/plan.h"
#include "graph/run.h"

#include <string.h>

#define KEEP_BYTES ((size_t)64 << 20) /* of nodes, kept for the next recording */
#define KEEP_NODES ((size_t)1 << 19)

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
    for (tp_lazy *node = graph->valued; node; node = node->next_valued) {
        tp_tensor_release(node->value);
        node->value = NULL;
        if (node->operation) tpi_node_become_operation(node);
    }
    graph->valued = NULL;
    graph->evaluated = false;
}

static void release_tape(tpi_tape *tape) {
    tpi_arena_release(&tape->arena);
    tpi_free(tape->nodes);
    tpi_free(tape->order);
    tpi_plan_release(tape->plan);
}

void tp_graph_destroy(tp_graph *graph) {
    if (!graph) return;
    tpi_queue_drain(graph->context->queue);
    release_values(graph);
    release_tape(&graph->tape);
    release_tape(&graph->quarantine);
    tpi_free(graph->leaves.entries);
    tpi_free(graph->assigned);
    tpi_free(graph->marks);
    tpi_free(graph->outputs);
    tpi_free(graph->pointers);
    tpi_free(graph);
}

/* A long recording is given back, or one large graph would hold its memory for ever: then nothing stands. */
static void shrink(tp_graph *graph) {
    tpi_tape *tape = &graph->tape;
    const bool many = tape->capacity > KEEP_NODES;
    if (!many && tape->arena.bytes <= KEEP_BYTES) return;
    tape->standing = tape->planned = 0;
    tpi_arena_reset(&tape->arena, KEEP_BYTES);
    if (!many) return;
    tpi_free(tape->nodes);
    tpi_free(tape->order);
    tpi_free(graph->marks);
    tape->nodes = tape->order = NULL;
    graph->marks = NULL;
    tape->capacity = tape->order_capacity = graph->marks_capacity = 0;
}

/* What was recorded stands from here on. Debug builds let two recordings take turns and so keep the last
 * one's nodes readable: a stale handle is reported, not followed. */
static void retire_tape(tp_graph *graph) {
    tpi_tape *tape = &graph->tape;
    if (tape->standing < tape->count) tape->standing = tape->count;
    tape->count = 0;
    shrink(graph);
#ifndef NDEBUG
    const tpi_tape last = *tape;
    *tape = graph->quarantine;
    graph->quarantine = last;
#endif
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
    retire_tape(graph);
    next_generation(graph);
    graph->assigned_count = graph->evaluated_bytes = 0;
    graph->segment = graph->segments = 0;
    graph->warned = false;
    graph->status = TP_OK;
    graph->message[0] = 0;
}

size_t tp_graph_size(const tp_graph *graph) {
    return graph ? graph->tape.count : 0;
}
tp_context *tp_graph_context(const tp_graph *graph) {
    return graph ? graph->context : NULL;
}

tp_status tp_graph_status(const tp_graph *graph) {
    if (!graph) return tpi_fail(TP_EINVAL, "graph is NULL");
    return graph->status == TP_OK ? TP_OK : tpi_fail(graph->status, "%s", graph->message);
}
