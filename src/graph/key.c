/* Linearise and key: one walk from the highest ordinal down.
 *
 * Ordinals are a topological order, so marking inputs while walking down visits each needed node once,
 * without recursion. The key is the visited records in that order, each with the gap to the one before;
 * records name inputs by distance, so gaps and records together determine the recording. */
#include "graph/plan.h"
#include "core/alloc.h"
#include "core/hash.h"

#include <string.h>

static tp_status reserve_scratch(tp_graph *graph) {
    size_t old = graph->marks_capacity;
    TPI_TRY(tpi_grow(&graph->marks, &graph->marks_capacity, graph->tape.count + 1, 1)); /* never NULL */
    memset(graph->marks + old, 0, graph->marks_capacity - old);
    return tpi_grow(&graph->tape.order, &graph->tape.order_capacity, graph->tape.count, sizeof(tp_lazy *));
}

/* Outputs and assignments: how many, and the ordinal of one. */
static size_t n_wanted(const tp_graph *graph, const tpi_order *order) {
    return (size_t)order->n_outputs + graph->assigned_count;
}
static uint32_t wanted(const tp_graph *graph, const tpi_order *order, size_t i) {
    size_t n = (size_t)order->n_outputs;
    return i < n ? order->outputs[i]->id : graph->assigned[i - n];
}

static uint32_t highest_wanted(const tp_graph *graph, const tpi_order *order) {
    uint32_t top = 0;
    for (size_t i = 0; i < n_wanted(graph, order); i++)
        if (wanted(graph, order, i) > top) top = wanted(graph, order, i);
    return top;
}

/* What the key depends on besides the nodes: outputs by distance from the top, assignments, fusions. */
static uint64_t header_word(const tp_graph *graph, const tpi_order *order, size_t i, uint32_t top) {
    if (i == 0) return (uint64_t)order->n_outputs << 32 | graph->assigned_count;
    if (i == 1)
        return (uint64_t)graph->context->fusions << 32 | (uint64_t)tpi_threads_parts(graph->context->threads);
    return top - wanted(graph, order, i - 2);
}

static size_t header_words(const tp_graph *graph, const tpi_order *order) {
    return 2 + n_wanted(graph, order);
}

static bool same_header(const tp_graph *graph, const tpi_order *order, const tpi_plan *plan, uint32_t top) {
    const size_t words = header_words(graph, order);
    bool same = words <= plan->key_words;
    for (size_t i = 0; same && i < words; i++) same = plan->key[i] == header_word(graph, order, i, top);
    return same;
}

/* Whether the recording repeats the one that the tape's plan was made for: all its nodes stand where they
 * stood, and the same is wanted of them. */
static bool is_repeated(const tp_graph *graph, const tpi_order *order, uint32_t top) {
    const tpi_tape *tape = &graph->tape;
    return tape->planned && !graph->evaluated && tape->order[0]->id == top &&
           same_header(graph, order, tape->plan, top);
}

/* The walk itself: fills order->nodes, down from `top`. */
static void walk(tp_graph *graph, tpi_order *order, uint32_t top) {
    uint8_t *marks = graph->marks;
    size_t pending = 0;
    for (size_t i = 0; i < n_wanted(graph, order); i++) {
        uint8_t *mark = &marks[wanted(graph, order, i)];
        pending += !*mark;
        *mark = 1;
    }
    uint64_t hash = 0;
    for (size_t i = 0; i < header_words(graph, order); i++)
        hash = tpi_hash_mix(hash, header_word(graph, order, i, top));
    uint32_t previous = top;
    for (uint32_t id = top; pending > 0; id--) {
        if (!marks[id]) continue;
        marks[id] = 0;
        pending--;
        tp_lazy *node = graph->tape.nodes[id];
        const uint32_t *distances = tpi_node_distances(node);
        for (int k = 0; k < node->record.n_in; k++) {
            uint8_t *mark = &marks[id - distances[k]];
            pending += !*mark;
            *mark = 1;
        }
        order->crosses |= node->record.op == TPI_TO_DEVICE;
        hash = tpi_hash_mix(hash, node->hash + (previous - id));
        previous = id;
        order->nodes[order->count++] = node;
    }
    order->hash = hash;
}

tp_status tpi_linearise(tp_graph *graph, tp_lazy *const *outputs, int n, tpi_order *order) {
    tpi_tape *tape = &graph->tape;
    *order = (tpi_order){.outputs = outputs, .n_outputs = n};
    const uint32_t top = highest_wanted(graph, order);
    if ((order->repeated = is_repeated(graph, order, top))) {
        order->nodes = tape->order;
        order->count = tape->planned;
        order->hash = tape->plan->hash;
        return TP_OK;
    }
    tape->planned = 0;
    TPI_TRY(reserve_scratch(graph));
    order->nodes = tape->order;
    walk(graph, order, top);
    return TP_OK;
}

/* A node's words in the key are the gap, then its record. */
static bool is_record(const uint64_t *words, const tp_lazy *node, size_t n) { /* few: no call to memcmp */
    for (size_t i = 0; i < n; i++)
        if (words[i] != tpi_word(&node->record, i)) return false;
    return true;
}

/* Compares with the plan's key from the top. True if all agrees; else *first is the first node that does not,
 * NULL if outputs, assignments or settings do not, or the plan has more nodes. */
static bool compare(const tp_graph *graph, const tpi_order *order, const tpi_plan *plan,
                    const tp_lazy **first) {
    uint32_t top = order->count ? order->nodes[0]->id : 0, previous = top;
    const uint64_t *key = plan->key, *end = plan->key + plan->key_words;
    *first = NULL;
    if (!same_header(graph, order, plan, top)) return false;
    key += header_words(graph, order);
    for (size_t i = 0; i < order->count; i++) {
        const tp_lazy *node = order->nodes[i];
        size_t words = node->record_words + 1u;
        if ((size_t)(end - key) < words + 1 || key[0] != previous - node->id ||
            !is_record(key + 1, node, words)) {
            *first = node;
            return false;
        }
        key += words + 1;
        previous = node->id;
    }
    return key == end;
}

bool tpi_key_equal(const tp_graph *graph, const tpi_order *order, const tpi_plan *plan) {
    const tp_lazy *first;
    return plan->hash == order->hash && compare(graph, order, plan, &first);
}

const tp_lazy *tpi_key_difference(const tp_graph *graph, const tpi_order *order, const tpi_plan *plan) {
    const tp_lazy *first;
    compare(graph, order, plan, &first);
    return first;
}

tp_status tpi_key_store(const tp_graph *graph, const tpi_order *order, tpi_plan *plan) {
    size_t header = header_words(graph, order);
    plan->key_words = header;
    for (size_t i = 0; i < order->count; i++) plan->key_words += order->nodes[i]->record_words + 2u;
    if (!(plan->key = tpi_arena_array(&plan->memory, plan->key_words, 8))) return TP_ENOMEM;
    plan->hash = order->hash;
    uint32_t top = order->count ? order->nodes[0]->id : 0, previous = top;
    uint64_t *key = plan->key;
    for (size_t i = 0; i < header; i++) *key++ = header_word(graph, order, i, top);
    for (size_t i = 0; i < order->count; i++) {
        const tp_lazy *node = order->nodes[i];
        *key++ = previous - node->id;
        memcpy(key, &node->record, (node->record_words + 1u) * 8);
        key += node->record_words + 1u;
        previous = node->id;
    }
    return TP_OK;
}
