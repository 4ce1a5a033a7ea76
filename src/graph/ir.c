/* Growing the planner's working form. */
#include "graph/ir.h"
#include "core/alloc.h"

#include <string.h>

tp_status tpi_ir_value(tpi_ir *ir, tpi_value_kind kind, uint32_t producer, const tpi_operand *operand,
                       uint32_t *out) {
    if (ir->n_values >= TPI_NO_VALUE) return tpi_fail(TP_ENOMEM, "plan: too many values");
    TPI_TRY(tpi_grow(&ir->values, &ir->values_capacity, ir->n_values + 1, sizeof *ir->values));
    *out = (uint32_t)ir->n_values++;
    ir->values[*out] = (tpi_value){.kind = kind,
                                   .producer = producer,
                                   .root = kind == TPI_VALUE_VIEW ? ir->values[producer].root : *out,
                                   .offset = kind == TPI_VALUE_VIEW ? ir->values[producer].offset : 0,
                                   .operand = *operand};
    if (kind == TPI_VALUE_VIEW) ir->values[producer].uses++;
    return TP_OK;
}

tp_status tpi_ir_inst(tpi_ir *ir, tpi_op op, int n_out, const uint32_t *in, uint32_t n_in, const void *attr,
                      uint32_t *out) {
    TPI_TRY(tpi_grow(&ir->insts, &ir->insts_capacity, ir->n_insts + 1, sizeof *ir->insts));
    uint32_t *copy = tpi_arena_array(ir->arena, n_in ? n_in : 1, sizeof *copy);
    if (!copy) return TP_ENOMEM;
    for (uint32_t k = 0; k < n_in; k++) ir->values[copy[k] = in[k]].uses++;
    *out = (uint32_t)ir->n_insts++;
    tpi_inst *inst = &ir->insts[*out];
    *inst = (tpi_inst){.op = (uint16_t)op, .n_out = (uint8_t)n_out, .n_in = n_in, .in = copy, .attr = attr};
    for (int k = 0; k < TPI_MAX_OUT; k++) inst->out[k] = TPI_NO_VALUE;
    return TP_OK;
}

void tpi_ir_release(tpi_ir *ir) {
    tpi_free(ir->values);
    tpi_free(ir->insts);
    tpi_free(ir->leaves);
    tpi_free(ir->leaf_order);
}

void tpi_operand_finish(tpi_operand *operand) {
    operand->count = 1;
    for (int d = 0; d < operand->rank; d++) operand->count *= operand->shape[d];
    operand->contiguous = tpi_is_row_major(operand->rank, operand->shape, operand->stride);
}

tpi_operand tpi_operand_row_major(tp_dtype dtype, int rank, const int64_t *shape) {
    tpi_operand operand = {.dtype = (uint8_t)dtype, .rank = (uint8_t)rank};
    memcpy(operand.shape, shape, (size_t)rank * sizeof *shape);
    tpi_row_major(rank, shape, operand.stride);
    tpi_operand_finish(&operand);
    return operand;
}

void tpi_ir_step(const tpi_ir *ir, const tpi_inst *inst, tpi_operand *operands, tpi_step *step) {
    *step = (tpi_step){.op = inst->op,
                       .n_in = (uint8_t)inst->n_in,
                       .n_out = inst->n_out,
                       .attr = inst->attr,
                       .kernel = inst->kernel,
                       .operands = operands,
                       .scratch = inst->scratch};
    for (uint32_t k = 0; k < inst->n_in; k++) operands[k] = ir->values[inst->in[k]].operand;
    for (int k = 0; k < inst->n_out; k++) {
        if (inst->out[k] == TPI_NO_VALUE) {
            step->optional_missing |= (uint8_t)(1u << k);
            operands[inst->n_in + (uint32_t)k] = TPI_UNWANTED_OPERAND;
        } else {
            operands[inst->n_in + (uint32_t)k] = ir->values[inst->out[k]].operand;
        }
    }
}
