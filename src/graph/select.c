/* Kernel selection: the first candidate that accepts the step as it is, or with strided inputs copied.
 *
 * The instructions are written anew, without the dead ones and with the copies in place. */
#include "graph/ir.h"
#include "core/alloc.h"

#include <string.h>

typedef struct selection {
    tpi_ir *ir;
    tpi_inst *old;
    uint32_t *copied;      /* value -> its row-major copy, made once */
    tpi_operand *operands; /* of the step being asked about */
} selection;

static const tpi_kernel *first_accepting(const tpi_kernel *candidates, const tpi_step *step) {
    for (const tpi_kernel *kernel = candidates; kernel && kernel->run; kernel++)
        if (!kernel->accepts || kernel->accepts(step)) return kernel;
    return NULL;
}

static size_t scratch_of(const tpi_ir *ir, const tpi_kernel *kernel, const tpi_step *step) {
    return kernel->scratch ? kernel->scratch(step, tpi_threads_parts(ir->context->threads)) : 0;
}

static tp_status no_kernel(const tpi_ir *ir, const tpi_inst *inst) {
    char shape[TPI_SHAPE_TEXT] = "";
    if (inst->out[0] != TPI_NO_VALUE) {
        const tpi_operand *out = &ir->values[inst->out[0]].operand;
        tpi_shape_text(out->rank, out->shape, shape);
    }
    return tpi_fail(TP_ENOKERNEL, "%s %s: no kernel on %s", tpi_ops[inst->op].name, shape, ir->backend->name);
}

/* Appends `inst` (by value: the array may move) with its kernel. */
static tp_status push(selection *sel, tpi_inst inst, const tpi_kernel *kernel, const tpi_step *step) {
    tpi_ir *ir = sel->ir;
    TPI_TRY(tpi_grow(&ir->insts, &ir->insts_capacity, ir->n_insts + 1, sizeof *ir->insts));
    inst.kernel = kernel;
    inst.scratch = scratch_of(ir, kernel, step);
    for (int k = 0; k < inst.n_out; k++)
        if (inst.out[k] != TPI_NO_VALUE) ir->values[inst.out[k]].producer = (uint32_t)ir->n_insts;
    ir->insts[ir->n_insts++] = inst;
    return TP_OK;
}

static tp_status select_as_it_is(selection *sel, const tpi_inst *inst) {
    tpi_step step;
    tpi_ir_step(sel->ir, inst, sel->operands, &step);
    const tpi_kernel *kernel = first_accepting(sel->ir->backend->kernels((tpi_op)inst->op), &step);
    return kernel ? push(sel, *inst, kernel, &step) : no_kernel(sel->ir, inst);
}

static tp_status copy_of(selection *sel, uint32_t value, uint32_t *out) {
    tpi_ir *ir = sel->ir;
    if ((*out = sel->copied[value]) != TPI_NO_VALUE) return TP_OK;
    const tpi_operand *from = &ir->values[value].operand;
    tpi_operand to = tpi_operand_row_major((tp_dtype)from->dtype, from->rank, from->shape);
    TPI_TRY(tpi_ir_value(ir, TPI_VALUE_OUTPUT, 0, &to, out));
    uint32_t *in = tpi_arena_array(ir->arena, 1, sizeof *in);
    if (!in) return TP_ENOMEM;
    *in = value;
    tpi_inst inst = {
        .op = TPI_COPY, .n_out = 1, .n_in = 1, .in = in, .out = {*out, TPI_NO_VALUE, TPI_NO_VALUE}};
    TPI_TRY(select_as_it_is(sel, &inst));
    sel->copied[value] = *out;
    return TP_OK;
}

/* A strided input is copied if that lets a better kernel in. */
static tp_status select_with_copies(selection *sel, tpi_inst *inst, const tpi_kernel *kernel) {
    tpi_step step;
    for (uint32_t k = 0; k < inst->n_in; k++)
        if (!sel->ir->values[inst->in[k]].operand.contiguous)
            TPI_TRY(copy_of(sel, inst->in[k], &inst->in[k]));
    tpi_ir_step(sel->ir, inst, sel->operands, &step);
    return push(sel, *inst, kernel, &step);
}

static tp_status select_one(selection *sel, tpi_inst *inst) {
    tpi_step plain, copied;
    tpi_operand row_major[TPI_MAX_IN + TPI_MAX_OUT];
    tpi_ir_step(sel->ir, inst, sel->operands, &plain);
    tpi_ir_step(sel->ir, inst, row_major, &copied);
    bool strided = false;
    for (uint32_t k = 0; k < inst->n_in; k++) {
        strided |= !row_major[k].contiguous;
        row_major[k] =
            tpi_operand_row_major((tp_dtype)row_major[k].dtype, row_major[k].rank, row_major[k].shape);
    }
    const tpi_kernel *candidates = sel->ir->backend->kernels((tpi_op)inst->op);
    for (const tpi_kernel *kernel = candidates; kernel && kernel->run; kernel++) {
        if (!kernel->accepts || kernel->accepts(&plain)) return push(sel, *inst, kernel, &plain);
        if (strided && kernel->accepts(&copied)) return select_with_copies(sel, inst, kernel);
    }
    return no_kernel(sel->ir, inst);
}

static tp_status select_all(selection *sel, size_t n_old, size_t n_values) {
    tpi_ir *ir = sel->ir;
    sel->operands = tpi_arena_array(ir->arena, TPI_MAX_IN + TPI_MAX_OUT, sizeof *sel->operands);
    sel->copied = tpi_arena_array(ir->arena, n_values + 1, sizeof *sel->copied);
    if (!sel->operands || !sel->copied) return TP_ENOMEM;
    memset(sel->copied, 0xff, n_values * sizeof *sel->copied); /* TPI_NO_VALUE */
    for (size_t i = 0; i < n_old; i++)
        if (!sel->old[i].dead) TPI_TRY(select_one(sel, &sel->old[i]));
    return TP_OK;
}

tp_status tpi_select_kernels(tpi_ir *ir) {
    selection sel = {.ir = ir, .old = ir->insts};
    size_t n_old = ir->n_insts;
    ir->insts = NULL;
    ir->n_insts = ir->insts_capacity = 0;
    tp_status status = select_all(&sel, n_old, ir->n_values);
    tpi_free(sel.old);
    return status;
}
