/* Which steps of a plan are one launch when there are few rows, as in generation.
 *
 * There a step is done in a few microseconds, and as many pass between two. So products of one x that follow
 * each other are one launch; q, k and v with their rotations and the writes to the caches; gate and up with
 * silu·mul. A step is recognised by where its operands lie: an input at an output's place, of its shape, is
 * that output. What the steps would write one after another is written all at once, so their outputs must lie
 * apart; the planner gives small memory back late for that reason. */
#include "backend/cuda/row_products.h"
#include "backend/cuda/layer.h"
#include "backend/cuda/row_products.cuh"
#include "taper/ops.h"

#include <stdint.h>

namespace {

/* The steps from `first` on; those up to `next` are taken. */
struct window {
    tpi_launch launch;
    const tpi_bound *bound;
    uint32_t first, next;
    int dtype;
};

const tpi_step *step_at(window *w, uint32_t i) {
    if (i >= w->bound->n_steps) return nullptr;
    return w->launch.step = &w->bound->steps[i];
}

const tpi_step *step_of(window *w, uint32_t i, tpi_op op) {
    const tpi_step *step = step_at(w, i);
    return step && step->op == op ? step : nullptr;
}

struct range {
    uintptr_t begin, end;
};

range range_of(const void *data, int64_t bytes) {
    return {(uintptr_t)data, (uintptr_t)data + (uintptr_t)bytes};
}

bool apart(range a, range b) {
    return a.end <= b.begin || b.end <= a.begin;
}

range range_of_output(const tpi_bound *bound, const tpi_step *step, int k) {
    const tpi_operand *out = tpi_out_operand(step, k);
    return range_of(bound->slots[step->slots[step->n_in + k]],
                    out->count * (int64_t)tp_dtype_size((tp_dtype)out->dtype));
}

bool written(const tpi_bound *bound, range data) {
    for (uint32_t i = 0; i < bound->n_steps; i++)
        for (int k = 0; k < bound->steps[i].n_out; k++)
            if (!apart(range_of_output(bound, &bound->steps[i], k), data)) return true;
    return false;
}

/* Whether the outputs of the steps taken lie apart from x and from each other. */
bool outputs_apart(const window *w, const row_products &p, uint32_t end) {
    range all[8] = {range_of(p.x, ((p.m - 1) * p.x_leading + p.k) * 2)};
    int n = 1;
    for (uint32_t i = w->first; i < end; i++, n++) {
        all[n] = range_of_output(w->bound, &w->bound->steps[i], 0);
        for (int k = 0; k < n; k++)
            if (!apart(all[k], all[n])) return false;
    }
    return true;
}

/* ---- products ---- */

/* Step i as the next product of `p`. */
bool take_product(window *w, row_products *p, uint32_t i) {
    const tpi_step *step = step_at(w, i);
    tpi_layer l;
    if (!step || (step->op != TPI_LINEAR && step->op != TPI_MATMUL) || !tpi_layer_of(step, &l)) return false;
    const void *x = tpi_in(&w->launch, 0), *weights = tpi_in(&w->launch, l.w);
    const bool sixteen = l.mx.dtype != TP_F32 && l.mw.dtype == l.mx.dtype && l.y_type == l.mx.dtype;
    if (!sixteen || l.m < 1 || l.m > most_rows || l.n < 1 || l.k < 1 || l.mx.transposed || !l.mw.transposed)
        return false;
    if (l.k % 8 || l.mw.leading % 8 || (l.m > 1 && l.mx.leading % 8)) return false;
    if (((uintptr_t)x | (uintptr_t)weights) % 16 || tpi_wants_low_rank(step)) return false;
    if (p->count > 0 && (p->x != x || p->m != l.m || p->k != l.k || w->dtype != l.mx.dtype)) return false;
    p->x = x, p->x_leading = l.mx.leading, p->k = l.k, p->m = (int)l.m;
    w->dtype = l.mx.dtype;
    row_product *part = &p->part[p->count++];
    part->w = weights, part->w_leading = l.mw.leading, part->n = l.n;
    part->y = tpi_out(&w->launch, 0);
    part->activation = l.activation;
    if (l.bias)
        part->bias = tpi_in(&w->launch, l.bias), part->bias_type = tpi_in_operand(step, l.bias)->dtype;
    p->steady = p->steady && !written(w->bound, range_of(weights, ((l.n - 1) * l.mw.leading + l.k) * 2));
    return true;
}

/* Whether input k of the launch's step is all of a product's result. */
bool is_result(const window *w, int k, const row_products &p, const void *y, int64_t n) {
    const tpi_operand *in = tpi_in_operand(w->launch.step, k);
    return tpi_in(&w->launch, k) == y && in->contiguous && in->dtype == w->dtype && in->count == p.m * n;
}

/* ---- endings ---- */

bool take_gated(window *w, row_products *p) {
    const row_product &gate = p->part[0], &up = p->part[1];
    if (p->count != 2 || gate.n != up.n || !step_of(w, w->next, TPI_SILU_MUL)) return false;
    if (!is_result(w, 0, *p, gate.y, gate.n) || !is_result(w, 1, *p, up.y, up.n)) return false;
    p->gated = tpi_out(&w->launch, 0);
    w->next++;
    return true;
}

/* Step i as the rotation of product k. */
bool take_rope(window *w, row_products *p, uint32_t i, int k) {
    const tpi_step *step = step_of(w, i, TPI_ROPE);
    if (!step || !is_result(w, 0, *p, p->part[k].y, p->part[k].n)) return false;
    const tpi_operand *x = tpi_in_operand(step, 0), *positions = tpi_in_operand(step, 1),
                      *frequencies = tpi_in_operand(step, 2);
    const tpi_attr_rope *attr = (const tpi_attr_rope *)step->attr;
    const int head = (int)x->shape[3], length = (int)x->shape[1];
    const void *places = tpi_in(&w->launch, 1), *angles = tpi_in(&w->launch, 2);
    if (attr->layout != TP_ROPE_HALF || attr->inverse || head % 16 || 2 * frequencies->shape[0] != head ||
        !frequencies->contiguous || tpi_out_operand(step, 0)->dtype != w->dtype)
        return false;
    if (k > 0 &&
        (p->head != head || p->length != length || p->positions != places || p->frequencies != angles))
        return false;
    p->head = head, p->length = length;
    p->positions = (const int32_t *)places, p->frequencies = (const float *)angles;
    p->position_stride[0] = positions->stride[0], p->position_stride[1] = positions->stride[1];
    p->part[k].turned = tpi_out(&w->launch, 0);
    return true;
}

/* Step i as the write of product k's end result to a cache, in place. */
bool take_cache_write(window *w, row_products *p, uint32_t i, int k) {
    const tpi_step *step = step_of(w, i, TPI_CACHE_WRITE);
    const row_product &part = p->part[k];
    if (!step || !is_result(w, 1, *p, part.turned ? part.turned : part.y, part.n)) return false;
    const tpi_operand *cache = tpi_out_operand(step, 0), *start = tpi_in_operand(step, 2);
    void *to = tpi_out(&w->launch, 0);
    const void *begin = tpi_in(&w->launch, 2);
    if (to != tpi_in(&w->launch, 0) || !cache->contiguous || cache->dtype != w->dtype) return false;
    if (p->start && (p->start != begin || p->capacity != cache->shape[1])) return false;
    p->start = (const int32_t *)begin, p->start_stride = start->stride[0], p->capacity = cache->shape[1];
    p->part[k].cache = to;
    return true;
}

/* q and k turned; then k and v into the caches, or neither. */
void take_attention(window *w, row_products *p) {
    const uint32_t i = w->next;
    row_products turned = *p;
    if (p->count != 3 || !take_rope(w, &turned, i, 0) || !take_rope(w, &turned, i + 1, 1)) return;
    if (!outputs_apart(w, turned, i + 2)) return;
    *p = turned, w->next = i + 2;
    if (take_cache_write(w, &turned, i + 2, 1) && take_cache_write(w, &turned, i + 3, 2))
        *p = turned, w->next = i + 4;
}

} // namespace

uint32_t tpi_cuda_row_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                            tp_status *status) {
    window w = {*launch, bound, first, first, 0};
    row_products p = {};
    p.steady = true;
    p.fault = tpi_cuda_of(launch)->fault;
    while (p.count < most_products) {
        row_products more = p;
        if (!take_product(&w, &more, w.next) || !outputs_apart(&w, more, w.next + 1)) break;
        p = more, w.next++;
    }
    if (p.count == 0) return 0;
    if (!take_gated(&w, &p)) take_attention(&w, &p);
    start_row_products(tpi_cuda_of(launch), w.dtype, p);
    *status = tpi_cuda_launched(launch);
    return w.next - first;
}
