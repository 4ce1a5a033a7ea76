/* Fusion of pointwise chains: neighbours become one instruction that computes a short program a tile at a
 * time.
 *
 * Chains grow forwards: an instruction takes in the chains that produce its inputs, if nothing else uses them
 * and the program stays within bounds. While growing, a program is in single-assignment form; registers are
 * given at the end, lowest first. Arithmetic is in f32, so integer operations stay out. */
#include "graph/ir.h"
#include "core/convert.h"

#include <string.h>

#define STEP0 TPI_CHAIN_INPUTS /* operands below are inputs, from here on results of steps */

typedef struct chain {
    uint32_t in[TPI_CHAIN_INPUTS]; /* values */
    int n_in, n_steps;
    tpi_chain_step steps[TPI_CHAIN_LENGTH]; /* dst unused */
} chain;

static bool fits_f32(const tpi_operand *operand) {
    return tpi_is_float((tp_dtype)operand->dtype) || operand->dtype == TP_U8;
}

static bool is_pointwise(const tpi_ir *ir, const tpi_inst *inst) {
    if (inst->dead || !(tpi_ops[inst->op].flags & TPI_FLAG_POINTWISE) || inst->out[0] == TPI_NO_VALUE)
        return false;
    for (uint32_t k = 0; k < inst->n_in; k++)
        if (!fits_f32(&ir->values[inst->in[k]].operand)) return false;
    return fits_f32(&ir->values[inst->out[0]].operand);
}

/* The operand that stands for `value`: an input, added if it is new. -1 if there is no room. */
static int add_input(chain *c, uint32_t value) {
    for (int k = 0; k < c->n_in; k++)
        if (c->in[k] == value) return k;
    if (c->n_in == TPI_CHAIN_INPUTS) return -1;
    c->in[c->n_in] = value;
    return c->n_in++;
}

/* Appends the program of `from`; returns the operand of its result, -1 if there is no room. */
static int append(chain *c, const chain *from) {
    int map[TPI_CHAIN_INPUTS + TPI_CHAIN_LENGTH];
    if (c->n_steps + from->n_steps > TPI_CHAIN_LENGTH) return -1;
    for (int k = 0; k < from->n_in; k++)
        if ((map[k] = add_input(c, from->in[k])) < 0) return -1;
    for (int i = 0; i < from->n_steps; i++) {
        tpi_chain_step step = from->steps[i];
        step.a = (uint8_t)map[step.a];
        step.b = (uint8_t)map[step.b];
        step.c = (uint8_t)map[step.c];
        map[STEP0 + i] = STEP0 + c->n_steps;
        c->steps[c->n_steps++] = step;
    }
    return STEP0 + c->n_steps - 1;
}

/* Gives registers. Inputs keep registers 0 ... n_in-1, so that they are read where they lie; a result's is
 * free again after its last use. */
static bool assign_registers(const chain *c, tpi_attr_chain *attr) {
    int last[STEP0 + TPI_CHAIN_LENGTH], reg[STEP0 + TPI_CHAIN_LENGTH];
    unsigned busy = (1u << c->n_in) - 1;
    memset(last, -1, sizeof last);
    for (int i = 0; i < c->n_steps; i++) last[c->steps[i].a] = last[c->steps[i].b] = last[c->steps[i].c] = i;
    for (int k = 0; k < c->n_in; k++) reg[k] = k;
    for (int i = 0; i < c->n_steps; i++) {
        tpi_chain_step step = c->steps[i];
        const int operands[] = {step.a, step.b, step.c};
        step.a = (uint8_t)reg[operands[0]];
        step.b = (uint8_t)reg[operands[1]];
        step.c = (uint8_t)reg[operands[2]];
        for (int k = 0; k < 3; k++)
            if (operands[k] >= STEP0 && last[operands[k]] == i) busy &= ~(1u << reg[operands[k]]);
        int free_register = __builtin_ctz(~busy);
        if (free_register >= TPI_CHAIN_REGISTERS) return false;
        busy |= 1u << free_register;
        step.dst = (uint8_t)(reg[STEP0 + i] = free_register);
        attr->steps[i] = step;
    }
    attr->length = c->n_steps;
    return true;
}

static void step_of(const tpi_inst *inst, tpi_chain_step *step) {
    memset(step, 0, sizeof *step);
    step->op = inst->op;
    if (inst->op == TPI_MUL_SCALAR || inst->op == TPI_ADD_SCALAR)
        step->s = ((const tpi_attr_scalar *)inst->attr)->s;
    if (inst->op == TPI_COMPARE) step->how = (uint8_t)((const tpi_attr_index *)inst->attr)->index;
}

/* The first input of `inst` that is the same value as input k. */
static uint32_t first_same(const tpi_inst *inst, uint32_t k) {
    uint32_t j = 0;
    while (inst->in[j] != inst->in[k]) j++;
    return j;
}

/* A cast is asked to round or truncate, which f32 registers do not. What else would be rounded on its way to
 * memory is kept as it is. */
static bool keeps_value(const tpi_inst *inst, const tpi_operand *out) {
    return inst->op != TPI_CAST || out->dtype == TP_F32;
}

/* A value may be taken in if its only user is this instruction, it has the full shape of the result, and
 * nothing is lost by keeping it in a register. */
static bool may_take(const tpi_ir *ir, chain *const *chains, const tpi_inst *inst, uint32_t k,
                     const tpi_operand *out) {
    const tpi_value *v = &ir->values[inst->in[k]];
    uint32_t uses = 0;
    for (uint32_t j = 0; j < inst->n_in; j++) uses += inst->in[j] == inst->in[k];
    return v->kind == TPI_VALUE_OUTPUT && v->uses == uses && chains[v->producer] &&
           keeps_value(&ir->insts[v->producer], &v->operand) && first_same(inst, k) == k &&
           v->operand.rank == out->rank &&
           memcmp(v->operand.shape, out->shape, out->rank * sizeof(int64_t)) == 0;
}

/* The program of instruction i with the producers in `taken` (a bit an input) inside it; false if too large.
 */
static bool compose(const tpi_ir *ir, const tpi_inst *inst, chain *const *chains, unsigned taken, chain *c) {
    int operands[3] = {0, 0, 0};
    memset(c, 0, sizeof *c);
    for (uint32_t k = 0; k < inst->n_in; k++) {
        uint32_t value = inst->in[k];
        uint32_t same = first_same(inst, k);
        operands[k] = same < k          ? operands[same]
                      : taken >> k & 1u ? append(c, chains[ir->values[value].producer])
                                        : add_input(c, value);
        if (operands[k] < 0) return false;
    }
    if (c->n_steps == TPI_CHAIN_LENGTH) return false;
    for (uint32_t k = inst->n_in; k < 3; k++) operands[k] = operands[0];
    tpi_chain_step *step = &c->steps[c->n_steps++];
    step_of(inst, step);
    step->a = (uint8_t)operands[0];
    step->b = (uint8_t)operands[1];
    step->c = (uint8_t)operands[2];
    tpi_attr_chain attr;
    return assign_registers(c, &attr);
}

static tp_status grow(tpi_ir *ir, chain **chains, uint32_t i) {
    tpi_inst *inst = &ir->insts[i];
    const tpi_operand *out = &ir->values[inst->out[0]].operand;
    chain c;
    unsigned taken = 0;
    for (uint32_t k = 0; k < inst->n_in; k++) {
        if (!may_take(ir, chains, inst, k, out)) continue;
        if (compose(ir, inst, chains, taken | 1u << k, &c)) taken |= 1u << k;
    }
    if (!compose(ir, inst, chains, taken, &c)) return TP_OK;
    for (uint32_t k = 0; k < inst->n_in; k++) {
        if (!(taken >> k & 1u)) continue;
        uint32_t inner = ir->values[inst->in[k]].producer;
        ir->insts[inner].dead = true;
        chains[i] = chains[inner]; /* its memory serves again, or a long recording would need a lot */
        chains[inner] = NULL;
    }
    if (!chains[i] && !(chains[i] = tpi_arena_take(ir->arena, sizeof c))) return TP_ENOMEM;
    *chains[i] = c;
    return TP_OK;
}

/* Turns a live instruction whose program has several steps into the fused one. */
static tp_status emit(tpi_ir *ir, tpi_inst *inst, const chain *c) {
    tpi_attr_chain *attr = tpi_arena_array(ir->lasting, 1, sizeof *attr);
    uint32_t *in = tpi_arena_array(ir->arena, (size_t)c->n_in, sizeof *in);
    if (!attr || !in) return TP_ENOMEM;
    assign_registers(c, attr);
    memcpy(in, c->in, (size_t)c->n_in * sizeof *in);
    inst->op = TPI_POINTWISE_CHAIN;
    inst->attr = attr;
    inst->in = in;
    inst->n_in = (uint32_t)c->n_in;
    return TP_OK;
}

static void count_uses(tpi_ir *ir) {
    for (size_t v = 0; v < ir->n_values; v++) ir->values[v].uses = 0;
    for (size_t v = 0; v < ir->n_values; v++)
        if (ir->values[v].kind == TPI_VALUE_VIEW) ir->values[ir->values[v].producer].uses++;
    for (size_t i = 0; i < ir->n_insts; i++)
        for (uint32_t k = 0; !ir->insts[i].dead && k < ir->insts[i].n_in; k++)
            ir->values[ir->insts[i].in[k]].uses++;
    for (int i = 0; i < ir->n_outputs; i++)
        if (ir->outputs[i] != TPI_NO_VALUE) ir->values[ir->outputs[i]].uses++;
    for (size_t i = 0; i < ir->n_assignments; i++) {
        ir->values[ir->assignments[i].leaf].uses++;
        ir->values[ir->assignments[i].value].uses++;
    }
}

tp_status tpi_fuse_chains(tpi_ir *ir) {
    if (!(ir->context->fusions >> TPI_FUSE_POINTWISE & 1u)) return TP_OK;
    chain **chains = tpi_arena_array(ir->arena, ir->n_insts + 1, sizeof(chain *));
    if (!chains) return TP_ENOMEM;
    for (uint32_t i = 0; i < ir->n_insts; i++)
        if (is_pointwise(ir, &ir->insts[i])) TPI_TRY(grow(ir, chains, i));
    for (size_t i = 0; i < ir->n_insts; i++)
        if (chains[i] && !ir->insts[i].dead && chains[i]->n_steps > 1)
            TPI_TRY(emit(ir, &ir->insts[i], chains[i]));
    count_uses(ir);
    return TP_OK;
}
