/* Placement: where every value lives, before anything runs.
 *
 * Results get fresh buffers; an assigned value is written straight into its state where that is safe, else
 * copied at the end; all others share one arena by lifetime: in place of a dying input where the operation
 * allows it, else best fit. Since lifetimes are known, the arena's size is the evaluation's peak. */
#include "graph/ir.h"
#include "core/alloc.h"

#include <string.h>

static tpi_value *root_of(const tpi_ir *ir, uint32_t value) {
    return &ir->values[ir->values[value].root];
}

static uint64_t bytes_of(const tpi_operand *operand) {
    uint64_t bytes = (uint64_t)operand->count * tp_dtype_size((tp_dtype)operand->dtype);
    return tpi_align_up(bytes ? bytes : TPI_ALIGN);
}

static void find_last_uses(tpi_ir *ir) {
    for (size_t v = 0; v < ir->n_values; v++) ir->values[v].last_use = 0;
    for (uint32_t i = 0; i < ir->n_insts; i++) {
        const tpi_inst *inst = &ir->insts[i];
        for (uint32_t k = 0; k < inst->n_in; k++) root_of(ir, inst->in[k])->last_use = i;
        for (int k = 0; k < inst->n_out; k++)
            if (inst->out[k] != TPI_NO_VALUE) ir->values[inst->out[k]].last_use = i;
    }
}

/* Whether output `out` of `inst` may be written over input `in`: the operation allows it, both are whole and
 * of the same layout, and no other input reads that memory. */
static bool may_overwrite(const tpi_ir *ir, const tpi_inst *inst, int out, uint32_t in) {
    unsigned flags = tpi_ops[inst->op].flags;
    if (!(flags & TPI_FLAG_POINTWISE) && !(flags & TPI_FLAG_IN_PLACE && (uint32_t)out == in)) return false;
    const tpi_value *from = &ir->values[inst->in[in]];
    const tpi_operand *a = &from->operand, *b = &ir->values[inst->out[out]].operand;
    if (!a->contiguous || a->count != b->count || from->offset || a->rank != b->rank) return false;
    if (tp_dtype_size((tp_dtype)a->dtype) != tp_dtype_size((tp_dtype)b->dtype)) return false;
    if (memcmp(a->shape, b->shape, a->rank * sizeof(int64_t)) != 0) return false;
    for (uint32_t k = 0; k < inst->n_in; k++)
        if (k != in && ir->values[inst->in[k]].root == from->root &&
            !(flags & TPI_FLAG_POINTWISE && inst->in[k] == inst->in[in]))
            return false;
    return true;
}

/* ---- results ---- */

static void place_results(tpi_ir *ir, tpi_plan *plan) {
    for (int i = 0; i < ir->n_outputs; i++) {
        if (ir->outputs[i] == TPI_NO_VALUE) continue;
        tpi_value *root = root_of(ir, ir->outputs[i]);
        if (root->kind == TPI_VALUE_LEAF || root->place == TPI_PLACE_RESULT) continue;
        root->place = TPI_PLACE_RESULT;
        root->index = plan->n_buffers;
        plan->buffers[plan->n_buffers] = bytes_of(&root->operand);
        plan->buffer_bytes += tpi_memory_block_bytes(plan->buffers[plan->n_buffers++]);
    }
}

/* ---- assignments ---- */

static tp_status append_copy(tpi_ir *ir, uint32_t value, uint32_t *out) {
    const tpi_operand *from = &ir->values[value].operand;
    tpi_operand to = tpi_operand_row_major((tp_dtype)from->dtype, from->rank, from->shape), operands[2];
    tpi_step step;
    uint32_t i;
    TPI_TRY(tpi_ir_inst(ir, TPI_COPY, 1, &value, 1, NULL, &i));
    TPI_TRY(tpi_ir_value(ir, TPI_VALUE_OUTPUT, i, &to, out));
    ir->insts[i].out[0] = *out;
    tpi_ir_step(ir, &ir->insts[i], operands, &step);
    const tpi_kernel *kernel = ir->backend->kernels(TPI_COPY);
    while (kernel->accepts && !kernel->accepts(&step)) kernel++;
    ir->insts[i].kernel = kernel;
    ir->insts[i].scratch =
        kernel->scratch ? kernel->scratch(&step, tpi_threads_parts(ir->context->threads)) : 0;
    return TP_OK;
}

static bool assigned_elsewhere(const tpi_ir *ir, uint32_t leaf) {
    int times = 0;
    for (size_t i = 0; i < ir->n_assignments; i++) times += ir->assignments[i].leaf == leaf;
    return times > 1;
}

/* Whether `inst` may write its output `root` over the state `leaf`, which it may read. One that can fail
 * checks before it writes only where it reads what it writes over. */
static bool may_replace(const tpi_ir *ir, const tpi_inst *inst, uint32_t root, const tpi_value *leaf) {
    bool reads = false;
    int out = 0;
    while (inst->out[out] == TPI_NO_VALUE || ir->values[inst->out[out]].root != root) out++;
    for (uint32_t k = 0; k < inst->n_in; k++) {
        if (ir->values[inst->in[k]].root != leaf->root) continue;
        if (!may_overwrite(ir, inst, out, k)) return false;
        reads = true;
    }
    return reads || !(tpi_ops[inst->op].flags & TPI_FLAG_CAN_FAIL);
}

/* Whether the producer of assignment a's value may write the state itself: the state is read by nobody later,
 * nothing can fail any more, and nobody else needs the value apart. */
static bool may_write_state(const tpi_ir *ir, const tpi_assignment *a, uint32_t last_failing) {
    const tpi_value *leaf = &ir->values[a->leaf], *value = &ir->values[a->value];
    const tpi_value *root = &ir->values[value->root];
    if (root->kind != TPI_VALUE_OUTPUT || root->place != TPI_PLACE_NONE || leaf->shared) return false;
    if (!value->operand.contiguous || value->offset || value->operand.count != root->operand.count)
        return false;
    if (assigned_elsewhere(ir, a->leaf)) return false;
    uint32_t i = root->producer;
    if (ir->backend->guards && !ir->backend->guards((tpi_op)ir->insts[i].op)) return false;
    if (i < last_failing || leaf->last_use > i) return false;
    return may_replace(ir, &ir->insts[i], value->root, leaf);
}

/* State that is assigned in this plan and is itself an assigned value must be read before any commit. */
static tp_status save_old_state(tpi_ir *ir) {
    for (size_t i = 0; i < ir->n_assignments; i++)
        if (root_of(ir, ir->assignments[i].value)->kind == TPI_VALUE_LEAF)
            TPI_TRY(append_copy(ir, ir->assignments[i].value, &ir->assignments[i].value));
    return TP_OK;
}

/* A cache_write checks positions against sizes: after one that passed, another with the same positions and
 * sizes passes too. So the caches of all layers are written in place. */
static bool repeats_check(const tpi_ir *ir, const tpi_inst *inst, const tpi_inst *earlier) {
    if (!earlier || inst->in[2] != earlier->in[2]) return false;
    for (int k = 0; k < 2; k++) {
        const tpi_operand *a = &ir->values[inst->in[k]].operand, *b = &ir->values[earlier->in[k]].operand;
        if (a->shape[0] != b->shape[0] || a->shape[1] != b->shape[1]) return false;
    }
    return true;
}

/* The last instruction that can still fail. */
static uint32_t last_failing_inst(const tpi_ir *ir) {
    const tpi_inst *write = NULL;
    uint32_t last = 0;
    for (uint32_t i = 0; i < ir->n_insts; i++) {
        const tpi_inst *inst = &ir->insts[i];
        if (!(tpi_ops[inst->op].flags & TPI_FLAG_CAN_FAIL)) continue;
        if (inst->op != TPI_CACHE_WRITE || !repeats_check(ir, inst, write)) last = i;
        if (inst->op == TPI_CACHE_WRITE) write = inst;
    }
    return last;
}

static tp_status place_assignments(tpi_ir *ir) {
    TPI_TRY(save_old_state(ir));
    find_last_uses(ir);
    uint32_t last_failing = last_failing_inst(ir);
    for (size_t i = 0; i < ir->n_assignments; i++) {
        tpi_assignment a = ir->assignments[i];
        uint32_t number = ir->values[a.leaf].producer;
        if (!may_write_state(ir, &a, last_failing)) {
            TPI_TRY(append_copy(ir, a.value, &a.value));
            ir->values[a.value].last_use = (uint32_t)ir->n_insts - 1;
        }
        tpi_value *root = root_of(ir, a.value);
        root->place = TPI_PLACE_LEAF;
        root->index = number;
    }
    find_last_uses(ir); /* the commits read too */
    return TP_OK;
}

/* ---- the arena ---- */

typedef struct hole {
    uint64_t at, bytes;
} hole;

/* Free ranges below `top`, by offset, never adjacent. */
typedef struct space {
    hole *holes;
    size_t n, capacity;
    uint64_t top;
} space;

static tp_status space_take(space *s, uint64_t bytes, uint64_t *at) {
    size_t best = s->n;
    for (size_t i = 0; i < s->n; i++)
        if (s->holes[i].bytes >= bytes && (best == s->n || s->holes[i].bytes < s->holes[best].bytes))
            best = i;
    if (best < s->n) {
        *at = s->holes[best].at;
        s->holes[best].at += bytes;
        if ((s->holes[best].bytes -= bytes) == 0)
            memmove(&s->holes[best], &s->holes[best + 1], (--s->n - best) * sizeof(hole));
        return TP_OK;
    }
    bool grow_last = s->n && s->holes[s->n - 1].at + s->holes[s->n - 1].bytes == s->top;
    *at = grow_last ? s->holes[--s->n].at : s->top; /* a hole at the end grows */
    if (__builtin_add_overflow(*at, bytes, &s->top))
        return tpi_fail(TP_ENOMEM, "plan: memory size overflows");
    return TP_OK;
}

static tp_status space_give(space *s, uint64_t at, uint64_t bytes) {
    TPI_TRY(tpi_grow(&s->holes, &s->capacity, s->n + 1, sizeof(hole)));
    size_t low = 0, high = s->n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        *(s->holes[middle].at < at ? &low : &high) = s->holes[middle].at < at ? middle + 1 : middle;
    }
    bool joins_left = low > 0 && s->holes[low - 1].at + s->holes[low - 1].bytes == at;
    bool joins_right = low < s->n && at + bytes == s->holes[low].at;
    if (joins_left && joins_right) {
        s->holes[low - 1].bytes += bytes + s->holes[low].bytes;
        memmove(&s->holes[low], &s->holes[low + 1], (--s->n - low) * sizeof(hole));
    } else if (joins_left) {
        s->holes[low - 1].bytes += bytes;
    } else if (joins_right) {
        s->holes[low] = (hole){at, bytes + s->holes[low].bytes};
    } else {
        memmove(&s->holes[low + 1], &s->holes[low], (s->n++ - low) * sizeof(hole));
        s->holes[low] = (hole){at, bytes};
    }
    return TP_OK;
}

/* An input whose block output `out` takes over: it dies here. The input's root loses its block. */
static bool take_over(tpi_ir *ir, const tpi_inst *inst, uint32_t i, int out) {
    for (uint32_t k = 0; k < inst->n_in; k++) {
        tpi_value *root = root_of(ir, inst->in[k]);
        if (root->place != TPI_PLACE_ARENA || root->last_use != i || root->index) continue;
        if (bytes_of(&root->operand) != bytes_of(&ir->values[inst->out[out]].operand)) continue;
        if (!may_overwrite(ir, inst, out, k)) continue;
        ir->values[inst->out[out]].at = root->at;
        root->index = 1; /* the block belongs to the output now */
        return true;
    }
    return false;
}

#define SMALL ((uint64_t)64 << 10) /* bytes; such values are given back late */

/* Gives back the memory of the values that instruction i used last; where steps are launched together, of the
 * large or of the `small` ones. */
static tp_status release_dying(tpi_ir *ir, uint32_t i, bool small, space *s) {
    const tpi_inst *inst = &ir->insts[i];
    for (uint32_t k = 0; k < inst->n_in + inst->n_out; k++) {
        uint32_t v = k < inst->n_in ? inst->in[k] : inst->out[k - inst->n_in];
        if (v == TPI_NO_VALUE) continue;
        tpi_value *root = root_of(ir, v);
        if (root->place != TPI_PLACE_ARENA || root->last_use != i || root->index) continue;
        if (ir->backend->together && (bytes_of(&root->operand) <= SMALL) != small) continue;
        root->index = 1;
        TPI_TRY(space_give(s, root->at, bytes_of(&root->operand)));
    }
    return TP_OK;
}

static tp_status place_outputs(tpi_ir *ir, const tpi_inst *inst, uint32_t i, space *s) {
    for (int k = 0; k < inst->n_out; k++) {
        if (inst->out[k] == TPI_NO_VALUE) continue;
        tpi_value *value = &ir->values[inst->out[k]];
        if (value->place != TPI_PLACE_NONE) continue;
        value->place = TPI_PLACE_ARENA;
        value->index = 0; /* in the arena: 1 once the block is given back or taken over */
        if (!take_over(ir, inst, i, k)) TPI_TRY(space_take(s, bytes_of(&value->operand), &value->at));
    }
    return TP_OK;
}

/* Gives back what the instructions had that are over with instruction i: those that are launched with it at
 * the latest. */
static tp_status release_over(tpi_ir *ir, uint32_t i, space *s) {
    for (uint32_t back = 0; back <= ir->backend->together && back <= i; back++) {
        const tpi_inst *inst = &ir->insts[i - back];
        if (inst->with != back) continue;
        if (inst->scratch) TPI_TRY(space_give(s, inst->scratch_at, tpi_align_up(inst->scratch)));
        TPI_TRY(release_dying(ir, i - back, false, s));
    }
    return TP_OK;
}

static tp_status place_arena(tpi_ir *ir, space *s) {
    const uint32_t late = ir->backend->together;
    for (uint32_t i = 0; i < ir->n_insts; i++) {
        tpi_inst *inst = &ir->insts[i];
        TPI_TRY(place_outputs(ir, inst, i, s));
        if (inst->scratch) TPI_TRY(space_take(s, tpi_align_up(inst->scratch), &inst->scratch_at));
        TPI_TRY(release_over(ir, i, s));
        if (late && i >= late) TPI_TRY(release_dying(ir, i - late, true, s));
    }
    return TP_OK;
}

tp_status tpi_place(tpi_ir *ir, tpi_plan *plan) {
    space s = {NULL, 0, 0, 0};
    plan->buffers = tpi_arena_array(&plan->memory, (size_t)ir->n_outputs + 1, sizeof *plan->buffers);
    if (!plan->buffers) return TP_ENOMEM;
    place_results(ir, plan);
    TPI_TRY(place_assignments(ir));
    tp_status status = place_arena(ir, &s);
    plan->arena_bytes = s.top ? tpi_memory_block_bytes(s.top) : 0;
    tpi_free(s.holes);
    return status;
}
