/* Plans: what a recording becomes, and what a cache hit runs.
 *
 *     record -> linearise -> key -> [hit] --------------------------------------------> bind -> run
 *                                   [miss] -> lower -> fuse -> select -> gather -> place -> store
 *
 * A plan names no node, tensor or address: leaves by their place in the key's order, memory by offsets. So
 * one plan serves every recording with the same key, from any thread.
 *
 * Invariants: steps run in order; slots[s] says where slot s points; slot 0 is NULL; a step that writes state
 * comes after every step that can fail. Immutable once built, but for `prepared`, which is the device's, and
 * the cache's links; reference counted; all its arrays are in `memory`. */
#ifndef TAPER_GRAPH_PLAN_H
#define TAPER_GRAPH_PLAN_H

#include "backend/backend.h"
#include "core/arena.h"
#include "graph/graph.h"

typedef enum tpi_where { TPI_PLACE_NONE, TPI_PLACE_LEAF, TPI_PLACE_ARENA, TPI_PLACE_RESULT } tpi_where;

/* Where a slot points: leaf or result number `index` (arena: unused), `offset` bytes further. */
typedef struct tpi_slot {
    uint32_t place; /* tpi_where */
    uint32_t index;
    uint64_t offset;
} tpi_slot;

/* An output that the caller asked for: on a fresh buffer, or the tensor of a leaf. */
typedef struct tpi_result {
    uint32_t place; /* LEAF or RESULT */
    uint32_t index; /* of the leaf or the buffer */
    uint64_t offset;
    tpi_operand view; /* row-major */
} tpi_result;

typedef struct tpi_plan {
    atomic_int references;
    tpi_arena memory;

    uint64_t hash; /* the key */
    uint64_t *key;
    size_t key_words;

    tpi_step *steps;
    uint32_t n_steps;
    tpi_slot *slots;
    uint32_t n_slots;
    uint32_t *leaves; /* leaf number -> place in the order */
    uint32_t n_leaves;
    uint64_t *buffers; /* bytes of each fresh result buffer */
    uint32_t n_buffers;
    tpi_result *results; /* one for each output */
    uint32_t n_results, n_assigned;
    uint32_t *assigned;                 /* assignment -> leaf number of its state */
    uint64_t arena_bytes, buffer_bytes; /* as blocks of the device's memory: the peak is their sum */
    tp_device *device;                  /* of all steps; borrowed from the context */
    bool can_fail;                      /* a step may find that data is wrong */
    tpi_prepared prepared;              /* what the backend keeps with the plan */

    struct tpi_plan *newer, *older, *next; /* the cache's lists */
    uint64_t cached_bytes;
} tpi_plan;

/* A walk's result: the reachable nodes, descending, and the hash of the key they make. */
typedef struct tpi_order {
    tp_lazy **nodes;
    size_t count;
    tp_lazy *const *outputs;
    int n_outputs;
    uint64_t hash;
    bool crosses;  /* a node is copied from another device */
    bool repeated; /* it is the order that the tape's plan was made for */
} tpi_order;

/* The device of all nodes but those that are copied from another. */
static inline tp_device *tpi_order_device(const tp_graph *graph, const tpi_order *order) {
    return order->count ? order->nodes[0]->device : &graph->context->cpu;
}

/* Collects what evaluating `outputs`, which are nodes of the graph, and its pending assignments needs. */
tp_status tpi_linearise(tp_graph *graph, tp_lazy *const *outputs, int n, tpi_order *order);

/* Whether `plan` was made for exactly this recording, and the key itself, into the plan's memory. */
bool tpi_key_equal(const tp_graph *graph, const tpi_order *order, const tpi_plan *plan);

/* The first node, from the top, that the plan was not made for; NULL if the difference is not in a node. */
const tp_lazy *tpi_key_difference(const tp_graph *graph, const tpi_order *order, const tpi_plan *plan);
tp_status tpi_key_store(const tp_graph *graph, const tpi_order *order, tpi_plan *plan);

/* Plans a recording (lower, fuse, select, gather, place). Owned. */
tp_status tpi_plan_build(tp_graph *graph, const tpi_order *order, tpi_plan **out);
tpi_plan *tpi_plan_retain(tpi_plan *plan);
void tpi_plan_release(tpi_plan *plan);

/* The plan as text, appended to what `write` collects. */
void tpi_plan_describe(const tpi_plan *plan, void (*line)(void *user, const char *text), void *user);

/* ---- cache.c ---- */

typedef struct tpi_plan_cache tpi_plan_cache;

tp_status tpi_plan_cache_create(tpi_plan_cache **out, uint64_t limit);
void tpi_plan_cache_destroy(tpi_plan_cache *cache);

/* The plan for the recording, from the graph's last plan, the cache, or built now. Borrowed: the graph keeps
 * it until the next call. */
tp_status tpi_plan_find(tp_graph *graph, const tpi_order *order, tpi_plan **out);
void tpi_plan_cache_stats(tpi_plan_cache *cache, tp_context_stats *stats);

#endif
