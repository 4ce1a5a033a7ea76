/* Recomputation (Chen et al. 2016): where a rule reads a value of its own segment, it gets a clone of the
 * node that made it, recorded now. The clone's inputs are clones inside the segment and the kept originals
 * outside, so that only the segment's inputs live until the backward pass. Random operations draw from
 * counters: a clone gives the same bits.
 *
 * Outside of segments the value of an operation that is marked REMADE is cloned too: the backward pass keeps
 * its inputs for that operation's own rule (selective recomputation, Korthikanti et al. 2022). */
#include "autograd/reverse.h"
#include "autograd/vjp.h"

#include "core/alloc.h"

/* Leaves are values already; state and parts of its update are never made twice. */
static bool is_kept(const tp_lazy *node, uint32_t segment) {
    return segment == 0 || node->segment != segment || node->record.op == TPI_LEAF ||
           node->record.op == TPI_ASSIGN || node->record.op == TPI_PART;
}

static tp_lazy *record_clone(const tpi_reverse *reverse, const tp_lazy *node) {
    tp_lazy *inputs[TPI_MAX_IN];
    for (int k = 0; k < node->record.n_in; k++) {
        tp_lazy *input = tpi_node_input(node, k);
        inputs[k] = is_kept(input, node->segment) ? input : reverse->clone[input->id];
    }
    return tpi_record_op(reverse->graph, node->device, (tpi_op)node->record.op, inputs, node->record.n_in,
                         tpi_node_attr(node), node->record.n_attr * sizeof(uint64_t));
}

/* Pushes the inputs that have no clone yet; false if there is none. */
static bool push_inputs(tpi_reverse *reverse, const tp_lazy *node, size_t *depth, tp_status *status) {
    size_t before = *depth;
    *status =
        tpi_grow(&reverse->stack, &reverse->stack_capacity, before + node->record.n_in, sizeof(tp_lazy *));
    if (*status != TP_OK) return false;
    for (int k = 0; k < node->record.n_in; k++) {
        tp_lazy *input = tpi_node_input(node, k);
        if (!is_kept(input, node->segment) && !reverse->clone[input->id]) reverse->stack[(*depth)++] = input;
    }
    return *depth > before;
}

static tp_status make_clone(tpi_reverse *reverse, tp_lazy *value) {
    size_t depth = 0;
    tp_status status = tpi_grow(&reverse->stack, &reverse->stack_capacity, 1, sizeof(tp_lazy *));
    if (status != TP_OK) return status;
    reverse->stack[depth++] = value;
    while (depth > 0) {
        tp_lazy *node = reverse->stack[depth - 1];
        if (!reverse->clone[node->id]) {
            if (push_inputs(reverse, node, &depth, &status)) continue;
            if (status != TP_OK) return status;
            if (!(reverse->clone[node->id] = record_clone(reverse, node))) return reverse->graph->status;
        }
        depth--;
    }
    return TP_OK;
}

static bool is_remade(const tp_lazy *value) {
    return value->segment == 0 && tpi_ops[value->record.op].flags & TPI_FLAG_REMADE;
}

tp_lazy *tpi_reverse_read(tpi_reverse *reverse, const tp_lazy *reader, tp_lazy *value) {
    if (is_kept(value, reader->segment) && !is_remade(value)) return value;
    if (!reverse->clone && !(reverse->clone = tpi_calloc((size_t)reverse->loss->id + 1, sizeof(tp_lazy *))))
        return tpi_graph_fail(reverse->graph, TP_ENOMEM, "recompute: out of memory");
    if (!reverse->clone[value->id] && make_clone(reverse, value) != TP_OK)
        return tpi_graph_fail(reverse->graph, TP_ENOMEM, "recompute: out of memory");
    return reverse->clone[value->id];
}
