/* A step's life: its programs, one for each part and shape of batch, are made when they are first needed. */
#include "train/parts.h"

#include "core/alloc.h"
#include "core/error.h"
#include "core/random.h"
#include "core/tensor.h"

#include <math.h>
#include <string.h>

#define MOST_INPUTS 5 /* of a part */

/* A part for batches of one shape. */
struct tpi_step_program {
    tpi_part which;
    int64_t rows, length, picked;
    tpi_part_inputs inputs; /* owned */
    tp_tensor *block;       /* i32: what the inputs are views of, in their order */
    tp_program *program;
};

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

static void release_inputs(tpi_part_inputs *in) {
    tp_tensor_release(in->ids);
    tp_tensor_release(in->pick);
    tp_tensor_release(in->targets);
    tp_tensor_release(in->seed);
    tp_tensor_release(in->numbers);
}

static void release_all(tp_tensor **tensors, int count) {
    for (int i = 0; tensors && i < count; i++) tp_tensor_release(tensors[i]);
    tpi_free(tensors);
}

static void destroy_program(tpi_step_program *p) {
    if (!p) return;
    tp_program_destroy(p->program);
    release_inputs(&p->inputs);
    tp_tensor_release(p->block);
    tpi_free(p);
}

void tpi_step_destroy(tpi_step *step) {
    if (!step) return;
    for (int i = 0; i < TPI_STEP_PROGRAMS; i++) destroy_program(step->programs[i]);
    tp_graph_destroy(step->graph);
    release_all(step->m, step->count);
    release_all(step->v, step->count);
    release_all(step->sums, step->count);
    tpi_free(step->parameters);
    tpi_free(step->nodes);
    tpi_free(step);
}

/* ---- programs ---- */

/* An input in the program's block. */
typedef struct input {
    tp_tensor **tensor;
    tp_dtype dtype;
    int rank;
    int64_t shape[2];
} input;

/* Elements are of four bytes. */
static size_t bytes_of(const input *x) {
    return tpi_align_up((size_t)(x->rank == 1 ? x->shape[0] : x->shape[0] * x->shape[1]) * 4);
}

static tp_status make_views(tpi_step_program *p, tp_device *device, const input *inputs, int n) {
    size_t at = 0, bytes = 0;
    for (int i = 0; i < n; i++) bytes += bytes_of(&inputs[i]);
    const int64_t words = (int64_t)(bytes / 4);
    TPI_TRY(tp_tensor_zeros(device, TP_I32, 1, &words, &p->block));
    for (int i = 0; i < n; i++) {
        const input *x = &inputs[i];
        TPI_TRY(tpi_tensor_view(p->block, x->dtype, x->rank, x->shape, NULL, at, x->tensor));
        at += bytes_of(x);
    }
    return TP_OK;
}

static tp_status make_inputs(const tpi_step *step, tpi_step_program *p, const tpi_batch *batch) {
    tpi_part_inputs *in = &p->inputs;
    const int64_t rows = batch->rows, length = batch->length, picked = batch->picked;
    input inputs[MOST_INPUTS] = {{&in->ids, TP_I32, 2, {rows, length}},
                                 {&in->numbers, TP_F32, 1, {TPI_NUMBERS}}};
    int n = 2;
    if (picked > 0) {
        inputs[n++] = (input){&in->pick, TP_I32, 1, {picked}};
        inputs[n++] = (input){&in->targets, TP_I32, 1, {picked}};
    } else
        inputs[n++] = (input){&in->targets, TP_I32, 2, {rows, length}};
    if (step->options.dropout && p->which != TPI_PART_LOSS) inputs[n++] = (input){&in->seed, TP_I32, 1, {2}};
    return make_views(p, tp_model_device(step->options.model), inputs, n);
}

static tp_status make_program(tpi_step *step, tpi_step_program *p, const tpi_batch *batch) {
    tp_lazy *output;
    TPI_TRY(make_inputs(step, p, batch));
    tp_status status = tpi_part_record(step, p->which, &p->inputs, &output);
    if (status == TP_OK) status = tp_program_create(&p->program, step->graph, &output, 1);
    tp_graph_reset(step->graph);
    return status;
}

static tp_status create_program(tpi_step *step, tpi_part which, const tpi_batch *batch,
                                tpi_step_program **out) {
    tpi_step_program *p = *out = tpi_calloc(1, sizeof *p);
    if (!p) return TP_ENOMEM;
    p->which = which;
    p->rows = batch->rows, p->length = batch->length, p->picked = batch->picked;
    const tp_status status = make_program(step, p, batch);
    if (status == TP_OK) return TP_OK;
    destroy_program(p);
    *out = NULL;
    return status;
}

static bool is_for(const tpi_step_program *p, tpi_part which, const tpi_batch *batch) {
    return p->which == which && p->rows == batch->rows && p->length == batch->length &&
           p->picked == batch->picked;
}

/* The program for a part over batches like this one. Borrowed. */
static tp_status find_program(tpi_step *step, tpi_part which, const tpi_batch *batch,
                              tpi_step_program **out) {
    tpi_step_program **all = step->programs;
    int i = 0;
    while (i < TPI_STEP_PROGRAMS - 1 && all[i] && !is_for(all[i], which, batch)) i++;
    if (!all[i] || !is_for(all[i], which, batch)) {
        destroy_program(all[i]); /* before the new one takes memory */
        TPI_TRY(create_program(step, which, batch, &all[i]));
    }
    *out = all[i];
    memmove(all + 1, all, (size_t)i * sizeof *all);
    all[0] = *out;
    return TP_OK;
}

/* ---- running ---- */

static tpi_piece input_piece(const tp_tensor *to, const void *data) {
    return (tpi_piece){to->offset, data, (size_t)to->count * 4};
}

static void make_seed(const tpi_step *step, int64_t batch, uint32_t random[4]) {
    const uint32_t key[2] = {(uint32_t)step->options.seed, (uint32_t)(step->options.seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)step->attempts, (uint32_t)(step->attempts >> 32), (uint32_t)batch,
                                 1};
    tpi_philox(key, counter, random);
}

/* All inputs at once, in the order in which they were made. */
static tp_status write_inputs(const tpi_step *step, tpi_step_program *p, const tpi_batch *batch,
                              int64_t index, const float numbers[TPI_NUMBERS]) {
    const tpi_part_inputs *in = &p->inputs;
    uint32_t random[4];
    tpi_piece pieces[MOST_INPUTS];
    int n = 0;
    pieces[n++] = input_piece(in->ids, batch->ids);
    pieces[n++] = input_piece(in->numbers, numbers);
    if (in->pick) pieces[n++] = input_piece(in->pick, batch->pick);
    pieces[n++] = input_piece(in->targets, batch->targets);
    if (in->seed) make_seed(step, index, random), pieces[n++] = input_piece(in->seed, random);
    return tpi_tensor_write_pieces(p->block, pieces, n);
}

/* Runs batch number `index` of a step. values[0] is its loss sum, values[1] the norm where the step ends. */
static tp_status run_part(tpi_step *step, tpi_part which, const tpi_batch *batch, int64_t index,
                          const float numbers[TPI_NUMBERS], float values[2]) {
    tpi_step_program *p;
    tp_tensor *result;
    TPI_TRY(find_program(step, which, batch, &p));
    TPI_TRY(write_inputs(step, p, batch, index, numbers));
    TPI_TRY(tp_program_run(p->program, &result));
    tp_status status =
        tp_tensor_read(result, TP_F32, values, (size_t)tp_tensor_count(result) * sizeof *values);
    tp_tensor_release(result);
    return status;
}

static tpi_part part_of(int64_t batch, int64_t count) {
    if (count == 1) return TPI_PART_ONLY;
    if (batch == 0) return TPI_PART_FIRST;
    return batch + 1 == count ? TPI_PART_LAST : TPI_PART_MIDDLE;
}

tp_status tpi_step_run(tpi_step *step, const tpi_batch *batches, int64_t count, double rate,
                       tpi_step_result *result) {
    const tpi_step_options *options = &step->options;
    const double t = (double)step->updates + 1.0;
    float numbers[TPI_NUMBERS] = {[TPI_RATE] = (float)rate,
                                  [TPI_CORRECTION_1] = (float)(1.0 - pow(options->beta1, t)),
                                  [TPI_CORRECTION_2] = (float)(1.0 - pow(options->beta2, t))};
    float values[2] = {0.0f, 0.0f};
    int64_t tokens = 0;
    double loss_sum = 0;
    for (int64_t i = 0; i < count; i++) tokens += batches[i].tokens;
    if (tokens == 0 || (count > 1 && !step->sums))
        return tpi_fail(TP_EINVAL, "step: %lld batches with %lld trained tokens", (long long)count,
                        (long long)tokens);
    numbers[TPI_TOKENS] = (float)tokens;
    for (int64_t i = 0; i < count; i++) {
        numbers[TPI_LOSS_SUM] = (float)loss_sum;
        TPI_TRY(run_part(step, part_of(i, count), &batches[i], i, numbers, values));
        loss_sum += (double)values[0];
    }
    step->attempts++;
    *result = (tpi_step_result){loss_sum / (double)tokens, tokens, (double)values[1], false};
    result->skipped = !isfinite((float)loss_sum) || !isfinite(values[1]);
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
    const float numbers[TPI_NUMBERS] = {0};
    float values[2];
    TPI_TRY(run_part(step, TPI_PART_LOSS, batch, 0, numbers, values));
    *sum = (double)values[0];
    return TP_OK;
}

tp_status tpi_step_memory(tpi_step *step, tpi_part which, const tpi_batch *batch, uint64_t *bytes) {
    tpi_step_program *program;
    TPI_TRY(create_program(step, which, batch, &program));
    *bytes = tp_program_memory(program->program);
    destroy_program(program);
    return TP_OK;
}
