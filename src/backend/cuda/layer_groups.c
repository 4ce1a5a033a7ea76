/* Which adapted layers of a plan are one product: two of one x, as gate and up with the silu·mul behind them,
 * or k and v; those whose sum is the next step, as the gradients by one x; one with the gradients by gate and
 * up behind it. The planner brings such steps together (gather.c). A step is recognised by where its operands
 * lie. */
#include "backend/cuda/groups.h"
#include "backend/cuda/lora.h"

typedef struct window {
    const tpi_bound *bound;
    uint32_t first, end; /* steps */
    tpi_lora_layers layers;
    tpi_gate gate;
} window;

static const tpi_step *step_at(const window *w, uint32_t i) {
    return i < w->bound->n_steps ? &w->bound->steps[i] : NULL;
}

/* ---- what may be written all at once ---- */

/* Whether a range lies apart from all that the layers read, from the group's scratch, which is the first
 * one's, and from the low-rank outputs. */
static bool apart_from_layers(const window *w, tpi_range data, bool and_low_rank) {
    const tpi_range scratch = tpi_range_of(tpi_scratch(&w->layers.launch[0]),
                                           (int64_t)tpi_cuda_lora_hopper_scratch(w->layers.layer));
    if (!tpi_apart(scratch, data)) return false;
    for (int i = 0; i < w->layers.count; i++) {
        const tpi_step *step = w->layers.launch[i].step;
        for (int k = 0; k < step->n_in; k++)
            if (!tpi_apart(tpi_range_of_input(w->bound, step, k), data)) return false;
        if (and_low_rank && tpi_wants_low_rank(step) &&
            !tpi_apart(tpi_range_of_output(w->bound, step, 1), data))
            return false;
    }
    return true;
}

/* The outputs that a group writes: the low-rank ones, and these. */
static bool outputs_apart(const window *w, const tpi_range *more, int n) {
    for (int i = 0; i < w->layers.count; i++) {
        const tpi_step *step = w->layers.launch[i].step;
        if (tpi_wants_low_rank(step) && !apart_from_layers(w, tpi_range_of_output(w->bound, step, 1), false))
            return false;
    }
    for (int i = 0; i < n; i++) {
        if (!apart_from_layers(w, more[i], true)) return false;
        for (int j = 0; j < i; j++)
            if (!tpi_apart(more[i], more[j])) return false;
    }
    return true;
}

/* ---- layers ---- */

/* Step i as the next layer. */
static bool take_layer(window *w, uint32_t i) {
    const tpi_step *step = step_at(w, i);
    const int n = w->layers.count;
    if (!step || step->op != TPI_LINEAR_LORA || step->kernel->run != tpi_cuda_linear_lora[0].kernel.run)
        return false;
    if (n == TPI_LAYERS_AT_ONCE || !tpi_layer_of(step, &w->layers.layer[n])) return false;
    w->layers.launch[n] = w->layers.launch[0];
    w->layers.launch[n].step = step;
    w->layers.count++;
    return tpi_out_operand(step, 0)->count > 0 && tpi_cuda_lora_hopper_fits(&w->layers);
}

/* Whether inputs 0 ... n-1 of the step are the layers' whole results, in any order. */
static bool reads_results(const window *w, const tpi_step *step) {
    for (int k = 0; k < step->n_in; k++) {
        int i = 0;
        while (i < w->layers.count &&
               tpi_bound_out(w->bound, w->layers.launch[i].step, 0) != tpi_bound_in(w->bound, step, k))
            i++;
        if (i == w->layers.count) return false;
        const tpi_operand *in = tpi_in_operand(step, k);
        const tpi_operand *y = tpi_out_operand(w->layers.launch[i].step, 0);
        if (!in->contiguous || in->dtype != y->dtype || in->count != y->count) return false;
        for (int j = 0; j < k; j++)
            if (tpi_bound_in(w->bound, step, j) == tpi_bound_in(w->bound, step, k)) return false;
    }
    return step->n_in == w->layers.count;
}

/* A sum of all its inputs, each once: a chain that reads n inputs in n - 1 additions can read none twice. */
static bool is_sum(const tpi_step *step) {
    if (step->op == TPI_ADD) return true;
    if (step->op != TPI_POINTWISE_CHAIN) return false;
    const tpi_attr_chain *chain = step->attr;
    for (int64_t i = 0; i < chain->length; i++)
        if (chain->steps[i].op != TPI_ADD) return false;
    return chain->length == step->n_in - 1;
}

static bool take_sum(window *w) {
    uint32_t i = w->first;
    w->layers.twins = false;
    while (take_layer(w, i)) {
        const tpi_step *sum = step_at(w, ++i);
        if (w->layers.count < 2 || !sum || !is_sum(sum) || !reads_results(w, sum)) continue;
        const tpi_range y = tpi_range_of_output(w->bound, sum, 0);
        if (tpi_out_operand(sum, 0)->dtype != TP_BF16 || !outputs_apart(w, &y, 1)) return false;
        for (int k = 0; k < w->layers.count; k++) {
            const tpi_range part = tpi_range_of_output(w->bound, w->layers.launch[k].step, 0);
            if (part.begin != y.begin && tpi_read_later(w->bound, part, i + 1)) return false;
        }
        w->layers.sum = tpi_bound_out(w->bound, sum, 0);
        w->end = i + 1;
        return true;
    }
    return false;
}

/* A silu·mul behind twins, the first one's result being the gate. */
static bool take_gated(window *w, tpi_range *gated) {
    const tpi_step *step = step_at(w, w->end);
    if (!step || step->op != TPI_SILU_MUL || !reads_results(w, step)) return false;
    if (tpi_bound_in(w->bound, step, 0) != tpi_bound_out(w->bound, w->layers.launch[0].step, 0)) return false;
    *gated = tpi_range_of_output(w->bound, step, 0);
    return tpi_out_operand(step, 0)->dtype == TP_BF16;
}

static bool take_twins(window *w) {
    w->layers.twins = true;
    if (!take_layer(w, w->first) || !take_layer(w, w->first + 1)) return false;
    const tpi_step *one = w->layers.launch[0].step, *other = w->layers.launch[1].step;
    if (tpi_bound_in(w->bound, one, 0) != tpi_bound_in(w->bound, other, 0)) return false;
    tpi_range y[3] = {tpi_range_of_output(w->bound, one, 0), tpi_range_of_output(w->bound, other, 0)};
    if (!outputs_apart(w, y, 2)) return false;
    w->end = w->first + 2;
    if (take_gated(w, &y[2]) && outputs_apart(w, y, 3)) {
        w->layers.gated = tpi_bound_out(w->bound, step_at(w, w->end), 0);
        w->end++;
    }
    return true;
}

/* ---- the gradients by gate and up behind a layer ---- */

/* The gradient of silu(gate)·up for which the layer's y is what comes from above. */
static bool is_gate_gradient(const window *w, const tpi_step *grad) {
    const tpi_step *layer = w->layers.launch[0].step;
    if (!grad || grad->op != TPI_SILU_MUL_GRAD) return false;
    for (int k = 0; k < 3; k++)
        if (!tpi_alike(tpi_in_operand(grad, k), tpi_out_operand(layer, 0))) return false;
    return tpi_bound_in(w->bound, grad, 2) == tpi_bound_out(w->bound, layer, 0);
}

/* What is written lies apart from what the layer reads and from each other, and of gate and up apart or in
 * one's place; y, which is not written, nobody reads. */
static bool gate_lies_well(const window *w) {
    const tpi_gate *gate = &w->gate;
    const void *read[] = {gate->gate, gate->up}, *written[] = {gate->dgate, gate->dup, gate->y};
    const tpi_range y = tpi_range_of_output(w->bound, w->layers.launch[0].step, 0);
    const int64_t bytes = (int64_t)(y.end - y.begin);
    tpi_range out[3];
    bool over_y = false;
    int n = 0;
    for (int i = 0; i < 3; i++) {
        if (!written[i]) continue;
        out[n] = tpi_range_of(written[i], bytes);
        for (int k = 0; k < 2; k++)
            if (!tpi_same_or_apart(out[n], tpi_range_of(read[k], bytes))) return false;
        over_y = over_y || out[n].begin == y.begin;
        n++;
    }
    return outputs_apart(w, out, n) && (over_y || !tpi_read_later(w->bound, y, w->end));
}

static bool take_gate(window *w) {
    if (!take_layer(w, w->first)) return false;
    const tpi_step *next = step_at(w, w->first + 1), *mul = next && next->op == TPI_SILU_MUL ? next : NULL;
    const tpi_step *grad = mul ? step_at(w, w->first + 2) : next;
    if (!is_gate_gradient(w, grad) || (mul && !tpi_makes_gated(w->bound, mul, grad))) return false;
    w->end = w->first + (mul ? 3 : 2);
    w->gate = (tpi_gate){tpi_bound_in(w->bound, grad, 0), tpi_bound_in(w->bound, grad, 1),
                         tpi_bound_out(w->bound, grad, 0), tpi_bound_out(w->bound, grad, 1),
                         mul ? tpi_bound_out(w->bound, mul, 0) : NULL};
    w->layers.gate = &w->gate;
    return gate_lies_well(w) && tpi_cuda_lora_hopper_fits(&w->layers);
}

static bool take_one(window *w) {
    if (!take_layer(w, w->first)) return false;
    w->end = w->first + 1;
    return true;
}

/* ---- the group ---- */

static bool is_steady(const window *w) {
    for (int i = 0; i < w->layers.count; i++) {
        const tpi_layer *l = &w->layers.layer[i];
        const int read[] = {l->a, l->b, l->bias};
        for (int k = 0; k < (l->bias ? 3 : 2); k++)
            if (tpi_written_before(w->bound, tpi_range_of_input(w->bound, w->layers.launch[i].step, read[k]),
                                   w->first))
                return false;
    }
    return true;
}

uint32_t tpi_cuda_layer_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                              tp_status *status) {
    static bool (*const forms[])(window *) = {take_sum, take_gate, take_twins, take_one};
    if (launch->step->op != TPI_LINEAR_LORA) return 0;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        window w = {.bound = bound, .first = first, .layers = {.launch = {*launch}}};
        if (!forms[i](&w)) continue;
        w.layers.steady = is_steady(&w);
        *status = tpi_cuda_lora_hopper(&w.layers);
        return w.end - w.first;
    }
    return 0;
}
