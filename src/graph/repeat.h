/* Repeating: a program that records, evaluates and resets records the same again.
 *
 * A reset leaves the nodes standing (tpi_tape). What is recorded next is compared with the node that stands
 * at its place: operation, operands, attributes. They determine the rest, since shape inference sees nothing
 * else, so an equal node is taken as it is, with its shape and hash, and its record is neither written nor
 * hashed. The first that differs ends the repetition: it and all behind it are given up. Where an
 * evaluation's nodes were repeated in whole, the walk for the plan's key is left out too (tpi_linearise). */
#ifndef TAPER_GRAPH_REPEAT_H
#define TAPER_GRAPH_REPEAT_H

#include "core/hash.h"
#include "graph/graph.h"

/* Gives up what stands from the next place on; its memory is free for other nodes. A new node begins with it.
 */
void tpi_repeat_end(tpi_tape *tape);

/* Whether `place` holds the node of what is recorded. An operand that is the node at the right place was
 * recorded in this generation, of this graph; `device` may be NULL where it is the operands'. `out` is the
 * shape of a leaf, which nothing else determines. */
static inline bool tpi_stands(tp_lazy *const *place, const tp_device *device, tpi_op op,
                              const tpi_signature *out, tp_lazy *const *inputs, int n_in, const void *attr,
                              size_t attr_bytes) {
    const tpi_record *record = &(*place)->record;
    if (record->op != op || record->n_in != n_in || record->n_attr * 8u != attr_bytes) return false;
    if ((device || n_in == 0) && (*place)->device != device) return false;
    const uint64_t *words = record->words + record->rank;
    for (int k = 0; k < n_in; k++)
        if (place[-(ptrdiff_t)((const uint32_t *)words)[k]] != inputs[k]) return false;
    words += ((size_t)n_in + 1) / 2;
    for (size_t i = 0; i < attr_bytes / 8; i++) /* few words: no call to memcmp */
        if (tpi_word(words, i) != tpi_word(attr, i)) return false;
    bool same = !out || (record->dtype == out->dtype && record->rank == out->rank);
    for (int d = 0; out && same && d < out->rank; d++) same = tpi_node_shape(*place)[d] == out->shape[d];
    return same;
}

/* The node that stands where the next is recorded, as part of this recording; NULL if none does or it is not
 * the same. */
static inline tp_lazy *tpi_repeat(tp_graph *graph, const tp_device *device, tpi_op op,
                                  const tpi_signature *out, tp_lazy *const *inputs, int n_in,
                                  const void *attr, size_t attr_bytes) {
    tpi_tape *tape = &graph->tape;
    if (tape->count >= tape->standing) return NULL;
    tp_lazy *const *place = tape->nodes + tape->count;
    if (!tpi_stands(place, device, op, out, inputs, n_in, attr, attr_bytes)) return NULL;
    tp_lazy *node = *place;
    node->sibling = node->parts = NULL;
    node->generation = graph->generation;
    node->segment = graph->segment;
    tape->count++;
    return node;
}

/* What no earlier recording has at this place. */
tp_lazy *tpi_record_anew(tp_graph *graph, tp_device *device, tpi_op op, tp_lazy *const *inputs, int n_in,
                         const void *attr, size_t attr_bytes);

/* tpi_record_op of operands, inline: for builders where the rest is constant and folds into few comparisons.
 */
static inline tp_lazy *tpi_record_inline(tpi_op op, tp_lazy *const *inputs, int n_in, const void *attr,
                                         size_t attr_bytes) {
    tp_graph *graph = inputs[0] ? inputs[0]->graph : NULL;
    tp_lazy *node = graph ? tpi_repeat(graph, NULL, op, NULL, inputs, n_in, attr, attr_bytes) : NULL;
    return node ? node : tpi_record_anew(graph, NULL, op, inputs, n_in, attr, attr_bytes);
}

#endif
