/* Lowering: from nodes to instructions on strided values.
 *
 * Shape operations become views: new strides on the same memory. A reshape whose strides cannot be expressed
 * gets a copy. */
#include "graph/ir.h"
#include "core/alloc.h"

#include <string.h>

typedef struct lowering {
    tpi_ir *ir;
    const tpi_order *order;
    uint32_t base;      /* ordinal of the lowest node */
    uint32_t *value_of; /* ordinal - base -> value */
    uint32_t *inst_of;  /* ordinal - base -> instruction, for parts */
} lowering;

static uint32_t input_value(const lowering *low, const tp_lazy *node, int k) {
    return low->value_of[node->id - tpi_node_distances(node)[k] - low->base];
}

/* ---- views ---- */

/* Strides for `shape` on the memory of `from`, without moving it; false if there are none. Runs of dimensions
 * whose strides are mergeable are matched with runs of the target with the same product. */
static bool reshape_strides(const tpi_operand *from, int rank, const int64_t *shape, int64_t *stride) {
    if (from->contiguous || from->count == 0) {
        tpi_row_major(rank, shape, stride);
        return true;
    }
    int64_t old_shape[TP_MAX_RANK], old_stride[TP_MAX_RANK];
    int n_old = 0;
    for (int d = 0; d < from->rank; d++)
        if (from->shape[d] != 1) {
            old_shape[n_old] = from->shape[d];
            old_stride[n_old++] = from->stride[d];
        }
    int i = 0, j = 0;
    while (i < n_old) {
        int i_end = i + 1, j_end = j + 1;
        int64_t old_size = old_shape[i], new_size = j < rank ? shape[j] : 1;
        while (old_size != new_size) {
            if (new_size < old_size && j_end < rank)
                new_size *= shape[j_end++];
            else
                old_size *= old_shape[i_end++];
        }
        for (int k = i; k + 1 < i_end; k++)
            if (old_stride[k] != old_stride[k + 1] * old_shape[k + 1]) return false;
        int64_t step = old_stride[i_end - 1];
        for (int k = j_end - 1; k >= j; k--) {
            stride[k] = step;
            step *= shape[k];
        }
        i = i_end;
        j = j_end;
    }
    for (; j < rank; j++) stride[j] = 1; /* trailing sizes of 1 */
    return true;
}

static tp_status add_copy(tpi_ir *ir, uint32_t value, uint32_t *out) {
    const tpi_operand *from = &ir->values[value].operand;
    tpi_operand to = tpi_operand_row_major((tp_dtype)from->dtype, from->rank, from->shape);
    uint32_t inst;
    TPI_TRY(tpi_ir_inst(ir, TPI_COPY, 1, &value, 1, NULL, &inst));
    TPI_TRY(tpi_ir_value(ir, TPI_VALUE_OUTPUT, inst, &to, out));
    ir->insts[inst].out[0] = *out;
    return TP_OK;
}

static tp_status lower_reshape(lowering *low, const tp_lazy *node, uint32_t base, uint32_t *out) {
    tpi_operand view = {.dtype = node->record.dtype, .rank = node->record.rank};
    memcpy(view.shape, tpi_node_shape(node), view.rank * sizeof(int64_t));
    if (!reshape_strides(&low->ir->values[base].operand, view.rank, view.shape, view.stride)) {
        TPI_TRY(add_copy(low->ir, base, &base));
        tpi_row_major(view.rank, view.shape, view.stride);
    }
    tpi_operand_finish(&view);
    return tpi_ir_value(low->ir, TPI_VALUE_VIEW, base, &view, out);
}

static void broadcast_strides(const tpi_operand *from, tpi_operand *view) {
    int added = view->rank - from->rank;
    for (int d = 0; d < view->rank; d++) {
        bool repeated = d < added || (from->shape[d - added] == 1 && view->shape[d] != 1);
        view->stride[d] = repeated ? 0 : from->stride[d - added];
    }
}

static tp_status lower_view(lowering *low, const tp_lazy *node, uint32_t *out) {
    tpi_ir *ir = low->ir;
    uint32_t base = input_value(low, node, 0);
    if (node->record.op == TPI_RESHAPE) return lower_reshape(low, node, base, out);
    tpi_operand from = ir->values[base].operand, view = from;
    uint64_t offset = 0;
    view.rank = node->record.rank;
    memcpy(view.shape, tpi_node_shape(node), view.rank * sizeof(int64_t));
    if (node->record.op == TPI_PERMUTE) {
        const tpi_attr_permute *permute = tpi_node_attr(node);
        for (int d = 0; d < view.rank; d++) view.stride[d] = from.stride[permute->dims[d]];
    } else if (node->record.op == TPI_SLICE) {
        const tpi_attr_range *range = tpi_node_attr(node);
        offset = (uint64_t)(range->begin * from.stride[range->dim]) * tp_dtype_size((tp_dtype)from.dtype);
    } else {
        broadcast_strides(&from, &view);
    }
    tpi_operand_finish(&view);
    TPI_TRY(tpi_ir_value(ir, TPI_VALUE_VIEW, base, &view, out));
    if (view.count) ir->values[*out].offset += offset;
    return TP_OK;
}

/* ---- leaves, operations ---- */

/* A leaf of the same storage as an earlier one: what is written through one is seen through the other. */
static tp_status mark_shared(lowering *low, const tp_lazy *node, uint32_t value) {
    const tpi_attr_leaf *leaf = tpi_node_attr(node);
    if (!leaf || !leaf->alias) return TP_OK;
    low->ir->values[value].shared = true;
    int64_t first = (int64_t)node->id - leaf->alias - low->base;
    if (first >= 0 && low->value_of[first] != TPI_NO_VALUE)
        low->ir->values[low->value_of[first]].shared = true;
    return TP_OK;
}

static tp_status lower_leaf(lowering *low, const tp_lazy *node, uint32_t position, uint32_t *out) {
    tpi_ir *ir = low->ir;
    tpi_operand operand =
        tpi_operand_row_major((tp_dtype)node->record.dtype, node->record.rank, tpi_node_shape(node));
    if (node->record.n_attr) {
        const tpi_attr_leaf *leaf = tpi_node_attr(node);
        memcpy(operand.stride, leaf->stride, sizeof operand.stride);
        tpi_operand_finish(&operand);
    }
    uint32_t number = (uint32_t)ir->n_leaves;
    TPI_TRY(tpi_grow(&ir->leaves, &ir->leaves_capacity, ir->n_leaves + 1, sizeof *ir->leaves));
    TPI_TRY(tpi_grow(&ir->leaf_order, &ir->leaf_order_capacity, ir->n_leaves + 1, sizeof *ir->leaf_order));
    TPI_TRY(tpi_ir_value(ir, TPI_VALUE_LEAF, number, &operand, out));
    ir->leaves[number] = *out;
    ir->leaf_order[number] = position;
    ir->n_leaves++;
    return mark_shared(low, node, *out);
}

static tp_status lower_operation(lowering *low, const tp_lazy *node, uint32_t *out) {
    tpi_ir *ir = low->ir;
    uint32_t in[TPI_MAX_IN], inst;
    for (int k = 0; k < node->record.n_in; k++) in[k] = input_value(low, node, k);
    const void *attr = tpi_node_attr(node);
    if (attr) { /* plans outlive recordings */
        void *copy = tpi_arena_take(ir->lasting, node->record.n_attr * 8u);
        if (!copy) return TP_ENOMEM;
        attr = memcpy(copy, attr, node->record.n_attr * 8u);
    }
    TPI_TRY(tpi_ir_inst(ir, (tpi_op)node->record.op, tpi_ops[node->record.op].n_out, in, node->record.n_in,
                        attr, &inst));
    tpi_operand operand =
        tpi_operand_row_major((tp_dtype)node->record.dtype, node->record.rank, tpi_node_shape(node));
    TPI_TRY(tpi_ir_value(ir, TPI_VALUE_OUTPUT, inst, &operand, out));
    ir->insts[inst].out[0] = *out;
    low->inst_of[node->id - low->base] = inst;
    return TP_OK;
}

/* A further output of its producer: two parts of the same output share the value. */
static tp_status lower_part(lowering *low, const tp_lazy *node, uint32_t *out) {
    tpi_ir *ir = low->ir;
    uint32_t inst = low->inst_of[node->id - tpi_node_distances(node)[0] - low->base];
    int64_t index = ((const tpi_attr_index *)tpi_node_attr(node))->index;
    if ((*out = ir->insts[inst].out[index]) != TPI_NO_VALUE) return TP_OK;
    tpi_operand operand =
        tpi_operand_row_major((tp_dtype)node->record.dtype, node->record.rank, tpi_node_shape(node));
    TPI_TRY(tpi_ir_value(ir, TPI_VALUE_OUTPUT, inst, &operand, out));
    ir->insts[inst].out[index] = *out;
    return TP_OK;
}

static tp_status lower_node(lowering *low, const tp_lazy *node, uint32_t position, uint32_t *out) {
    if (node->record.op == TPI_LEAF) return lower_leaf(low, node, position, out);
    if (node->record.op == TPI_PART) return lower_part(low, node, out);
    if (node->record.op == TPI_ASSIGN) return *out = input_value(low, node, 1), TP_OK;
    if (tpi_ops[node->record.op].flags & TPI_FLAG_VIEW) return lower_view(low, node, out);
    return lower_operation(low, node, out);
}

/* ---- outputs and assignments ---- */

/* The value that serves an output. Results are row-major and share memory with nothing but a leaf asked for
 * itself. So a value is copied if another output has its memory, and a view if it is strided, shows a leaf,
 * or keeps more than twice its bytes alive. */
static tp_status lower_output(lowering *low, const tp_lazy *node, uint32_t *out) {
    tpi_ir *ir = low->ir;
    *out = low->value_of[node->id - low->base];
    const tpi_value *value = &ir->values[*out], *root = &ir->values[value->root];
    if (value->kind != TPI_VALUE_LEAF) {
        bool unfit = root->kind == TPI_VALUE_LEAF || !value->operand.contiguous ||
                     value->operand.count * 2 < root->operand.count;
        if (unfit || root->result) TPI_TRY(add_copy(ir, *out, out));
        ir->values[ir->values[*out].root].result = true;
    }
    ir->values[*out].uses++;
    return TP_OK;
}

static tp_status lower_ends(lowering *low, tp_graph *graph) {
    tpi_ir *ir = low->ir;
    const tpi_order *order = low->order;
    ir->n_outputs = order->n_outputs;
    ir->n_assignments = graph->assigned_count;
    ir->outputs = tpi_arena_array(ir->arena, (size_t)order->n_outputs + 1, sizeof *ir->outputs);
    ir->assignments = tpi_arena_array(ir->arena, ir->n_assignments + 1, sizeof *ir->assignments);
    if (!ir->outputs || !ir->assignments) return TP_ENOMEM;
    for (size_t i = 0; i < ir->n_assignments; i++) {
        const tp_lazy *node = graph->tape.nodes[graph->assigned[i]];
        ir->assignments[i] = (tpi_assignment){input_value(low, node, 0), input_value(low, node, 1)};
        ir->values[ir->assignments[i].leaf].uses++;
        ir->values[ir->assignments[i].value].uses++;
    }
    for (int i = 0; i < order->n_outputs; i++) {
        if (order->outputs[i]->record.op == TPI_ASSIGN) { /* the state's own tensor serves it */
            ir->outputs[i] = TPI_NO_VALUE;
            continue;
        }
        TPI_TRY(lower_output(low, order->outputs[i], &ir->outputs[i]));
    }
    return TP_OK;
}

tp_status tpi_lower(tp_graph *graph, const tpi_order *order, tpi_ir *ir) {
    if (order->count == 0) return lower_ends(&(lowering){ir, order, 0, NULL, NULL}, graph);
    lowering low = {ir, order, order->nodes[order->count - 1]->id, NULL, NULL};
    size_t span = order->nodes[0]->id - low.base + 1;
    low.value_of = tpi_realloc_array(NULL, span, sizeof(uint32_t));
    low.inst_of = tpi_realloc_array(NULL, span, sizeof(uint32_t));
    tp_status status = low.value_of && low.inst_of ? TP_OK : TP_ENOMEM;
    if (low.value_of) memset(low.value_of, 0xff, span * sizeof(uint32_t)); /* TPI_NO_VALUE */
    for (size_t i = order->count; status == TP_OK && i-- > 0;) {
        const tp_lazy *node = order->nodes[i];
        status = lower_node(&low, node, (uint32_t)i, &low.value_of[node->id - low.base]);
    }
    if (status == TP_OK) status = lower_ends(&low, graph);
    tpi_free(low.value_of);
    tpi_free(low.inst_of);
    return status;
}
