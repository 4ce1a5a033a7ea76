/* Recording a step's parts: forward, loss, backward, clipping, AdamW. */
#include "train/parts.h"

#include "core/error.h"
#include "taper/ops.h"

#define MOST_TOGETHER 255  /* inputs of an operation */
#define CLIP_EPS      1e-6 /* beside the norm in the divisor, as in PyTorch */

static tp_lazy *leaf(tpi_step *step, tp_tensor *tensor) {
    return tensor ? tp_lazy_from_tensor(step->graph, tensor) : NULL;
}

static tp_lazy *constant(tpi_step *step, double value) {
    const float rounded = (float)value;
    return tp_lazy_from_slice(step->graph, tp_model_device(step->options.model), TP_F32, 0, NULL, &rounded);
}

static tp_lazy *number(tpi_step *step, const tpi_part_inputs *in, int which) {
    return tp_lazy_reshape(tp_lazy_slice(leaf(step, in->numbers), 0, which, which + 1), 0, NULL);
}

/* The sum of the token losses; `training` says that gradients will be asked for. */
static tp_lazy *record_loss(tpi_step *step, const tpi_part_inputs *in, bool training) {
    const tpi_step_options *options = &step->options;
    const tp_adapter_use use = {options->adapter, 1.0};
    tp_forward forward = TP_FORWARD_INIT;
    forward.tokens = leaf(step, in->ids);
    forward.rows = leaf(step, in->pick);
    forward.adapters = &use;
    forward.adapter_count = options->adapter ? 1 : 0;
    forward.dropout_seed = leaf(step, in->seed);
    forward.recompute = options->recompute && training;
    tp_lazy *losses = tp_model_loss_lazy(options->model, &forward, leaf(step, in->targets), TPI_IGNORE);
    return tp_lazy_sum(losses, TP_ALL_DIMS, false);
}

static tp_lazy *record_norm(tpi_step *step, tp_lazy *const *gradients) {
    tp_lazy *sum = NULL;
    for (int i = 0; i < step->count; i += MOST_TOGETHER) {
        const int left = step->count - i;
        tp_lazy *squares = tp_lazy_sum_squares(gradients + i, left < MOST_TOGETHER ? left : MOST_TOGETHER);
        sum = i == 0 ? squares : tp_lazy_add(sum, squares);
    }
    return tp_lazy_sqrt(sum);
}

/* min(1, clip / (norm + eps)), and not a number where the norm or the loss is not finite: AdamW then changes
 * nothing. */
static tp_lazy *record_factor(tpi_step *step, tp_lazy *norm, tp_lazy *loss_sum) {
    tp_lazy *poison = tp_lazy_mul_scalar(tp_lazy_add(norm, loss_sum), 0.0);
    if (step->options.clip <= 0.0) return tp_lazy_add_scalar(poison, 1.0);
    tp_lazy *ratio = tp_lazy_div(constant(step, step->options.clip), tp_lazy_add_scalar(norm, CLIP_EPS));
    return tp_lazy_add(tp_lazy_minimum(ratio, constant(step, 1.0)), poison);
}

static void record_update(tpi_step *step, const tpi_part_inputs *in, tp_lazy *const *gradients,
                          tp_lazy *factor) {
    const tpi_step_options *options = &step->options;
    const tp_adamw_options adamw = {sizeof adamw, options->beta1, options->beta2, options->eps,
                                    options->weight_decay};
    tp_lazy *rates = tp_lazy_slice(leaf(step, in->numbers), 0, TPI_RATE, TPI_CORRECTION_2 + 1);
    for (int i = 0; i < step->count; i++)
        tp_lazy_adamw(leaf(step, step->parameters[i].tensor), leaf(step, step->m[i]), leaf(step, step->v[i]),
                      gradients[i], rates, factor, &adamw);
}

/* The gradients of this batch and those before; kept in `sums` where batches follow. */
static tp_status record_gradients(tpi_step *step, tpi_part which, tp_lazy *loss, tp_lazy **gradients) {
    tp_lazy **parameters = step->nodes + step->count;
    for (int i = 0; i < step->count; i++) parameters[i] = leaf(step, step->parameters[i].tensor);
    TPI_TRY(tp_graph_grad(step->graph, loss, parameters, step->count, gradients));
    for (int i = 0; i < step->count && which != TPI_PART_ONLY; i++) {
        tp_lazy *sum = leaf(step, step->sums[i]);
        if (which != TPI_PART_FIRST) gradients[i] = tp_lazy_add(sum, gradients[i]);
        if (which != TPI_PART_LAST) tp_lazy_assign(sum, gradients[i]);
    }
    return TP_OK;
}

/* One result, which is read by one copy from a device. */
static tp_lazy *record_pair(tp_lazy *first, tp_lazy *second) {
    const int64_t one = 1;
    return tp_lazy_concat((tp_lazy *[]){tp_lazy_reshape(first, 1, &one), tp_lazy_reshape(second, 1, &one)}, 2,
                          0);
}

tp_status tpi_part_record(tpi_step *step, tpi_part which, const tpi_part_inputs *in, tp_lazy **output) {
    tp_lazy **gradients = step->nodes, *sum = record_loss(step, in, which != TPI_PART_LOSS);
    *output = sum;
    if (which == TPI_PART_LOSS) return TP_OK;
    TPI_TRY(record_gradients(step, which, tp_lazy_div(sum, number(step, in, TPI_TOKENS)), gradients));
    if (which == TPI_PART_FIRST || which == TPI_PART_MIDDLE) return TP_OK;
    tp_lazy *norm = record_norm(step, gradients), *so_far = tp_lazy_add(sum, number(step, in, TPI_LOSS_SUM));
    record_update(step, in, gradients, record_factor(step, norm, so_far));
    *output = record_pair(sum, norm);
    return TP_OK;
}
