/* Graphs: the tape of nodes, the leaves, what waits for the next evaluation.
 *
 * Invariants: a graph is used by one thread at a time; after the first error no node is added until reset.
 * `marks` is all zero between walks. */
#ifndef TAPER_GRAPH_GRAPH_H
#define TAPER_GRAPH_GRAPH_H

#include "core/arena.h"
#include "graph/context.h"
#include "graph/node.h"

/* Leaves by storage: so that a tensor has one leaf, and views of one storage know of each other. An entry of
 * another generation is empty, which makes a reset free. */
typedef struct tpi_leaf_entry {
    const tpi_storage *storage;
    tp_lazy *leaf; /* the first; others follow through `sibling` */
    uint32_t generation;
} tpi_leaf_entry;

typedef struct tpi_leaf_map {
    tpi_leaf_entry *entries;
    size_t capacity, count; /* capacity: a power of two */
} tpi_leaf_map;

/* What is recorded, and what a reset leaves standing of it for the next recording to repeat (repeat.h).
 *
 * Invariants: nodes[i]->id == i. Nodes count ... standing-1 are those of an earlier recording, whole and in
 * their places: they become part of this one as long as it repeats them. The first `planned` places of
 * `order` are what `plan` was made for, when nothing was evaluated yet; all of them are standing or recorded.
 */
typedef struct tpi_tape {
    tpi_arena arena;
    tp_lazy **nodes;
    size_t count, standing, capacity;
    tp_lazy **order; /* linearise's walk */
    size_t planned, order_capacity;
    struct tpi_plan *plan; /* owned: the plan used last, tried before the cache */
} tpi_tape;

struct tp_graph {
    tp_context *context;
    tpi_tape tape;
    tpi_tape quarantine; /* debug builds: the recording before, so that stale handles are seen */
    bool evaluated;      /* nodes of the tape have become leaves */
    uint32_t generation;
    uint32_t segment, segments; /* open recompute segment, and how many there were */
    tp_lazy *valued;            /* nodes that own a tensor, through `next_valued` */
    tpi_leaf_map leaves;
    uint32_t *assigned; /* assignments for the next evaluation, by ordinal */
    size_t assigned_count, assigned_capacity;
    size_t evaluated_bytes; /* arena bytes at the last evaluation */
    bool warned;

    /* scratch of linearise and bind */
    uint8_t *marks;
    size_t marks_capacity;
    tp_lazy **outputs; /* of an evaluation, where they are more than were asked for */
    size_t outputs_capacity;
    void **pointers; /* an evaluation's: slots, leaves, buffers */
    size_t pointers_capacity;

    tp_status status;
    char message[512];
};

/* Makes room for so many leaves more, so that nodes can become leaves without failing. */
tp_status tpi_leaves_reserve(tp_graph *graph, size_t more);

/* Makes an evaluated node a leaf that owns `value` (consumed), until the reset makes it what it was. */
void tpi_node_become_leaf(tp_lazy *node, tp_tensor *value);
void tpi_node_become_operation(tp_lazy *node);

#endif
