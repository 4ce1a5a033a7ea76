/* Recording the step. With several batches each but the last adds its gradients to `sums` and the last
 * applies them: three recordings (first, middle, last) beside the one of a step of a single batch. The first
 * assigns where the others add, so no sum needs clearing and a step that was given up leaves nothing behind.
 */
#include "train/step.h"

#include "core/alloc.h"
#include "core/error.h"
#include "core/random.h"
#include "taper/ops.h"

#include <math.h>
#include <string.h>

#define MOST_TOGETHER 255  /* inputs of an operation */
#define CLIP_EPS      1e-6 /* beside the norm in the divisor, as in PyTorch */

/* ---- making ---- */

static tp_status zeros_like(tp_device *device, const tp_parameter *parameters, int count, tp_tensor ***out) {
    if (!(*out = tpi_calloc((size_t)count, sizeof **out))) return TP_ENOMEM;
    for (int i = 0; i < count; i++) {
        const tp_tensor *like = parameters[i].tensor;
        TPI_TRY(tp_tensor_zeros(device, TP_F32, tp_tensor_rank(like), tp_tensor_shape(like), &(*out)[i]));
    }
    return TP_OK;
}

static tp_status create(tpi_step *step) {
    const tpi_step_options *options = &step->options;
    tp_device *device = tp_model_device(options->model);
    const tp_parameter *trained = options->adapter ? tp_adapter_parameters(options->adapter, &step->count)
                                                   : tp_model_parameters(options->model, &step->count);
    size_t n = (size_t)step->count;
    if (!(step->parameters = tpi_calloc(n, sizeof *step->parameters))) return TP_ENOMEM;
    if (n) memcpy(step->parameters, trained, n * sizeof *trained);
    for (size_t i = 0; i < n; i++)
        if (tp_tensor_dtype(trained[i].tensor) != TP_F32)
            return tpi_fail(TP_EINVAL, "%s is %s: training needs f32 weights", trained[i].name,
                            tp_dtype_name(tp_tensor_dtype(trained[i].tensor)));
    if (!(step->nodes = tpi_calloc(n, 2 * sizeof *step->nodes))) return TP_ENOMEM;
    TPI_TRY(zeros_like(device, trained, step->count, &step->m));
    TPI_TRY(zeros_like(device, trained, step->count, &step->v));
    if (options->accumulate) TPI_TRY(zeros_like(device, trained, step->count, &step->sums));
    return tp_graph_create(&step->graph, tp_device_context(device));
}

tp_status tpi_step_create(tpi_step **out, const tpi_step_options *options) {
    *out = NULL;
    tpi_step *step = tpi_calloc(1, sizeof *step);
    if (!step) return TP_ENOMEM;
    step->options = *options;
    tp_status status = create(step);
    if (status != TP_OK)
        tpi_step_destroy(step);
    else
        *out = step;
    return status;
}

static void release_all(tp_tensor **tensors, int count) {
    for (int i = 0; tensors && i < count; i++) tp_tensor_release(tensors[i]);
    tpi_free(tensors);
}

void tpi_step_destroy(tpi_step *step) {
    if (!step) return;
    tp_graph_destroy(step->graph);
    release_all(step->m, step->count);
    release_all(step->v, step->count);
    release_all(step->sums, step->count);
    tpi_free(step->parameters);
    tpi_free(step->nodes);
    tpi_free(step);
}

/* ---- recording ---- */

typedef enum part { PART_ONLY, PART_FIRST, PART_MIDDLE, PART_LAST } part;

/* What a part of a step needs beside its batch. */
typedef struct part_inputs {
    part which;
    int64_t batch;      /* its number in the step */
    int64_t tokens;     /* of the whole step */
    double loss_sum;    /* of the batches before */
    float optimizer[3]; /* learning rate and bias corrections, as tp_lazy_adamw has them */
} part_inputs;

static tp_lazy *input(tpi_step *step, tp_dtype dtype, int rank, const int64_t *shape, const void *data) {
    return tp_lazy_from_slice(step->graph, tp_model_device(step->options.model), dtype, rank, shape, data);
}

static tp_lazy *scalar(tpi_step *step, double value) {
    float rounded = (float)value;
    return input(step, TP_F32, 0, NULL, &rounded);
}

static tp_lazy *dropout_seed(tpi_step *step, int64_t batch) {
    const uint32_t key[2] = {(uint32_t)step->options.seed, (uint32_t)(step->options.seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)step->attempts, (uint32_t)(step->attempts >> 32), (uint32_t)batch,
                                 1};
    const int64_t two = 2;
    uint32_t random[4];
    tpi_philox(key, counter, random);
    return input(step, TP_I32, 1, &two, random);
}

/* The sum of the token losses; `seed` may be NULL, `training` says that gradients will be asked for. */
static tp_lazy *record_loss(tpi_step *step, const tpi_batch *batch, tp_lazy *seed, bool training) {
    const tpi_step_options *options = &step->options;
    const int64_t grid[2] = {batch->rows, batch->length};
    const tp_adapter_use use = {options->adapter, 1.0};
    tp_forward forward = TP_FORWARD_INIT;
    forward.tokens = input(step, TP_I32, 2, grid, batch->ids);
    if (batch->picked) forward.rows = input(step, TP_I32, 1, &batch->picked, batch->pick);
    forward.adapters = &use;
    forward.adapter_count = options->adapter ? 1 : 0;
    forward.dropout_seed = seed;
    forward.recompute = options->recompute && training;
    tp_lazy *targets = batch->picked ? input(step, TP_I32, 1, &batch->picked, batch->targets)
                                     : input(step, TP_I32, 2, grid, batch->targets);
    tp_lazy *losses = tp_model_loss_lazy(options->model, &forward, targets, TPI_IGNORE);
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
    tp_lazy *ratio = tp_lazy_div(scalar(step, step->options.clip), tp_lazy_add_scalar(norm, CLIP_EPS));
    return tp_lazy_add(tp_lazy_minimum(ratio, scalar(step, 1.0)), poison);
}

static void record_update(tpi_step *step, tp_lazy *const *gradients, tp_lazy *factor, const float rates[3]) {
    const tpi_step_options *options = &step->options;
    const tp_adamw_options adamw = {sizeof adamw, options->beta1, options->beta2, options->eps,
                                    options->weight_decay};
    const int64_t three = 3;
    tp_lazy *step_input = input(step, TP_F32, 1, &three, rates);
    for (int i = 0; i < step->count; i++)
        tp_lazy_adamw(tp_lazy_from_tensor(step->graph, step->parameters[i].tensor),
                      tp_lazy_from_tensor(step->graph, step->m[i]),
                      tp_lazy_from_tensor(step->graph, step->v[i]), gradients[i], step_input, factor, &adamw);
}

/* Records a part; outputs[0] is the batch's loss sum, outputs[1] the norm where the step ends with it. */
static tp_status record_part(tpi_step *step, const tpi_batch *batch, const part_inputs *in,
                             tp_lazy *outputs[2], int *output_count) {
    tp_lazy **gradients = step->nodes, **parameters = step->nodes + step->count;
    tp_lazy *seed = step->options.dropout ? dropout_seed(step, in->batch) : NULL;
    for (int i = 0; i < step->count; i++)
        parameters[i] = tp_lazy_from_tensor(step->graph, step->parameters[i].tensor);
    outputs[0] = record_loss(step, batch, seed, true);
    *output_count = 1;
    tp_lazy *loss = tp_lazy_div(outputs[0], scalar(step, (double)in->tokens));
    TPI_TRY(tp_graph_grad(step->graph, loss, parameters, step->count, gradients));
    for (int i = 0; i < step->count && in->which != PART_ONLY; i++) {
        tp_lazy *sum = tp_lazy_from_tensor(step->graph, step->sums[i]);
        if (in->which != PART_FIRST) gradients[i] = tp_lazy_add(sum, gradients[i]);
        if (in->which != PART_LAST) tp_lazy_assign(sum, gradients[i]);
    }
    if (in->which == PART_FIRST || in->which == PART_MIDDLE) return TP_OK;
    outputs[1] = record_norm(step, gradients);
    *output_count = 2;
    tp_lazy *loss_sum = tp_lazy_add(outputs[0], scalar(step, in->loss_sum));
    record_update(step, gradients, record_factor(step, outputs[1], loss_sum), in->optimizer);
    return TP_OK;
}

/* ---- running ---- */

/* Evaluates what was recorded, if that went well, and forgets it. */
static tp_status evaluate(tpi_step *step, tp_status status, tp_lazy *const *outputs, int count,
                          float *values) {
    tp_tensor *results[2] = {NULL, NULL};
    if (status == TP_OK) status = tp_graph_eval(step->graph, outputs, count, results);
    for (int i = 0; i < count; i++) {
        if (status == TP_OK) status = tp_tensor_read(results[i], TP_F32, &values[i], sizeof values[i]);
        tp_tensor_release(results[i]);
    }
    tp_graph_reset(step->graph);
    return status;
}

static part part_of(int64_t batch, int64_t count) {
    if (count == 1) return PART_ONLY;
    if (batch == 0) return PART_FIRST;
    return batch + 1 == count ? PART_LAST : PART_MIDDLE;
}

tp_status tpi_step_run(tpi_step *step, const tpi_batch *batches, int64_t count, double rate,
                       tpi_step_result *result) {
    const tpi_step_options *options = &step->options;
    const double t = (double)step->updates + 1.0;
    part_inputs in = {.optimizer = {(float)rate, (float)(1.0 - pow(options->beta1, t)),
                                    (float)(1.0 - pow(options->beta2, t))}};
    float values[2] = {0.0f, 0.0f};
    for (int64_t i = 0; i < count; i++) in.tokens += batches[i].tokens;
    if (in.tokens == 0 || (count > 1 && !step->sums))
        return tpi_fail(TP_EINVAL, "step: %lld batches with %lld trained tokens", (long long)count,
                        (long long)in.tokens);
    for (in.batch = 0; in.batch < count; in.batch++) {
        tp_lazy *outputs[2];
        in.which = part_of(in.batch, count);
        int wanted = 0;
        tp_status status = record_part(step, &batches[in.batch], &in, outputs, &wanted);
        TPI_TRY(evaluate(step, status, outputs, wanted, values));
        in.loss_sum += (double)values[0];
    }
    step->attempts++;
    *result = (tpi_step_result){in.loss_sum / (double)in.tokens, in.tokens, (double)values[1], false};
    result->skipped = !isfinite((float)in.loss_sum) || !isfinite(values[1]);
    if (!result->skipped) step->updates++;
    return TP_OK;
}

tp_status tpi_step_diagnose(tpi_step *step, const tpi_batch *batches, int64_t count, double rate) {
    tp_context *ctx = tp_device_context(tp_model_device(step->options.model));
    const int64_t attempts = step->attempts;
    tpi_step_result result;
    step->attempts = attempts - 1; /* so that dropout is what it was */
    const bool before = tp_context_detect_nonfinite(ctx, true);
    tp_status status = tpi_step_run(step, batches, count, rate, &result);
    tp_context_detect_nonfinite(ctx, before);
    step->attempts = attempts;
    return status;
}

tp_status tpi_step_loss(tpi_step *step, const tpi_batch *batch, double *sum) {
    float value = 0.0f;
    tp_lazy *output = record_loss(step, batch, NULL, false);
    TPI_TRY(evaluate(step, TP_OK, &output, 1, &value));
    *sum = (double)value;
    return TP_OK;
}

tp_status tpi_step_memory(tpi_step *step, const tpi_batch *batch, uint64_t *bytes) {
    const part_inputs in = {.which = step->sums ? PART_LAST : PART_ONLY,
                            .tokens = batch->tokens,
                            .optimizer = {0.0f, 1.0f, 1.0f}};
    tp_lazy *outputs[2];
    int wanted = 0;
    tp_status status = record_part(step, batch, &in, outputs, &wanted);
    if (status == TP_OK) status = tp_graph_memory(step->graph, outputs, wanted, bytes);
    tp_graph_reset(step->graph);
    return status;
}
