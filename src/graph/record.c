/* Recording: a node is a few words in an arena, hashed while it is written. */
#include "graph/repeat.h"
#include "core/alloc.h"
#include "core/hash.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LEAF_MAP_START  64
#define WARN_BYTES      ((size_t)64 << 20) /* recorded without an evaluation */
#define MAX_GRAPH_NODES ((size_t)UINT32_MAX)
#define INPUT_ON_STACK  8

tp_lazy *tpi_node_input(const tp_lazy *node, int k) {
    return node->graph->tape.nodes[node->id - tpi_node_distances(node)[k]];
}

int64_t tpi_node_count(const tp_lazy *node) {
    int64_t count = 1;
    for (int d = 0; d < node->record.rank; d++) count *= tpi_node_shape(node)[d];
    return count;
}

/* ---- errors ---- */

/* With nothing left to repeat, every further node takes the way that looks at the status. */
static tp_lazy *stick(tp_graph *graph, tp_status status) {
    if (!graph || graph->status != TP_OK) return NULL;
    graph->status = status;
    tpi_repeat_end(&graph->tape);
    snprintf(graph->message, sizeof graph->message, "%s", tp_error_message());
    if (graph->context->strict) tpi_log(graph->context, TP_LOG_WARN, "recording: %s", graph->message);
    return NULL;
}

tp_lazy *tpi_graph_fail(tp_graph *graph, tp_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    tpi_failv(status, format, args);
    va_end(args);
    return stick(graph, status);
}

/* ---- nodes ---- */

static void warn_if_large(tp_graph *graph) {
    const tpi_tape *tape = &graph->tape;
    if (graph->warned || tape->arena.bytes < graph->evaluated_bytes + WARN_BYTES) return;
    graph->warned = true;
    tpi_log(graph->context, TP_LOG_WARN, "graph: %zu nodes in %zu MiB recorded without an evaluation",
            tape->count, tape->arena.bytes >> 20);
}

/* A node with room for its record; shape, distances and attributes are still to be filled in. */
static tp_lazy *new_node(tp_graph *graph, tp_device *device, tpi_op op, const tpi_signature *out, int n_in,
                         size_t attr_bytes) {
    tpi_tape *tape = &graph->tape;
    const tpi_record head = {(uint16_t)op,
                             out->dtype,
                             out->rank,
                             (uint8_t)n_in,
                             (uint8_t)(attr_bytes / 8),
                             (uint16_t)(device->index + 1)};
    const uint16_t words = tpi_record_size(&head);
    tpi_repeat_end(tape);
    if (tape->count >= MAX_GRAPH_NODES) {
        tpi_fail(TP_ENOMEM, "graph: %zu nodes are the most there can be", tape->count);
        return NULL;
    }
    if (tape->count == tape->capacity &&
        tpi_grow(&tape->nodes, &tape->capacity, tape->count + 1, sizeof(tp_lazy *)) != TP_OK)
        return NULL;
    tp_lazy *node = tpi_arena_take(&tape->arena, sizeof *node + (size_t)words * 8);
    if (!node) return NULL;
    node->graph = graph;
    node->device = device;
    node->value = NULL;
    node->version = node->operation = 0;
    node->id = (uint32_t)tape->count;
    node->generation = graph->generation;
    node->segment = graph->segment;
    node->record_words = words;
    node->asked = false;
    node->sibling = node->parts = node->next_valued = NULL;
    node->record = head;
    for (int d = 0; d < out->rank; d++) node->record.words[d] = (uint64_t)out->shape[d];
    if (n_in & 1) node->record.words[out->rank + n_in / 2] = 0; /* the odd distance's padding */
    return node;
}

static void hash_node(tp_lazy *node) {
    uint64_t head;
    memcpy(&head, &node->record, sizeof head);
    node->hash = tpi_hash_words(head, node->record.words, node->record_words);
}

static tp_lazy *append(tp_graph *graph, tp_lazy *node) {
    hash_node(node);
    graph->tape.nodes[graph->tape.count++] = node;
    warn_if_large(graph);
    return node;
}

static void set_value(tp_lazy *node, tp_tensor *value) {
    node->value = value;
    node->version = tpi_storage_version(value->storage);
    node->next_valued = node->graph->valued;
    node->graph->valued = node;
}

/* ---- operations ---- */

static tp_status check_operands(tp_graph *graph, const tpi_op_desc *desc, tp_lazy *const *inputs, int n_in) {
    if (n_in < desc->min_in || n_in > desc->max_in) {
        if (desc->min_in == desc->max_in)
            return tpi_fail(TP_EINVAL, "takes %d inputs (%s), got %d", desc->min_in, desc->inputs, n_in);
        return tpi_fail(TP_EINVAL, "takes %d to %d inputs (%s), got %d", desc->min_in, desc->max_in,
                        desc->inputs, n_in);
    }
    for (int k = 0; k < n_in; k++) {
        if (inputs[k]->graph != graph)
            return tpi_fail(TP_EGRAPH, "operand %d belongs to another graph than operand 0", k);
        if (inputs[k]->generation != graph->generation)
            return tpi_fail(TP_EGRAPH, "operand %d was recorded before the graph was reset", k);
        if (inputs[k]->device != inputs[0]->device)
            return tpi_fail(TP_EINVAL, "operand %d is on %s, operand 0 on %s", k, inputs[k]->device->name,
                            inputs[0]->device->name);
    }
    return TP_OK;
}

static tpi_signature signature_of(const tp_lazy *node) {
    return (tpi_signature){node->record.dtype, node->record.rank, tpi_node_shape(node)};
}

static tp_status infer(tpi_infer *call, tp_lazy *const *inputs) {
    tpi_signature few[INPUT_ON_STACK], *signatures = few;
    if (call->n_in > INPUT_ON_STACK && !(signatures = tpi_calloc((size_t)call->n_in, sizeof *signatures)))
        return TP_ENOMEM;
    for (int k = 0; k < call->n_in; k++) signatures[k] = signature_of(inputs[k]);
    call->in = signatures;
    tp_status status = tpi_ops[call->op].infer(call);
    if (signatures != few) tpi_free(signatures);
    return status;
}

static tp_lazy *fail_operation(tp_graph *graph, tpi_op op, tp_status status) {
    tpi_fail_within(status, "%s (call %zu)", tpi_ops[op].name, graph->tape.count);
    return stick(graph, status);
}

tp_lazy *tpi_record_anew(tp_graph *graph, tp_device *device, tpi_op op, tp_lazy *const *inputs, int n_in,
                         const void *attr, size_t attr_bytes) {
    const tpi_op_desc *desc = &tpi_ops[op];
    for (int k = 0; k < n_in && !graph; k++) graph = inputs[k] ? inputs[k]->graph : NULL;
    if (!graph || graph->status != TP_OK) return NULL;
    for (int k = 0; k < n_in; k++)
        if (!inputs[k])
            return tpi_graph_fail(graph, TP_EINVAL, "%s (call %zu): operand %d is NULL", desc->name,
                                  graph->tape.count, k);
    if (!device && n_in > 0) device = inputs[0]->device;
    if (!device) return tpi_graph_fail(graph, TP_EINVAL, "%s: device is NULL", desc->name);
    if (device->context != graph->context)
        return tpi_graph_fail(graph, TP_EGRAPH, "%s (call %zu): the device belongs to another context",
                              desc->name, graph->tape.count);
    tpi_infer call;
    call.op = op, call.n_in = n_in, call.attr = attr_bytes ? attr : NULL;
    tp_status status = check_operands(graph, desc, inputs, n_in);
    if (status == TP_OK) status = infer(&call, inputs);
    if (status != TP_OK) return fail_operation(graph, op, status);
    tp_lazy *node = new_node(graph, device, op, &call.out[0], n_in, attr_bytes);
    if (!node) return fail_operation(graph, op, TP_ENOMEM);
    uint32_t *distances = (uint32_t *)(node->record.words + node->record.rank);
    for (int k = 0; k < n_in; k++) distances[k] = node->id - inputs[k]->id;
    if (attr_bytes) memcpy(node->record.words + node->record.rank + ((size_t)n_in + 1) / 2, attr, attr_bytes);
    return append(graph, node);
}

tp_lazy *tpi_record_op(tp_graph *graph, tp_device *device, tpi_op op, tp_lazy *const *inputs, int n_in,
                       const void *attr, size_t attr_bytes) {
    if (!graph && n_in > 0 && inputs[0]) graph = inputs[0]->graph;
    tp_lazy *node = graph ? tpi_repeat(graph, device, op, NULL, inputs, n_in, attr, attr_bytes) : NULL;
    return node ? node : tpi_record_anew(graph, device, op, inputs, n_in, attr, attr_bytes);
}

/* The signature of a further output is inferred again: it is asked for rarely, and nodes stay small. */
static tp_status infer_part(tp_lazy *producer, int index, tpi_infer *call) {
    tp_lazy *inputs[TPI_MAX_IN];
    if (producer->value) return tpi_fail(TP_EINVAL, "its producer is evaluated already");
    if (index < 1 || index >= tpi_ops[producer->record.op].n_out)
        return tpi_fail(TP_EINVAL, "%s has no output %d", tpi_ops[producer->record.op].name, index);
    for (int k = 0; k < producer->record.n_in; k++) inputs[k] = tpi_node_input(producer, k);
    call->op = (tpi_op)producer->record.op, call->n_in = producer->record.n_in;
    call->attr = tpi_node_attr(producer);
    return infer(call, inputs);
}

static tp_lazy *part_anew(tp_lazy *producer, int index) {
    tp_graph *graph = producer->graph;
    tpi_infer call;
    tp_status status = infer_part(producer, index, &call);
    const tpi_signature *out = &call.out[index];
    tp_lazy *node = status == TP_OK ? new_node(graph, producer->device, TPI_PART, out, 1, 8) : NULL;
    if (!node) return fail_operation(graph, TPI_PART, status == TP_OK ? TP_ENOMEM : status);
    node->record.words[out->rank] = node->id - producer->id; /* one distance, padded */
    node->record.words[out->rank + 1] = (uint64_t)index;
    return append(graph, node);
}

tp_lazy *tpi_record_part(tp_lazy *producer, int index) {
    if (!producer || producer->graph->status != TP_OK) return NULL;
    tp_graph *graph = producer->graph;
    const tpi_attr_index attr = {index};
    tp_lazy *node = NULL;
    if (!producer->value)
        node = tpi_repeat(graph, producer->device, TPI_PART, NULL, &producer, 1, &attr, sizeof attr);
    if (!node) node = part_anew(producer, index);
    if (!node) return NULL;
    node->parts = producer->parts;
    producer->parts = node;
    return node;
}

/* ---- leaves ---- */

static tpi_leaf_entry *leaf_entry(const tp_graph *graph, const tpi_storage *storage) {
    const tpi_leaf_map *map = &graph->leaves;
    size_t i = (size_t)tpi_hash_mix(0, (uint64_t)(uintptr_t)storage) & (map->capacity - 1);
    while (map->entries[i].generation == graph->generation && map->entries[i].storage != storage)
        i = (i + 1) & (map->capacity - 1);
    return &map->entries[i];
}

tp_status tpi_leaves_reserve(tp_graph *graph, size_t more) {
    tpi_leaf_map old = graph->leaves;
    size_t capacity = old.capacity ? old.capacity : LEAF_MAP_START;
    while ((old.count + more) * 2 > capacity) capacity *= 2;
    if (capacity == old.capacity) return TP_OK;
    tpi_leaf_map larger = {NULL, capacity, old.count};
    if (!(larger.entries = tpi_calloc(larger.capacity, sizeof *larger.entries))) return TP_ENOMEM;
    graph->leaves = larger;
    for (size_t i = 0; i < old.capacity; i++)
        if (old.entries[i].generation == graph->generation)
            *leaf_entry(graph, old.entries[i].storage) = old.entries[i];
    tpi_free(old.entries);
    return TP_OK;
}

static void enter_leaf(tp_graph *graph, tpi_leaf_entry *entry, tp_lazy *leaf) {
    graph->leaves.count += entry->generation != graph->generation;
    *entry = (tpi_leaf_entry){leaf->value->storage, leaf, graph->generation};
}

/* The storage is fresh, or its older leaves are stale: the node takes the place of the first leaf. */
void tpi_node_become_leaf(tp_lazy *node, tp_tensor *value) {
    memcpy(&node->operation, &node->record, sizeof node->operation);
    node->graph->evaluated = true;
    node->record.op = TPI_LEAF;
    node->record.n_in = node->record.n_attr = 0;
    node->record_words = node->record.rank;
    hash_node(node);
    set_value(node, value);
    enter_leaf(node->graph, leaf_entry(node->graph, value->storage), node);
}

/* The words behind the head are still the operation's. */
void tpi_node_become_operation(tp_lazy *node) {
    memcpy(&node->record, &node->operation, sizeof node->operation);
    node->operation = 0;
    node->record_words = tpi_record_size(&node->record);
    hash_node(node);
}

/* `first`: the first leaf of the same storage, if there is one. */
static tp_lazy *new_leaf(tp_graph *graph, tp_tensor *tensor, const tp_lazy *first) {
    const tpi_signature out = {(uint8_t)tensor->dtype, (uint8_t)tensor->rank, tensor->shape};
    tp_device *device = tensor->storage->device;
    TPI_ATTR(tpi_attr_leaf, attr);
    const size_t attr_bytes = tensor->contiguous && !first ? 0 : sizeof attr;
    if (attr_bytes) {
        memcpy(attr.stride, tensor->stride, (size_t)tensor->rank * sizeof(int64_t));
        attr.alias = first ? (int64_t)(graph->tape.count - first->id) : 0;
    }
    tp_lazy *node = tpi_repeat(graph, device, TPI_LEAF, &out, NULL, 0, &attr, attr_bytes);
    if (!node) {
        if (!(node = new_node(graph, device, TPI_LEAF, &out, 0, attr_bytes))) return NULL;
        memcpy(node->record.words + tensor->rank, &attr, attr_bytes);
        append(graph, node);
    }
    set_value(node, tp_tensor_retain(tensor));
    return node;
}

tp_lazy *tp_lazy_from_tensor(tp_graph *graph, tp_tensor *tensor) {
    if (!graph || graph->status != TP_OK) return NULL;
    if (!tensor)
        return tpi_graph_fail(graph, TP_EINVAL, "leaf (call %zu): tensor is NULL", graph->tape.count);
    if (tensor->storage->device->context != graph->context)
        return tpi_graph_fail(graph, TP_EGRAPH, "leaf (call %zu): the tensor belongs to another context",
                              graph->tape.count);
    if (tpi_leaves_reserve(graph, 1) != TP_OK) return stick(graph, TP_ENOMEM);
    tpi_leaf_entry *entry = leaf_entry(graph, tensor->storage);
    bool known = entry->generation == graph->generation;
    for (tp_lazy *leaf = known ? entry->leaf : NULL; leaf; leaf = leaf->sibling)
        if (leaf->value == tensor && leaf->version == tpi_storage_version(tensor->storage)) return leaf;
    tp_lazy *leaf = new_leaf(graph, tensor, known ? entry->leaf : NULL);
    if (!leaf) return stick(graph, TP_ENOMEM);
    if (known) {
        leaf->sibling = entry->leaf->sibling;
        entry->leaf->sibling = leaf;
    } else {
        enter_leaf(graph, entry, leaf);
    }
    return leaf;
}

tp_lazy *tp_lazy_from_slice(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank,
                            const int64_t *shape, const void *data) {
    if (!graph || graph->status != TP_OK) return NULL;
    tp_tensor *tensor;
    tp_status status = data ? tp_tensor_from_data(device, dtype, rank, shape, data, &tensor)
                            : tpi_fail(TP_EINVAL, "leaf (call %zu): data is NULL", graph->tape.count);
    if (status != TP_OK) return stick(graph, status);
    tp_lazy *leaf = tp_lazy_from_tensor(graph, tensor);
    tp_tensor_release(tensor);
    return leaf;
}

tp_lazy *tp_lazy_assign(tp_lazy *state, tp_lazy *value) {
    if (!state) return value ? tpi_graph_fail(value->graph, TP_EINVAL, "assign: state is NULL") : NULL;
    tp_graph *graph = state->graph;
    if (graph->status == TP_OK) {
        if (state->generation != graph->generation)
            return tpi_graph_fail(graph, TP_EGRAPH,
                                  "assign (call %zu): state was recorded before the graph was reset",
                                  graph->tape.count);
        if (state->record.op != TPI_LEAF || !state->value->contiguous || state->value->storage->foreign)
            return tpi_graph_fail(
                graph, TP_EINVAL,
                "assign (call %zu): state must be a leaf of a contiguous tensor that owns its "
                "memory",
                graph->tape.count);
        tp_status status = tpi_grow(&graph->assigned, &graph->assigned_capacity, graph->assigned_count + 1,
                                    sizeof(uint32_t));
        if (status != TP_OK) return stick(graph, status);
    }
    tp_lazy *node = tpi_record_op(graph, NULL, TPI_ASSIGN, (tp_lazy *[]){state, value}, 2, NULL, 0);
    if (node) graph->assigned[graph->assigned_count++] = node->id;
    return node;
}

/* ---- recompute segments ---- */

tp_status tp_graph_recompute_begin(tp_graph *graph) {
    if (graph->segment) return tpi_fail(TP_EINVAL, "recompute: segments do not nest");
    graph->segment = ++graph->segments;
    return TP_OK;
}

tp_status tp_graph_recompute_end(tp_graph *graph) {
    if (!graph->segment) return tpi_fail(TP_EINVAL, "recompute: no segment is open");
    graph->segment = 0;
    return TP_OK;
}

/* ---- questions ---- */

int tp_lazy_rank(const tp_lazy *x) {
    return x ? x->record.rank : 0;
}
const int64_t *tp_lazy_shape(const tp_lazy *x) {
    return x ? tpi_node_shape(x) : NULL;
}
tp_dtype tp_lazy_dtype(const tp_lazy *x) {
    return x ? (tp_dtype)x->record.dtype : TP_F32;
}
tp_device *tp_lazy_device(const tp_lazy *x) {
    return x ? x->device : NULL;
}
uint32_t tp_lazy_id(const tp_lazy *x) {
    return x ? x->id : 0;
}
tp_graph *tp_lazy_graph(const tp_lazy *x) {
    return x ? x->graph : NULL;
}
bool tp_lazy_is_evaluated(const tp_lazy *x) {
    return x && x->value;
}

int64_t tp_lazy_size(const tp_lazy *x, int dim) {
    if (!x) return 0;
    if (dim < 0) dim += x->record.rank;
    return dim >= 0 && dim < x->record.rank ? tpi_node_shape(x)[dim] : 0;
}
