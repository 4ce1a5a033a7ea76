/* Making a trainer: options, model, tokenizer, data, what is trained, in the order in which a mistake is
 * likely and cheap to find. */
#include "train/trainer.h"

#include "core/alloc.h"
#include "core/convert.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/tensor.h"
#include "io/file.h"
#include "models/model.h"

#include <math.h>
#include <string.h>

/* ---- the model ---- */

static tp_status has_weights(const char *directory, bool *out) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    *out = false;
    for (int i = 0; i < 2; i++) {
        char *path = tpi_path_join(directory, names[i]);
        if (!path) return TP_ENOMEM;
        *out = *out || tpi_path_exists(path);
        tpi_free(path);
    }
    return TP_OK;
}

static tp_status load_model(tp_trainer *t) {
    const tpi_train_options *o = &t->options;
    tp_model_options options = TP_MODEL_OPTIONS_INIT;
    options.trainable = o->method == TP_TRAIN_FULL;
    options.dtype = o->base_dtype;
    bool weights = true;
    if (options.trainable) TPI_TRY(has_weights(o->model, &weights));
    if (!weights) return tp_model_create_random(&t->model, t->device, o->model, o->seed);
    return tp_model_load(&t->model, t->device, o->model, &options);
}

#define SAMPLE ((int64_t)1024) /* elements of a tensor's beginning and end that its hash reads */

/* Mixes in elements `begin` ... begin + n - 1 rounded to bf16, so that a model has one hash whatever it is
 * held in. */
static tp_status hash_elements(const tp_tensor *tensor, int64_t begin, int64_t n, uint64_t *hash) {
    const tp_dtype dtype = tp_tensor_dtype(tensor);
    const size_t size = tp_dtype_size(dtype);
    float held[SAMPLE];
    uint16_t rounded[SAMPLE];
    TPI_TRY(tpi_tensor_peek(tensor, (size_t)begin * size, (size_t)n * size, held));
    for (int64_t i = 0; i < n; i++) tpi_store_f32(rounded, TP_BF16, i, tpi_load_f32(held, dtype, i));
    *hash = tpi_hash_bytes(*hash, rounded, (size_t)n * sizeof *rounded);
    return TP_OK;
}

/* Names, shapes and samples of the weights: enough to tell models apart without reading gigabytes. */
static tp_status hash_model(const tp_model *model, uint64_t *out) {
    int count;
    const tp_parameter *parameters = tp_model_parameters(model, &count);
    uint64_t hash = 0;
    for (int i = 0; i < count; i++) {
        const tp_tensor *tensor = parameters[i].tensor;
        const int64_t elements = tp_tensor_count(tensor), sample = elements < SAMPLE ? elements : SAMPLE;
        hash = tpi_hash_bytes(hash, parameters[i].name, strlen(parameters[i].name));
        hash =
            tpi_hash_bytes(hash, tp_tensor_shape(tensor), (size_t)tp_tensor_rank(tensor) * sizeof(int64_t));
        TPI_TRY(hash_elements(tensor, 0, sample, &hash));
        TPI_TRY(hash_elements(tensor, elements - sample, sample, &hash));
    }
    *out = hash;
    return TP_OK;
}

/* ---- the data ---- */

static tp_status load_split(tp_trainer *t, const char *split, int32_t end_id, tpi_dataset *out) {
    const tpi_train_options *o = &t->options;
    const tpi_dataset_options options = {.tokenizer = t->tokenizer,
                                         .end_id = end_id,
                                         .max_seq = o->max_seq,
                                         .overlong = o->overlong,
                                         .pack = o->pack,
                                         .loss = o->loss};
    char *path;
    TPI_TRY(tpi_dataset_path(o->data, split, &path));
    if (!path) return TP_OK;
    tp_status status = tpi_dataset_load(out, path, &options);
    tpi_free(path);
    return status;
}

static tp_status load_data(tp_trainer *t, const tp_model_info *model) {
    const tpi_train_options *o = &t->options;
    int stop_count;
    int32_t end_id;
    TPI_TRY(tp_tokenizer_load(o->model, &t->tokenizer));
    if (tp_tokenizer_vocab_size(t->tokenizer) > model->vocab_size)
        return tpi_fail(TP_EFORMAT, "%s: the tokenizer has %d ids, the model %lld", o->model,
                        tp_tokenizer_vocab_size(t->tokenizer), (long long)model->vocab_size);
    const int32_t *stop_ids = tp_model_stop_ids(t->model, &stop_count);
    TPI_TRY(tpi_end_token(o->model, t->tokenizer, stop_ids, stop_count, &end_id));
    TPI_TRY(load_split(t, "train", end_id, &t->train));
    if (t->train.row_count == 0) return tpi_fail(TP_EIO, "%s: no train.jsonl in it", o->data);
    t->train_hash = tpi_dataset_hash(&t->train);
    TPI_TRY(load_split(t, "valid", end_id, &t->valid));
    t->valid_hash = tpi_dataset_hash(&t->valid);
    return TP_OK;
}

/* ---- what is trained ---- */

static tp_status make_adapter(tp_trainer *t, const tp_model_info *model) {
    const tpi_train_options *o = &t->options;
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    options.rank = o->rank;
    options.alpha = o->alpha;
    options.dropout = o->dropout;
    options.rslora = o->rslora;
    options.targets = o->targets;
    options.target_count = o->target_count;
    options.exclude = o->exclude;
    options.exclude_count = o->exclude_count;
    options.seed = o->seed;
    TPI_TRY(tpi_train_layers(o->layers, model->layers, &options.first_layer, &options.end_layer));
    return tp_adapter_create(&t->adapter, t->model, &options);
}

static tp_status make_step(tp_trainer *t) {
    const tpi_train_options *o = &t->options;
    const tpi_step_options options = {.model = t->model,
                                      .adapter = t->adapter,
                                      .beta1 = o->beta1,
                                      .beta2 = o->beta2,
                                      .eps = 1e-8,
                                      .weight_decay = o->weight_decay,
                                      .clip = o->clip,
                                      .accumulate = o->grad_accum > 1,
                                      .dropout = t->adapter && o->dropout > 0.0,
                                      .recompute = o->recompute,
                                      .seed = o->seed};
    return tpi_step_create(&t->step, &options);
}

static tp_status make_order(tp_trainer *t) {
    tpi_train_options *o = &t->options;
    int64_t step_rows;
    if (__builtin_mul_overflow(o->batch_size, o->grad_accum, &step_rows) || step_rows > INT32_MAX)
        return tpi_fail(TP_EINVAL, "batch_size %lld times grad_accum %lld: too many rows a step",
                        (long long)o->batch_size, (long long)o->grad_accum);
    TPI_TRY(tpi_order_create(&t->order, &t->train, o->seed, step_rows));
    if (o->iters == 0 && __builtin_mul_overflow(o->epochs, tpi_order_steps(&t->order), &o->iters))
        return tpi_fail(TP_EINVAL, "epochs: %lld are too many", (long long)o->epochs);
    t->schedule = tpi_schedule_make(o->schedule, o->lr, o->warmup, o->iters);
    t->batches = tpi_calloc((size_t)o->grad_accum, sizeof *t->batches);
    return t->batches ? TP_OK : TP_ENOMEM;
}

static tp_status create(tp_trainer *t, const tp_train_options *options) {
    tp_model_info model;
    TPI_TRY(tpi_train_options_copy(&t->options, options));
    TPI_TRY(load_model(t));
    if (t->options.method == TP_TRAIN_FULL) TPI_TRY(tpi_model_check_target(t->model, t->options.out));
    tp_model_get_info(t->model, &model);
    if (model.max_positions >= 2 && t->options.max_seq > model.max_positions)
        t->options.max_seq = model.max_positions;
    TPI_TRY(load_data(t, &model));
    TPI_TRY(make_order(t));
    TPI_TRY(hash_model(t->model, &t->model_hash));
    if (t->options.method == TP_TRAIN_LORA) TPI_TRY(make_adapter(t, &model));
    return make_step(t);
}

tp_status tp_trainer_create(tp_trainer **out, tp_device *device, const tp_train_options *options) {
    *out = NULL;
    if (!device || !options)
        return tpi_fail(TP_EINVAL, "tp_trainer_create: device and options must not be NULL");
    tp_trainer *t = tpi_calloc(1, sizeof *t);
    if (!t) return TP_ENOMEM;
    t->device = device;
    t->last_saved = TPI_NEVER;
    t->lock = -1;
    t->state = (tpi_state){.last_validation = TPI_NEVER,
                           .best_iter = TPI_NEVER,
                           .first_valid = NAN,
                           .last_valid = NAN,
                           .best_valid = NAN};
    tp_status status = create(t, options);
    if (status != TP_OK)
        tp_trainer_destroy(t);
    else
        *out = t;
    return status;
}

void tp_trainer_destroy(tp_trainer *t) {
    if (!t) return;
    tpi_step_destroy(t->step);
    tp_adapter_destroy(t->adapter);
    tp_model_destroy(t->model);
    tp_tokenizer_release(t->tokenizer);
    tpi_order_free(&t->order);
    tpi_dataset_free(&t->train);
    tpi_dataset_free(&t->valid);
    tpi_log_close(&t->log);
    tpi_dir_unlock(t->lock);
    tpi_train_options_free(&t->options);
    tpi_free(t->batches);
    tpi_free(t->last_checkpoint);
    tpi_free(t);
}

/* ---- questions ---- */

static double gib(uint64_t bytes) {
    return (double)bytes / (double)(1 << 30);
}

/* Bytes that the largest batch of the data takes. */
static tp_status plan_batch(const tp_trainer *t, const tpi_dataset *data, tpi_part part, uint64_t *bytes) {
    tpi_batch batch;
    TPI_TRY(tpi_batch_make_full(&batch, tpi_trainer_batch_rows(t, data), data->longest));
    tp_status status = tpi_step_memory(t->step, part, &batch, bytes);
    tpi_batch_free(&batch);
    return status;
}

tp_status tp_trainer_plan(tp_trainer *t, uint64_t *bytes) {
    uint64_t step = 0, validation = 0, limit = tpi_memory_limit(t->device->memory);
    *bytes = 0;
    TPI_TRY(plan_batch(t, &t->train, t->step->sums ? TPI_PART_LAST : TPI_PART_ONLY, &step));
    if (t->valid.row_count) TPI_TRY(plan_batch(t, &t->valid, TPI_PART_LOSS, &validation));
    *bytes = tpi_memory_get_stats(t->device->memory).now + (step > validation ? step : validation);
    if (limit == 0 || *bytes <= limit) return TP_OK;
    return tpi_fail(TP_ELIMIT,
                    "a step needs %.2f GiB, limit %.2f GiB: a smaller batch_size or max_seq, or "
                    "recompute, needs less",
                    gib(*bytes), gib(limit));
}

void tp_trainer_stop(tp_trainer *t) {
    atomic_store(&t->stop, 1);
}

static uint64_t count_trained(const tpi_step *step) {
    uint64_t elements = 0;
    for (int i = 0; i < step->count; i++) elements += (uint64_t)tp_tensor_count(step->parameters[i].tensor);
    return elements;
}

static int64_t count_tokens(const tpi_dataset *data) {
    int64_t tokens = 0;
    for (size_t i = 0; i < data->row_count; i++) tokens += data->rows[i].length;
    return tokens;
}

void tp_trainer_get_info(const tp_trainer *t, tp_trainer_info *info) {
    *info = (tp_trainer_info){
        .rows = (int64_t)t->train.row_count,
        .tokens = count_tokens(&t->train),
        .trained_tokens = t->train.trained_tokens,
        .longest = t->train.longest,
        .valid_rows = (int64_t)t->valid.row_count,
        .dropped = t->train.dropped,
        .truncated = t->train.truncated,
        .split = t->train.split,
        .iters_per_epoch = tpi_order_steps(&t->order),
        .iters = t->options.iters,
        .parameters = tp_model_parameter_count(t->model),
        .trained_parameters = count_trained(t->step),
        .iter = t->state.iter,
        .skipped = t->state.skipped,
        .first_valid_loss = t->state.first_valid,
        .last_valid_loss = t->state.last_valid,
        .best_valid_loss = t->state.best_valid,
        .best_iter = t->state.best_iter,
        .early_stop = t->state.early_stop,
    };
}
