/* Building a plan: the passes in order, then the compact form that runs. */
#include "graph/ir.h"
#include "core/alloc.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- from instructions to steps ---- */

typedef struct emission {
    const tpi_ir *ir;
    tpi_plan *plan;
    uint32_t *slot_of; /* value -> slot, 0: none yet */
} emission;

static uint32_t new_slot(tpi_plan *plan, uint32_t place, uint32_t index, uint64_t offset) {
    plan->slots[plan->n_slots] = (tpi_slot){place, index, offset};
    return plan->n_slots++;
}

static uint32_t value_slot(emission *e, uint32_t v) {
    if (v == TPI_NO_VALUE) return 0;
    if (e->slot_of[v]) return e->slot_of[v];
    const tpi_value *value = &e->ir->values[v], *root = &e->ir->values[value->root];
    if (root->kind == TPI_VALUE_LEAF)
        return e->slot_of[v] = new_slot(e->plan, TPI_PLACE_LEAF, root->producer, value->offset);
    uint64_t at = root->place == TPI_PLACE_ARENA ? root->at : 0;
    uint32_t index = root->place == TPI_PLACE_ARENA ? 0 : root->index;
    return e->slot_of[v] = new_slot(e->plan, root->place, index, at + value->offset);
}

static tp_status emit_step(emission *e, const tpi_inst *inst) {
    size_t n = inst->n_in + inst->n_out;
    tpi_operand *operands = tpi_arena_array(&e->plan->memory, n, sizeof *operands);
    uint32_t *slots = tpi_arena_array(&e->plan->memory, n + 1, sizeof *slots);
    if (!operands || !slots) return TP_ENOMEM;
    tpi_step *step = &e->plan->steps[e->plan->n_steps++];
    tpi_ir_step(e->ir, inst, operands, step);
    for (uint32_t k = 0; k < inst->n_in; k++) slots[k] = value_slot(e, inst->in[k]);
    for (int k = 0; k < inst->n_out; k++) slots[inst->n_in + (uint32_t)k] = value_slot(e, inst->out[k]);
    slots[n] = inst->scratch ? new_slot(e->plan, TPI_PLACE_ARENA, 0, inst->scratch_at) : 0;
    step->slots = slots;
    e->plan->can_fail |= (tpi_ops[inst->op].flags & TPI_FLAG_CAN_FAIL) != 0;
    return TP_OK;
}

static tpi_result result_of(const tpi_ir *ir, uint32_t v) {
    const tpi_value *value = &ir->values[v], *root = &ir->values[value->root];
    bool leaf = root->kind == TPI_VALUE_LEAF;
    return (tpi_result){.place = leaf ? TPI_PLACE_LEAF : TPI_PLACE_RESULT,
                        .index = leaf ? root->producer : root->index,
                        .offset = value->offset,
                        .view = value->operand};
}

/* An output that is an assignment shows the state's leaf. */
static tpi_result assigned_result(const tpi_ir *ir, const tp_graph *graph, const tp_lazy *node) {
    for (size_t i = 0; i < ir->n_assignments; i++)
        if (graph->assigned[i] == node->id) return result_of(ir, ir->assignments[i].leaf);
    return (tpi_result){0}; /* not reached: an assignment is an output where it is pending */
}

static tp_status emit_ends(const tpi_ir *ir, const tp_graph *graph, const tpi_order *order, tpi_plan *plan) {
    plan->n_results = (uint32_t)ir->n_outputs;
    plan->n_assigned = (uint32_t)ir->n_assignments;
    plan->results = tpi_arena_array(&plan->memory, plan->n_results + 1u, sizeof *plan->results);
    plan->assigned = tpi_arena_array(&plan->memory, plan->n_assigned + 1u, sizeof *plan->assigned);
    plan->n_leaves = (uint32_t)ir->n_leaves;
    plan->leaves = tpi_arena_array(&plan->memory, plan->n_leaves + 1u, sizeof *plan->leaves);
    if (!plan->results || !plan->assigned || !plan->leaves) return TP_ENOMEM;
    if (plan->n_leaves) memcpy(plan->leaves, ir->leaf_order, plan->n_leaves * sizeof *plan->leaves);
    for (uint32_t i = 0; i < plan->n_results; i++)
        plan->results[i] = ir->outputs[i] == TPI_NO_VALUE ? assigned_result(ir, graph, order->outputs[i])
                                                          : result_of(ir, ir->outputs[i]);
    for (uint32_t i = 0; i < plan->n_assigned; i++)
        plan->assigned[i] = ir->values[ir->assignments[i].leaf].producer;
    return TP_OK;
}

static tp_status emit(const tpi_ir *ir, const tp_graph *graph, const tpi_order *order, tpi_plan *plan) {
    size_t most_slots = 1 + ir->n_values + ir->n_insts;
    plan->steps = tpi_arena_array(&plan->memory, ir->n_insts + 1, sizeof *plan->steps);
    plan->slots = tpi_arena_array(&plan->memory, most_slots, sizeof *plan->slots);
    emission e = {ir, plan, tpi_arena_array(ir->arena, ir->n_values + 1, sizeof(uint32_t))};
    if (!plan->steps || !plan->slots || !e.slot_of) return TP_ENOMEM;
    plan->n_slots = 1; /* slot 0: NULL */
    for (size_t i = 0; i < ir->n_insts; i++) TPI_TRY(emit_step(&e, &ir->insts[i]));
    return emit_ends(ir, graph, order, plan);
}

/* ---- the passes ---- */

static tp_status run_passes(tp_graph *graph, const tpi_order *order, tpi_ir *ir, tpi_plan *plan) {
    TPI_TRY(tpi_lower(graph, order, ir));
    TPI_TRY(tpi_fuse(ir));
    TPI_TRY(tpi_fuse_chains(ir));
    TPI_TRY(tpi_select_kernels(ir));
    tpi_gather(ir);
    TPI_TRY(tpi_place(ir, plan));
    TPI_TRY(emit(ir, graph, order, plan));
    return tpi_key_store(graph, order, plan);
}

static void log_plan(tp_context *ctx, const tpi_plan *plan, size_t nodes, double seconds) {
    if (tpi_verbose(ctx, TPI_TOPIC_PLAN))
        tpi_log(ctx, TP_LOG_INFO,
                "plan: %zu nodes to %u steps, %.2f MiB arena, %.2f MiB results, %zu KiB plan, %.0f us", nodes,
                plan->n_steps, (double)plan->arena_bytes / 0x1p20, (double)plan->buffer_bytes / 0x1p20,
                plan->memory.bytes >> 10, seconds * 1e6);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

tp_status tpi_plan_build(tp_graph *graph, const tpi_order *order, tpi_plan **out) {
    tpi_arena scratch = {0};
    double start = now();
    tpi_plan *plan = tpi_calloc(1, sizeof *plan);
    *out = NULL;
    if (!plan) return TP_ENOMEM;
    atomic_init(&plan->references, 1);
    plan->device = tpi_order_device(graph, order);
    tpi_ir ir = {.context = graph->context,
                 .backend = plan->device->backend,
                 .arena = &scratch,
                 .lasting = &plan->memory};
    tp_status status = run_passes(graph, order, &ir, plan);
    tpi_ir_release(&ir);
    tpi_arena_release(&scratch);
    if (status != TP_OK) {
        tpi_plan_release(plan);
        return status;
    }
    log_plan(graph->context, plan, order->count, now() - start);
    *out = plan;
    return TP_OK;
}

/* ---- a plan as text ---- */

static void operand_text(const tpi_step *step, const tpi_plan *plan, uint32_t k, char *text, size_t bytes) {
    static const char *const places[] = {"-", "leaf", "arena", "result"};
    const tpi_operand *operand = &step->operands[k];
    const tpi_slot *slot = &plan->slots[step->slots[k]];
    char shape[TPI_SHAPE_TEXT];
    if (slot->place == TPI_PLACE_NONE)
        snprintf(text, bytes, "-");
    else if (slot->place == TPI_PLACE_ARENA)
        snprintf(text, bytes, "%s%s%s@%llu", tp_dtype_name((tp_dtype)operand->dtype),
                 tpi_shape_text(operand->rank, operand->shape, shape), operand->contiguous ? "" : "~",
                 (unsigned long long)slot->offset);
    else
        snprintf(text, bytes, "%s%s%s %s%u", tp_dtype_name((tp_dtype)operand->dtype),
                 tpi_shape_text(operand->rank, operand->shape, shape), operand->contiguous ? "" : "~",
                 places[slot->place], slot->index);
}

static void describe_step(const tpi_plan *plan, uint32_t i, char *text, size_t bytes) {
    const tpi_step *step = &plan->steps[i];
    size_t used = (size_t)snprintf(text, bytes, "%4u %s/%s:", i, tpi_ops[step->op].name, step->kernel->name);
    for (uint32_t k = 0; k < (uint32_t)step->n_in + step->n_out && used < bytes - 1; k++) {
        char operand[TPI_SHAPE_TEXT + 64];
        operand_text(step, plan, k, operand, sizeof operand);
        used += (size_t)snprintf(text + used, bytes - used, "%s%s",
                                 k == step->n_in ? " -> "
                                 : k             ? ", "
                                                 : " ",
                                 operand);
    }
}

void tpi_plan_describe(const tpi_plan *plan, void (*line)(void *user, const char *text), void *user) {
    char text[1024];
    snprintf(text, sizeof text, "%u steps, %u leaves, arena %llu bytes, results %llu bytes", plan->n_steps,
             plan->n_leaves, (unsigned long long)plan->arena_bytes, (unsigned long long)plan->buffer_bytes);
    line(user, text);
    for (uint32_t i = 0; i < plan->n_steps; i++) {
        describe_step(plan, i, text, sizeof text);
        line(user, text);
    }
}
