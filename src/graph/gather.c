/* Gathering: instructions that a backend may launch as one are brought next to each other, where it launches
 * several together (tpi_backend.together). Of what stands between them, they come behind what they need and
 * before all else; else the order stays. Each is told the last of them: until then its scratch is its own,
 * and what it reads is not written over. */
#include "graph/ir.h"

#include <string.h>

#define MOST   4  /* instructions that are brought together */
#define WITHIN 64 /* of so many */

/* The instructions to bring together, in the order in which they shall stand: none needs one behind it. */
typedef struct party {
    uint32_t member[MOST], count;
} party;

/* The instruction that makes input k; TPI_NO_VALUE for what was there before the plan. */
static uint32_t maker_of(const tpi_ir *ir, const tpi_inst *inst, uint32_t k) {
    const tpi_value *root = &ir->values[ir->values[inst->in[k]].root];
    return root->kind == TPI_VALUE_OUTPUT ? root->producer : TPI_NO_VALUE;
}

/* ---- who belongs together ---- */

/* A sum, with the adapted layers whose results it alone reads. */
static void find_layers(const tpi_ir *ir, uint32_t i, party *p) {
    const tpi_inst *sum = &ir->insts[i];
    if (sum->n_in >= MOST) return;
    for (uint32_t k = 0; k < sum->n_in; k++) {
        const uint32_t maker = maker_of(ir, sum, k);
        if (maker == TPI_NO_VALUE || ir->insts[maker].op != TPI_LINEAR_LORA) return;
        if (ir->insts[maker].out[0] != sum->in[k] || ir->values[sum->in[k]].uses != 1) return;
        p->member[p->count++] = maker;
    }
    if (p->count > 1) p->member[p->count++] = i;
}

static bool same_inputs(const tpi_inst *a, const tpi_inst *b, uint32_t of_b) {
    for (uint32_t k = 1; k < a->n_in; k++)
        if (of_b + k >= b->n_in || a->in[k] != b->in[of_b + k]) return false;
    return a->in[0] == b->in[0];
}

/* The gradient of a norm by x and what it is added to; with the norm, if that is made again. */
static void find_norm(const tpi_ir *ir, uint32_t i, party *p) {
    const tpi_inst *add = &ir->insts[i];
    uint32_t grad = TPI_NO_VALUE;
    for (uint32_t k = 0; k < add->n_in; k++) {
        const uint32_t maker = maker_of(ir, add, k);
        if (maker != TPI_NO_VALUE && ir->insts[maker].op == TPI_RMS_NORM_GRAD &&
            ir->insts[maker].out[0] == add->in[k] && ir->values[add->in[k]].uses == 1)
            grad = maker;
    }
    if (grad == TPI_NO_VALUE) return;
    for (uint32_t j = grad; j-- > 0 && grad - j <= WITHIN && p->count == 0;)
        if (ir->insts[j].op == TPI_RMS_NORM && same_inputs(&ir->insts[j], &ir->insts[grad], 1))
            p->member[p->count++] = j;
    p->member[p->count++] = grad;
    p->member[p->count++] = i;
}

/* Whether two adapted layers read one x and make results of one shape. */
static bool are_twins(const tpi_ir *ir, uint32_t i, uint32_t j) {
    const tpi_inst *a = &ir->insts[i], *b = &ir->insts[j];
    return a->op == TPI_LINEAR_LORA && b->op == TPI_LINEAR_LORA && a->in[0] == b->in[0] &&
           ir->values[a->out[0]].operand.count == ir->values[b->out[0]].operand.count;
}

/* Twins that follow each other, as k and v. */
static void find_twins(const tpi_ir *ir, uint32_t i, party *p) {
    if (i == 0 || !are_twins(ir, i - 1, i)) return;
    p->member[p->count++] = i - 1;
    p->member[p->count++] = i;
}

/* silu(gate)·up behind twins that make gate and up. */
static void find_gate(const tpi_ir *ir, uint32_t i, party *p) {
    const tpi_inst *mul = &ir->insts[i];
    if (i < 2 || !are_twins(ir, i - 2, i - 1)) return;
    if (mul->in[0] != ir->insts[i - 2].out[0] || mul->in[1] != ir->insts[i - 1].out[0]) return;
    for (uint32_t k = i - 2; k <= i; k++) p->member[p->count++] = k;
}

/* silu(gate)·up and its gradient, which read gate and up; with the adapted layer whose y is what it is the
 * gradient of, if nobody else reads that. */
static void find_gated(const tpi_ir *ir, uint32_t i, party *p) {
    const uint32_t *in = ir->insts[i].in, layer = maker_of(ir, &ir->insts[i], 2);
    if (layer != TPI_NO_VALUE && ir->insts[layer].op == TPI_LINEAR_LORA && ir->insts[layer].out[0] == in[2] &&
        ir->values[in[2]].uses == 1)
        p->member[p->count++] = layer;
    const uint32_t before = p->count;
    for (uint32_t j = i; j-- > 0 && i - j <= WITHIN && p->count == before;) {
        const tpi_inst *mul = &ir->insts[j];
        if (mul->op == TPI_SILU_MUL && mul->in[0] == in[0] && mul->in[1] == in[1]) p->member[p->count++] = j;
    }
    p->member[p->count++] = i;
}

static const struct {
    tpi_op last;
    void (*find)(const tpi_ir *ir, uint32_t i, party *p);
} parties[] = {
    {TPI_ADD, find_layers},          {TPI_ADD, find_norm},          {TPI_POINTWISE_CHAIN, find_layers},
    {TPI_SILU_MUL_GRAD, find_gated}, {TPI_LINEAR_LORA, find_twins}, {TPI_SILU_MUL, find_gate},
};

/* ---- moving ---- */

static bool belongs(const party *p, uint32_t i) {
    for (uint32_t k = 0; k < p->count; k++)
        if (p->member[k] == i) return true;
    return false;
}

static uint32_t first_of(const party *p) {
    uint32_t first = p->member[0];
    for (uint32_t k = 1; k < p->count; k++)
        if (p->member[k] < first) first = p->member[k];
    return first;
}

/* Of the instructions [first, last], those that a member needs, straight or through others, but for members;
 * false if one of them needs a member itself. */
static bool find_needed(const tpi_ir *ir, const party *p, uint32_t first, uint32_t last, bool *needed) {
    for (uint32_t i = last + 1; i-- > first;) {
        if (!needed[i - first] && !belongs(p, i)) continue;
        for (uint32_t k = 0; k < ir->insts[i].n_in; k++) {
            const uint32_t maker = maker_of(ir, &ir->insts[i], k);
            if (maker == TPI_NO_VALUE || maker < first) continue;
            if (!belongs(p, maker))
                needed[maker - first] = true;
            else if (!belongs(p, i))
                return false;
        }
    }
    return true;
}

static void append(tpi_ir *ir, const tpi_inst *from, uint32_t *to) {
    tpi_inst *inst = &ir->insts[*to];
    *inst = *from;
    for (int k = 0; k < inst->n_out; k++)
        if (inst->out[k] != TPI_NO_VALUE) ir->values[inst->out[k]].producer = *to;
    (*to)++;
}

static void bring_together(tpi_ir *ir, const party *p) {
    const uint32_t first = first_of(p), last = p->member[p->count - 1];
    tpi_inst old[WITHIN + 1];
    bool needed[WITHIN + 1] = {false};
    uint32_t to = first;
    if (last - first > WITHIN || !find_needed(ir, p, first, last, needed)) return;
    memcpy(old, &ir->insts[first], (last - first + 1) * sizeof *old);
    for (uint32_t i = first; i <= last; i++)
        if (needed[i - first]) append(ir, &old[i - first], &to);
    for (uint32_t k = 0; k < p->count; k++) {
        append(ir, &old[p->member[k] - first], &to);
        ir->insts[to - 1].with = p->count - 1 - k;
    }
    for (uint32_t i = first; i <= last; i++)
        if (!needed[i - first] && !belongs(p, i)) append(ir, &old[i - first], &to);
}

/* Whether it is a product that makes little of much, as the gradient of an adapter. */
static bool is_thin(const tpi_ir *ir, const tpi_inst *inst) {
    if (inst->op != TPI_MATMUL) return false;
    const int64_t out = ir->values[inst->out[0]].operand.count;
    return out <= ir->values[inst->in[0]].operand.count / 8 ||
           out <= ir->values[inst->in[1]].operand.count / 8;
}

/* Gradients of adapters follow each other already. */
static void mark_thin(tpi_ir *ir) {
    for (uint32_t i = (uint32_t)ir->n_insts; i-- > 1;) {
        tpi_inst *inst = &ir->insts[i - 1];
        const uint32_t with = ir->insts[i].with + 1;
        if (is_thin(ir, inst) && is_thin(ir, &ir->insts[i]))
            inst->with = with < ir->backend->together ? with : ir->backend->together - 1;
    }
}

void tpi_gather(tpi_ir *ir) {
    if (!ir->backend->together) return;
    for (uint32_t i = 0; i < ir->n_insts; i++)
        for (size_t k = 0; k < sizeof parties / sizeof parties[0]; k++) {
            party p = {.count = 0};
            if (ir->insts[i].op == parties[k].last) parties[k].find(ir, i, &p);
            if (p.count > 1 && belongs(&p, i)) bring_together(ir, &p);
        }
    mark_thin(ir);
}
