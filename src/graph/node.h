/* Nodes: what a recording is made of.
 *
 * A node lives in its graph's arena and is named by its ordinal. Everything that a plan depends on is in its
 * record: plain words without pointers, hashed while recording. A record names an input by its distance
 * (own ordinal - the input's), so the same program gives the same record wherever in the graph it is
 * recorded.
 *
 * Record layout, in 8-byte words behind the head: shape (rank), distances (two a word), attributes.
 * Invariants: inputs have smaller ordinals than their users; padding is zero; `value` is set exactly for
 * leaves and nodes that were evaluated, whose op is TPI_LEAF from then on. */
#ifndef TAPER_GRAPH_NODE_H
#define TAPER_GRAPH_NODE_H

#include "core/error.h"
#include "core/tensor.h"
#include "ops/desc.h"
#include "taper/graph.h"

typedef struct tpi_record {
    uint16_t op;                       /* tpi_op */
    uint8_t dtype, rank, n_in, n_attr; /* n_attr: words */
    uint16_t device;                   /* 0: CPU, 1 + index: a GPU */
    uint64_t words[];
} tpi_record;

/* Attributes of a leaf: none for a row-major tensor whose storage no earlier leaf has, else this. */
typedef struct tpi_attr_leaf {
    int64_t stride[TP_MAX_RANK];
    int64_t alias; /* distance to the first leaf of the same storage; 0: none */
} tpi_attr_leaf;

struct tp_lazy {
    tp_graph *graph;
    tp_device *device;
    tp_tensor *value;     /* owned */
    uint64_t version;     /* leaves: the storage's version when recorded */
    uint64_t operation;   /* evaluated nodes: the head of the record that they had before; else 0 */
    tp_lazy *next_valued; /* the next node of the graph that owns a tensor */
    uint64_t hash;        /* of the record */
    tp_lazy *sibling;     /* leaves: the next leaf of the same storage */
    tp_lazy *parts;       /* its further outputs, from the last recorded on; a further output's: the rest */
    uint32_t id;
    uint16_t record_words; /* size of the record behind its head */
    bool asked;            /* while an evaluation collects its outputs: it is one of them */
    uint32_t generation;   /* the graph's when recorded: a mismatch is use after reset */
    uint32_t segment;      /* recompute segment, 0: none */
    tpi_record record;
};

static inline uint16_t tpi_record_size(const tpi_record *head) { /* words behind it */
    return (uint16_t)(head->rank + (head->n_in + 1u) / 2u + head->n_attr);
}
static inline const int64_t *tpi_node_shape(const tp_lazy *node) {
    return (const int64_t *)node->record.words;
}
static inline const uint32_t *tpi_node_distances(const tp_lazy *node) {
    return (const uint32_t *)(node->record.words + node->record.rank);
}
/* NULL without attributes. */
static inline const void *tpi_node_attr(const tp_lazy *node) {
    if (!node->record.n_attr) return NULL;
    return node->record.words + node->record.rank + (node->record.n_in + 1u) / 2u;
}
tp_lazy *tpi_node_input(const tp_lazy *node, int k); /* k < n_in */
int64_t tpi_node_count(const tp_lazy *node);         /* elements */

/* Records an operation: checks the operands (NULL, other graphs, stale handles), the number of inputs, infers
 * the output and appends the node. Returns output 0, or NULL with the error sticky in the graph. `attr` may
 * be NULL when attr_bytes is 0; attr_bytes is a multiple of 8. `graph` may be NULL if there is an input;
 * `device` may be NULL then too. */
tp_lazy *tpi_record_op(tp_graph *graph, tp_device *device, tpi_op op, tp_lazy *const *inputs, int n_in,
                       const void *attr, size_t attr_bytes);

/* Output `index` > 0 of a node with several outputs. */
tp_lazy *tpi_record_part(tp_lazy *producer, int index);

/* Puts an error into the graph unless one is there already; returns NULL. */
tp_lazy *tpi_graph_fail(tp_graph *graph, tp_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
