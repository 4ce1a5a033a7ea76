/* AdamW (Loshchilov and Hutter 2019): parameter and moments are read and written once, those of many tensors
 * in one launch. */
#include "backend/cuda/groups.h"
#include "backend/cuda/tensors.cuh"

namespace {

#define THREADS 256
#define CHUNK   (THREADS * 4) /* elements of a block */
#define MANY    448           /* tensors of a launch */

/* ---- the kernel ---- */

struct factors {
    float beta1, rest1, beta2, rest2, eps, decay;
};

struct tensor {
    const float *p, *m, *v, *gradient;
    float *next_p, *next_m, *next_v; /* NULL: not wanted */
    int64_t count;
};

template <int N> struct table : tensor_table<tensor, N> {
    factors f;
    const float *step, *scale; /* {learning rate, 1 - β1^t, 1 - β2^t}; one number */
    const tpi_cuda_fault *fault;
};

struct moment {
    float rate, inverse1, inverse2, scale;
    bool skip;
};

__device__ __forceinline__ void update(const factors &f, const moment &now, float &p, float &m, float &v,
                                       float g) {
    g *= now.scale;
    m = f.beta1 * m + f.rest1 * g;
    v = f.beta2 * v + f.rest2 * g * g;
    const float direction = m * now.inverse1 / (sqrtf(v * now.inverse2) + f.eps);
    p -= now.rate * (direction + f.decay * p);
}

/* V elements from index i on. */
template <int V>
__device__ __forceinline__ void update_at(const tensor &t, const factors &f, const moment &now, int64_t i) {
    using floats = pack<float, V>;
    floats p = *(const floats *)(t.p + i), m = *(const floats *)(t.m + i), v = *(const floats *)(t.v + i);
    const floats g = *(const floats *)(t.gradient + i);
#pragma unroll
    for (int j = 0; j < V; j++)
        if (!now.skip) update(f, now, p.at[j], m.at[j], v.at[j], g.at[j]);
    if (t.next_p) *(floats *)(t.next_p + i) = p;
    if (t.next_m) *(floats *)(t.next_m + i) = m;
    if (t.next_v) *(floats *)(t.next_v + i) = v;
}

__device__ __forceinline__ bool is_aligned(const tensor &t) {
    return ((uintptr_t)t.p | (uintptr_t)t.m | (uintptr_t)t.v | (uintptr_t)t.gradient | (uintptr_t)t.next_p |
            (uintptr_t)t.next_m | (uintptr_t)t.next_v) %
               16 ==
           0;
}

/* After a fault state stays as it is; a scale that is not finite gives it back unchanged. */
template <int N> __global__ void __launch_bounds__(THREADS) adamw(const __grid_constant__ table<N> tensors) {
    const int k = tensors.of_block();
    const tensor &t = tensors.tensors[k];
    const int64_t i = (int64_t)(blockIdx.x - tensors.first_block[k]) * CHUNK + threadIdx.x * 4;
    const moment now = {tensors.step[0], 1.0f / tensors.step[1], 1.0f / tensors.step[2], tensors.scale[0],
                        !isfinite(tensors.scale[0])};
    if (i >= t.count || has_fault(tensors.fault)) return;
    if (is_aligned(t) && i + 4 <= t.count) {
        update_at<4>(t, tensors.f, now, i);
    } else {
        for (int64_t j = i; j < i + 4 && j < t.count; j++) update_at<1>(t, tensors.f, now, j);
    }
}

/* ---- launches ---- */

const tpi_attr_adamw *attr_of(const tpi_launch *launch) {
    return (const tpi_attr_adamw *)launch->step->attr;
}

/* Parts of the table that do not depend on the tensor. */
template <int N> void begin_table(table<N> *to, const tpi_launch *launch) {
    const tpi_attr_adamw *attr = attr_of(launch);
    to->f = {(float)attr->beta1,         (float)(1.0 - attr->beta1), (float)attr->beta2,
             (float)(1.0 - attr->beta2), (float)attr->eps,           (float)attr->weight_decay};
    to->step = (const float *)tpi_in(launch, 4);
    to->scale = (const float *)tpi_in(launch, 5);
    to->fault = tpi_cuda_of(launch)->fault;
}

tensor tensor_of(const tpi_launch *launch) {
    return {(const float *)tpi_in(launch, 0), (const float *)tpi_in(launch, 1),
            (const float *)tpi_in(launch, 2), (const float *)tpi_in(launch, 3),
            (float *)tpi_out(launch, 0),      (float *)tpi_out(launch, 1),
            (float *)tpi_out(launch, 2),      tpi_in_operand(launch->step, 0)->count};
}

template <int N> tp_status start(const tpi_launch *launch, const table<N> &tensors) {
    if (tensors.blocks == 0) return TP_OK;
    adamw<N><<<tensors.blocks, THREADS, 0, tpi_cuda_of(launch)->stream>>>(tensors);
    return tpi_cuda_launched(launch);
}

tp_status run(const tpi_launch *launch) {
    table<1> one;
    begin_table(&one, launch);
    one.add(tensor_of(launch), CHUNK);
    return start(launch, one);
}

/* Whether both have the same attributes, rates and scale of gradients. */
bool alike(const tpi_launch *a, const tpi_launch *b) {
    return memcmp(attr_of(a), attr_of(b), sizeof(tpi_attr_adamw)) == 0 && tpi_in(a, 4) == tpi_in(b, 4) &&
           tpi_in(a, 5) == tpi_in(b, 5);
}

/* Whether an earlier launch is like launch k: then it took k along. */
bool is_taken(const tpi_launch *launches, int k) {
    for (int j = 0; j < k; j++)
        if (alike(&launches[j], &launches[k])) return true;
    return false;
}

/* Where a step reads and writes: of state that is updated in its place, writes alone. */
struct places {
    tpi_range read[6], written[3];
    int n_read, n_written;
};

places places_of(const tpi_bound *bound, const tpi_step *step) {
    places p = {};
    for (int k = 0; k < step->n_out; k++) p.written[p.n_written++] = tpi_range_of_output(bound, step, k);
    for (int k = 0; k < step->n_in; k++) {
        const tpi_range in = tpi_range_of_input(bound, step, k);
        bool in_place = false;
        for (int j = 0; j < p.n_written && !in_place; j++)
            in_place = in.begin == p.written[j].begin && in.end == p.written[j].end;
        if (!in_place) p.read[p.n_read++] = in;
    }
    return p;
}

bool writes_apart(const places &writer, const places &other) {
    for (int i = 0; i < writer.n_written; i++) {
        for (int k = 0; k < other.n_read; k++)
            if (!tpi_apart(writer.written[i], other.read[k])) return false;
        for (int k = 0; k < other.n_written; k++)
            if (!tpi_apart(writer.written[i], other.written[k])) return false;
    }
    return true;
}

/* Whether neither of step k and those before it writes what the other reads or writes: results that are no
 * state may lie over an earlier step's gradient. As tpi_steps_apart, but the places of each are found once:
 * there are hundreds of steps. */
bool lies_apart(const places *all, int k) {
    for (int j = 0; j < k; j++)
        if (!writes_apart(all[j], all[k]) || !writes_apart(all[k], all[j])) return false;
    return true;
}

/* All tensors from launch `first` on that are updated like its own. */
tp_status run_alike(const tpi_launch *launches, int first, int n) {
    table<MANY> many;
    begin_table(&many, &launches[first]);
    for (int k = first; k < n; k++)
        if (alike(&launches[first], &launches[k])) many.add(tensor_of(&launches[k]), CHUNK);
    return start(&launches[first], many);
}

bool accepts(const tpi_step *step) {
    for (int k = 0; k < 6; k++)
        if (step->operands[k].dtype != TP_F32 || !step->operands[k].contiguous) return false;
    for (int k = 0; k < 3; k++)
        if (tpi_out_operand(step, k)->dtype != TP_F32 || !tpi_out_operand(step, k)->contiguous) return false;
    return true;
}

} // namespace

/* Steps of AdamW share the inputs `step` and `gradient_scale`; there is a launch for each set of attributes.
 */
uint32_t tpi_cuda_adamw_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                              tp_status *status) {
    tpi_launch launches[MANY];
    places all[MANY];
    int n = 0;
    for (uint32_t i = first; i < bound->n_steps && bound->steps[i].op == TPI_ADAMW && n < MANY; i++) {
        launches[n] = *launch;
        launches[n].step = &bound->steps[i];
        all[n] = places_of(bound, launches[n].step);
        if (!lies_apart(all, n)) break;
        n++;
    }
    *status = TP_OK;
    for (int k = 0; k < n && *status == TP_OK; k++)
        if (!is_taken(launches, k)) *status = run_alike(launches, k, n);
    return (uint32_t)n;
}

const tpi_kernel_entry tpi_cuda_adamw[] = {
    {TPI_ADAMW, {"cuda", run, accepts, NULL}},
    TPI_KERNELS_END,
};
