/* Which steps of a plan are one launch when there are few rows, as in generation.
 *
 * There a step is done in a few microseconds, and as many pass between two. So products of one x that follow
 * each other are one launch; with the norm that makes x; q, k and v with their rotations and the writes to
 * the caches; gate and up with silu·mul. A step is recognised by where its operands lie: an input at an
 * output's place, of its shape, is that output. What the steps would write one after another is written all
 * at once, so their outputs must lie apart; the planner gives small memory back late for that reason. */
#include "backend/cuda/groups.h"
#include "backend/cuda/layer.h"
#include "backend/cuda/row_products.cuh"
#include "taper/ops.h"

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

/* Whether a step of [first, end) makes what begins there. */
bool is_made(const window *w, uintptr_t begin, uint32_t end) {
    for (uint32_t i = w->first; i < end; i++)
        for (int k = 0; k < w->bound->steps[i].n_out; k++)
            if (tpi_range_of_output(w->bound, &w->bound->steps[i], k).begin == begin) return true;
    return false;
}

/* Whether a range lies apart from all that the steps up to `end` read, but for what they make themselves. */
bool apart_from_inputs(const window *w, tpi_range data, uint32_t end) {
    for (uint32_t i = w->first; i < end; i++)
        for (int k = 0; k < w->bound->steps[i].n_in; k++) {
            const tpi_range in = tpi_range_of_input(w->bound, &w->bound->steps[i], k);
            if (!tpi_apart(in, data) && !is_made(w, in.begin, i)) return false;
        }
    return true;
}

/* Whether the outputs of the steps up to `end` lie apart from what they read and from each other. */
bool outputs_apart(const window *w, uint32_t end) {
    tpi_range all[12];
    int n = 0;
    for (uint32_t i = w->first; i < end; i++)
        for (int k = 0; k < w->bound->steps[i].n_out; k++, n++) {
            all[n] = tpi_range_of_output(w->bound, &w->bound->steps[i], k);
            if (!apart_from_inputs(w, all[n], end)) return false;
            for (int j = 0; j < n; j++)
                if (!tpi_apart(all[j], all[n])) return false;
        }
    return true;
}

/* Input k of the launch's step is read before the turn, if nothing in the plan writes it. */
void read_early(const window *w, row_products *p, int k) {
    const tpi_range data = tpi_range_of_input(w->bound, w->launch.step, k);
    p->steady = p->steady && !tpi_written_before(w->bound, data, w->bound->n_steps);
}

/* ---- the norm ---- */

/* The first step as the norm that makes x [m, k]. */
bool take_norm(window *w, row_products *p) {
    const tpi_step *step = step_at(w, w->first);
    if (step->op != TPI_RMS_NORM && step->op != TPI_ADD_RMS_NORM) return false;
    const tpi_operand *x = tpi_in_operand(step, 0);
    const int added = step->op == TPI_ADD_RMS_NORM;
    const int64_t k = x->shape[x->rank - 1];
    if (x->dtype == TP_F32 || x->count < 1 || x->count > most_normed || k % 8) return false;
    uintptr_t bits = (uintptr_t)tpi_out(&w->launch, 0);
    for (int i = 0; i <= added; i++) {
        const tpi_operand *in = tpi_in_operand(step, i);
        if (!in->contiguous || in->dtype != x->dtype) return false;
        bits |= (uintptr_t)tpi_in(&w->launch, i);
    }
    row_norm n = {};
    n.from = tpi_in(&w->launch, 0), n.other = added ? tpi_in(&w->launch, 1) : nullptr;
    n.y = tpi_out(&w->launch, 0), n.sum = added ? tpi_out(&w->launch, 1) : nullptr;
    n.eps = (float)((const tpi_attr_norm *)step->attr)->eps;
    if (step->n_in > 1 + added) {
        if (!tpi_in_operand(step, 1 + added)->contiguous) return false;
        n.weight = features_in(&w->launch, 1 + added);
        bits |= (uintptr_t)n.weight.data;
        read_early(w, p, 1 + added);
    }
    if ((bits | (uintptr_t)n.sum) % 16 || tpi_out_operand(step, 0)->dtype != x->dtype) return false;
    p->norm = n, p->x = n.y, p->k = k, p->m = (int)(x->count / k);
    w->dtype = x->dtype, w->next++;
    return p->m <= most_rows;
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
    if (l.n > most_inner || l.k > most_inner) return false;
    if (l.k % 8 || l.mw.leading % 8 || (l.m > 1 && l.mx.leading % 8)) return false;
    if (((uintptr_t)x | (uintptr_t)weights) % 16 || tpi_wants_low_rank(step)) return false;
    if (p->x && (p->x != x || p->m != l.m || p->k != l.k || w->dtype != l.mx.dtype)) return false;
    p->x = x, p->x_leading = l.mx.leading, p->k = l.k, p->m = (int)l.m;
    w->dtype = l.mx.dtype;
    row_product *part = &p->part[p->count++];
    part->w = weights, part->w_leading = l.mw.leading, part->n = l.n;
    part->y = tpi_out(&w->launch, 0);
    part->activation = l.activation;
    read_early(w, p, l.w);
    if (l.bias) {
        part->bias = tpi_in(&w->launch, l.bias), part->bias_type = tpi_in_operand(step, l.bias)->dtype;
        read_early(w, p, l.bias);
    }
    return true;
}

/* Whether input k of the launch's step is all of a product's result. */
bool is_result(const window *w, int k, const row_products &p, const void *y, int64_t n) {
    const tpi_operand *in = tpi_in_operand(w->launch.step, k);
    return tpi_in(&w->launch, k) == y && in->contiguous && in->dtype == w->dtype && in->count == p.m * n;
}

/* ---- endings ---- */

/* The products behind which silu·mul is written are the last two steps: it may lie in their place. */
bool gated_apart(const window *w, tpi_range gated) {
    for (uint32_t i = w->first; i < w->next; i++)
        for (int k = 0; k < w->bound->steps[i].n_out; k++) {
            const tpi_range out = tpi_range_of_output(w->bound, &w->bound->steps[i], k);
            if (i + 2 < w->next ? !tpi_apart(out, gated) : !tpi_same_or_apart(out, gated)) return false;
        }
    return apart_from_inputs(w, gated, w->next);
}

bool take_gated(window *w, row_products *p) {
    const row_product &gate = p->part[0], &up = p->part[1];
    if (p->count != 2 || gate.n != up.n || !step_of(w, w->next, TPI_SILU_MUL)) return false;
    if (!is_result(w, 0, *p, gate.y, gate.n) || !is_result(w, 1, *p, up.y, up.n)) return false;
    if (!gated_apart(w, tpi_range_of_output(w->bound, w->launch.step, 0))) return false;
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
    read_early(w, p, 1), read_early(w, p, 2);
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
    for (int j = 0; j < k; j++)
        if (p->part[j].cache == to) return false;
    p->start = (const int32_t *)begin, p->start_stride = start->stride[0], p->capacity = cache->shape[1];
    p->part[k].cache = to;
    read_early(w, p, 2);
    return true;
}

/* q and k turned; then k and v into the caches, or neither. */
void take_attention(window *w, row_products *p) {
    const uint32_t i = w->next;
    row_products turned = *p;
    if (p->count != 3 || !take_rope(w, &turned, i, 0) || !take_rope(w, &turned, i + 1, 1)) return;
    if (!outputs_apart(w, i + 2)) return;
    *p = turned, w->next = i + 2;
    if (take_cache_write(w, &turned, i + 2, 1) && take_cache_write(w, &turned, i + 3, 2))
        *p = turned, w->next = i + 4;
}

/* The products of one x from w->next on. */
void take_products(window *w, row_products *p) {
    while (p->count < most_products) {
        row_products more = *p;
        if (!take_product(w, &more, w->next) || !outputs_apart(w, w->next + 1)) return;
        *p = more, w->next++;
    }
}

/* A norm that every block makes again must be worth it: not for products of many blocks, which wait for
 * memory and not for launches. */
bool few_blocks(const row_products &p, const tpi_cuda *cuda) {
    int64_t columns = 0;
    for (int i = 0; i < p.count; i++) columns += p.part[i].n;
    return columns <= 16 * 6 * (int64_t)cuda->processors;
}

} // namespace

uint32_t tpi_cuda_row_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                            tp_status *status) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    window w = {*launch, bound, first, first, 0};
    row_products p = {};
    p.steady = true, p.fault = cuda->fault;
    const bool normed = take_norm(&w, &p);
    if (w.next > first && !normed) return 0;
    take_products(&w, &p);
    if (p.count == 0 || (normed && !few_blocks(p, cuda))) return 0;
    if (!take_gated(&w, &p)) take_attention(&w, &p);
    start_row_products(cuda, w.dtype, p);
    *status = tpi_cuda_launched(launch);
    return w.next - first;
}
