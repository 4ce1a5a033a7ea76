/* Fusion by patterns: a table of (name, last operation, rewrite).
 *
 * A rewrite looks at one instruction and, through its inputs, at the ones before it. If the pattern and its
 * guard hold it turns that instruction into the fused one and leaves the inner ones dead. An inner value must
 * have no other use. Each entry can be switched off by name (TP_FUSE=-lora) and is tested against the
 * composed form. */
#include "graph/ir.h"
#include "core/convert.h"

#include <string.h>

static tpi_inst *inst_at(tpi_ir *ir, uint32_t i) {
    return &ir->insts[i];
}
static const tpi_operand *operand(const tpi_ir *ir, uint32_t value) {
    return &ir->values[value].operand;
}

/* The instruction whose output 0 is `value`, if it is a live `op`; else NULL. */
static tpi_inst *producer(tpi_ir *ir, uint32_t value, tpi_op op) {
    const tpi_value *v = &ir->values[value];
    if (v->kind != TPI_VALUE_OUTPUT) return NULL;
    tpi_inst *inst = inst_at(ir, v->producer);
    return inst->op == op && inst->out[0] == value && !inst->dead ? inst : NULL;
}

/* The same, if nothing else uses the value. */
static tpi_inst *sole_producer(tpi_ir *ir, uint32_t value, tpi_op op) {
    return ir->values[value].uses == 1 ? producer(ir, value, op) : NULL;
}

static bool same_shape(const tpi_operand *a, const tpi_operand *b) {
    return a->rank == b->rank && memcmp(a->shape, b->shape, a->rank * sizeof(int64_t)) == 0;
}

static bool is_matrix(const tpi_ir *ir, uint32_t value) {
    return operand(ir, value)->rank == 2;
}

static void kill(tpi_ir *ir, tpi_inst *inst) {
    for (uint32_t k = 0; k < inst->n_in; k++) ir->values[inst->in[k]].uses--;
    inst->dead = true;
}

/* Turns `inst` into `op` of new inputs. */
static tp_status rewrite(tpi_ir *ir, tpi_inst *inst, tpi_op op, const uint32_t *in, uint32_t n_in,
                         const void *attr) {
    uint32_t *copy = tpi_arena_array(ir->arena, n_in, sizeof *copy);
    if (!copy) return TP_ENOMEM;
    for (uint32_t k = 0; k < n_in; k++) ir->values[copy[k] = in[k]].uses++;
    for (uint32_t k = 0; k < inst->n_in; k++) ir->values[inst->in[k]].uses--;
    inst->op = (uint16_t)op;
    inst->in = copy;
    inst->n_in = n_in;
    inst->attr = attr;
    return TP_OK;
}

/* ---- the patterns: x·A·B·s, x·W + lora, x·W + bias, activation(x·W), silu(g)·u, rms_norm(a + b) ---- */

/* A product in its left operand's dtype: what it is fused into knows no other. */
static tpi_inst *sole_matmul(tpi_ir *ir, uint32_t value) {
    tpi_inst *inst = sole_producer(ir, value, TPI_MATMUL);
    return inst && !inst->attr ? inst : NULL;
}

static tp_status fuse_lora(tpi_ir *ir, uint32_t i) {
    tpi_inst *scale = inst_at(ir, i), *up, *down;
    if (!(up = sole_matmul(ir, scale->in[0])) || !is_matrix(ir, up->in[1])) return TP_OK;
    if (!(down = sole_matmul(ir, up->in[0])) || !is_matrix(ir, down->in[1])) return TP_OK;
    const uint32_t in[] = {down->in[0], down->in[1], up->in[1]};
    TPI_TRY(rewrite(ir, scale, TPI_LORA, in, 3, scale->attr));
    kill(ir, up);
    kill(ir, down);
    return TP_OK;
}

static bool has_activation(const tpi_inst *inst) {
    return inst->op == TPI_LINEAR && inst->attr && ((const tpi_attr_linear *)inst->attr)->activation;
}

/* x·w or x·w + bias with a matrix w, used once. */
static tpi_inst *sole_linear(tpi_ir *ir, uint32_t value) {
    tpi_inst *inst = sole_matmul(ir, value);
    if (!inst) inst = sole_producer(ir, value, TPI_LINEAR);
    return inst && is_matrix(ir, inst->in[1]) && !has_activation(inst) ? inst : NULL;
}

static tp_status fuse_linear_lora(tpi_ir *ir, uint32_t i) {
    tpi_inst *add = inst_at(ir, i);
    for (int swap = 0; swap < 2; swap++) {
        tpi_inst *base = sole_linear(ir, add->in[swap]);
        tpi_inst *lora = sole_producer(ir, add->in[1 - swap], TPI_LORA);
        if (!base || !lora || base->in[0] != lora->in[0]) continue;
        if (!same_shape(operand(ir, base->out[0]), operand(ir, lora->out[0]))) continue;
        const uint32_t in[] = {base->in[0], base->in[1], lora->in[1], lora->in[2],
                               base->n_in > 2 ? base->in[2] : 0};
        TPI_TRY(rewrite(ir, add, TPI_LINEAR_LORA, in, base->n_in + 2, lora->attr));
        kill(ir, base);
        kill(ir, lora);
        return TP_OK;
    }
    return TP_OK;
}

static tp_status new_linear_attr(tpi_ir *ir, int64_t activation, const tpi_attr_linear **out) {
    tpi_attr_linear *attr = tpi_arena_array(ir->lasting, 1, sizeof *attr);
    if (!attr) return TP_ENOMEM;
    attr->activation = activation;
    *out = attr;
    return TP_OK;
}

static tp_status fuse_bias(tpi_ir *ir, uint32_t i) {
    tpi_inst *add = inst_at(ir, i);
    for (int swap = 0; swap < 2; swap++) {
        tpi_inst *base = sole_matmul(ir, add->in[swap]);
        const tpi_operand *bias = operand(ir, add->in[1 - swap]);
        if (!base || !is_matrix(ir, base->in[1]) || bias->rank != 1) continue;
        if (bias->shape[0] != operand(ir, base->in[1])->shape[1]) continue;
        const tpi_attr_linear *attr;
        TPI_TRY(new_linear_attr(ir, 0, &attr));
        const uint32_t in[] = {base->in[0], base->in[1], add->in[1 - swap]};
        TPI_TRY(rewrite(ir, add, TPI_LINEAR, in, 3, attr));
        kill(ir, base);
        return TP_OK;
    }
    return TP_OK;
}

static tp_status fuse_activation(tpi_ir *ir, uint32_t i) {
    tpi_inst *unary = inst_at(ir, i), *base = sole_linear(ir, unary->in[0]);
    const tpi_attr_linear *attr;
    if (!base) return TP_OK;
    TPI_TRY(new_linear_attr(ir, unary->op, &attr));
    TPI_TRY(rewrite(ir, unary, TPI_LINEAR, base->in, base->n_in, attr));
    kill(ir, base);
    return TP_OK;
}

static tp_status fuse_silu_mul(tpi_ir *ir, uint32_t i) {
    tpi_inst *mul = inst_at(ir, i);
    for (int swap = 0; swap < 2; swap++) {
        tpi_inst *silu = sole_producer(ir, mul->in[swap], TPI_SILU);
        if (!silu || !same_shape(operand(ir, mul->in[0]), operand(ir, mul->in[1]))) continue;
        const uint32_t in[] = {silu->in[0], mul->in[1 - swap]};
        TPI_TRY(rewrite(ir, mul, TPI_SILU_MUL, in, 2, NULL));
        kill(ir, silu);
        return TP_OK;
    }
    return TP_OK;
}

/* True if `value` exists before instruction i runs. */
static bool known_before(const tpi_ir *ir, uint32_t value, uint32_t i) {
    const tpi_value *root = &ir->values[ir->values[value].root];
    return root->kind == TPI_VALUE_LEAF || root->producer < i;
}

/* The sum may have other uses (it is the residual stream), so the fused instruction stands where the sum did
 * and has both outputs. */
static tp_status fuse_add_rms_norm(tpi_ir *ir, uint32_t i) {
    tpi_inst *norm = inst_at(ir, i), *add = producer(ir, norm->in[0], TPI_ADD);
    if (!add) return TP_OK;
    const tpi_operand *a = operand(ir, add->in[0]), *b = operand(ir, add->in[1]);
    if (!same_shape(a, b) || !tpi_is_float((tp_dtype)a->dtype)) return TP_OK;
    uint32_t sum = add->out[0], at = ir->values[sum].producer;
    if (norm->n_in > 1 && !known_before(ir, norm->in[1], at)) return TP_OK;
    const uint32_t in[] = {add->in[0], add->in[1], norm->n_in > 1 ? norm->in[1] : 0};
    TPI_TRY(rewrite(ir, add, TPI_ADD_RMS_NORM, in, norm->n_in + 1, norm->attr));
    kill(ir, norm);
    add->n_out = 2;
    add->out[0] = norm->out[0];
    ir->values[add->out[0]].producer = at;
    add->out[1] = sum;
    return TP_OK;
}

static const struct {
    enum tpi_fusion name;
    tpi_op last;
    tp_status (*rewrite)(tpi_ir *ir, uint32_t i);
} patterns[] = {
    {TPI_FUSE_LORA, TPI_MUL_SCALAR, fuse_lora},
    {TPI_FUSE_LINEAR_LORA, TPI_ADD, fuse_linear_lora},
    {TPI_FUSE_LINEAR, TPI_ADD, fuse_bias},
    {TPI_FUSE_LINEAR, TPI_RELU, fuse_activation},
    {TPI_FUSE_LINEAR, TPI_SILU, fuse_activation},
    {TPI_FUSE_LINEAR, TPI_GELU, fuse_activation},
    {TPI_FUSE_LINEAR, TPI_GELU_TANH, fuse_activation},
    {TPI_FUSE_SILU_MUL, TPI_MUL, fuse_silu_mul},
    {TPI_FUSE_ADD_RMS_NORM, TPI_RMS_NORM, fuse_add_rms_norm},
};

tp_status tpi_fuse(tpi_ir *ir) {
    for (uint32_t i = 0; i < ir->n_insts; i++)
        for (size_t p = 0; p < sizeof patterns / sizeof patterns[0]; p++) {
            const tpi_inst *inst = inst_at(ir, i);
            if (inst->dead || inst->op != patterns[p].last) continue;
            if (ir->context->fusions >> patterns[p].name & 1u) TPI_TRY(patterns[p].rewrite(ir, i));
        }
    return TP_OK;
}
