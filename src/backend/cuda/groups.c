#include "backend/cuda/groups.h"

tpi_range tpi_range_of_input(const tpi_bound *bound, const tpi_step *step, int k) {
    const tpi_operand *in = tpi_in_operand(step, k);
    int64_t last = 0;
    for (int d = 0; d < in->rank && in->count > 0; d++) last += (in->shape[d] - 1) * in->stride[d];
    const int64_t elements = in->count > 0 ? last + 1 : 0;
    return tpi_range_of(tpi_bound_in(bound, step, k), elements * (int64_t)tp_dtype_size((tp_dtype)in->dtype));
}

static bool writes_apart(const tpi_bound *bound, const tpi_step *writer, const tpi_step *other) {
    for (int i = 0; i < writer->n_out; i++) {
        const tpi_range out = tpi_range_of_output(bound, writer, i);
        for (int k = 0; k < other->n_in; k++)
            if (!tpi_apart(out, tpi_range_of_input(bound, other, k))) return false;
        for (int k = 0; k < other->n_out; k++)
            if (!tpi_apart(out, tpi_range_of_output(bound, other, k))) return false;
    }
    return true;
}

bool tpi_steps_apart(const tpi_bound *bound, const tpi_step *a, const tpi_step *b) {
    return writes_apart(bound, a, b) && writes_apart(bound, b, a);
}

bool tpi_makes_gated(const tpi_bound *bound, const tpi_step *mul, const tpi_step *grad) {
    if (mul->op != TPI_SILU_MUL || grad->op != TPI_SILU_MUL_GRAD) return false;
    for (int k = 0; k < 2; k++)
        if (tpi_bound_in(bound, mul, k) != tpi_bound_in(bound, grad, k) ||
            !tpi_alike(tpi_in_operand(mul, k), tpi_in_operand(grad, k)))
            return false;
    return tpi_alike(tpi_out_operand(mul, 0), tpi_in_operand(grad, 0));
}

/* Whether a step of [from, end) writes all of it. */
static bool written_whole(const tpi_bound *bound, tpi_range data, uint32_t from, uint32_t end) {
    for (uint32_t i = from; i < end; i++)
        for (int k = 0; k < bound->steps[i].n_out; k++) {
            const tpi_range out = tpi_range_of_output(bound, &bound->steps[i], k);
            if (out.begin <= data.begin && out.end >= data.end) return true;
        }
    return false;
}

/* What a step reads is one step's output: where that is a later one's, what was there before is not read. */
bool tpi_read_later(const tpi_bound *bound, tpi_range data, uint32_t from) {
    const tpi_range arena = tpi_range_of(bound->arena, (int64_t)bound->arena_bytes);
    if (data.begin < arena.begin || data.end > arena.end) return true;
    for (uint32_t i = from; i < bound->n_steps; i++) {
        const tpi_step *step = &bound->steps[i];
        for (int k = 0; k < step->n_in; k++) {
            const tpi_range in = tpi_range_of_input(bound, step, k);
            if (!tpi_apart(in, data) && !written_whole(bound, in, from, i)) return true;
        }
        if (written_whole(bound, data, i, i + 1)) return false;
    }
    return false;
}

bool tpi_written_before(const tpi_bound *bound, tpi_range data, uint32_t end) {
    for (uint32_t i = 0; i < end; i++)
        for (int k = 0; k < bound->steps[i].n_out; k++)
            if (!tpi_apart(tpi_range_of_output(bound, &bound->steps[i], k), data)) return true;
    return false;
}
