/* Works of whole models: the key `model` names a directory, `adapter` a PEFT one. */
#include "clock.h"
#include "contestant.h"

#include "train/step.h"

#include <stdlib.h>
#include <string.h>

typedef struct model_state {
    npy ids;
    tp_model *model;
    tp_adapter *adapter;
    tpi_step *step;
    tpi_batch batch;
    tp_generator *generator;
} model_state;

static void open_model(contest *c) {
    model_state *s = c->state = calloc(1, sizeof *s);
    if (!s) exit(1);
    s->ids = host_input(c, "ids");
    double start = clock_seconds();
    must(tp_model_load(&s->model, c->device, key_text(c, "model", "."), NULL));
    must(tp_device_synchronize(c->device));
    c->load_seconds = clock_seconds() - start;
}

static void close_model(contest *c) {
    model_state *s = c->state;
    tp_generator_destroy(s->generator);
    tpi_step_destroy(s->step);
    tpi_batch_free(&s->batch);
    tp_adapter_destroy(s->adapter);
    tp_model_destroy(s->model);
    npy_free(&s->ids);
    free(s);
}

static void give(results *out, const char *name, tp_tensor *tensor) {
    out->names[0] = name;
    out->tensors[0] = tensor;
    out->count = 1;
}

/* ---- a training step: ids i32 [rows, length + 1]; each position predicts the next ---- */

static void open_training(contest *c) {
    open_model(c);
    model_state *s = c->state;
    const int64_t rows = s->ids.shape[0], length = s->ids.shape[1] - 1;
    const size_t bytes = (size_t)length * sizeof(int32_t);
    must(tp_adapter_load(&s->adapter, s->model, key_text(c, "adapter", ".")));
    must(tpi_batch_make_full(&s->batch, rows, length));
    for (int64_t r = 0; r < rows; r++) {
        const int32_t *row = (const int32_t *)s->ids.data + r * (length + 1);
        memcpy(s->batch.ids + r * length, row, bytes);
        memcpy(s->batch.targets + r * length, row + 1, bytes);
    }
    const tpi_step_options options = {
        .model = s->model, .adapter = s->adapter, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    must(tpi_step_create(&s->step, &options));
}

static float train(contest *c) {
    model_state *s = c->state;
    tpi_step_result result;
    must(tpi_step_run(s->step, &s->batch, 1, 1e-3, &result));
    return (float)result.loss;
}

static double run_training(contest *c, int times) {
    double start = clock_seconds();
    for (int i = 0; i < times; i++) train(c);
    return (clock_seconds() - start) / times;
}

/* The losses of the first three steps. */
static void losses(contest *c, results *out) {
    const int64_t three = 3;
    float values[3];
    tp_tensor *tensor;
    for (int i = 0; i < 3; i++) values[i] = train(c);
    must(tp_tensor_from_data(tp_device_cpu(c->context), TP_F32, 1, &three, values, &tensor));
    give(out, "losses", tensor);
}

/* ---- generation: ids i32 [prompt] ---- */

static void open_generator(contest *c) {
    open_model(c);
    model_state *s = c->state;
    must(tp_generator_create(&s->generator, s->model, NULL, NULL, 0));
}

static tp_generate_stats generate(contest *c, int64_t tokens) {
    model_state *s = c->state;
    tp_generate_options options = TP_GENERATE_OPTIONS_INIT;
    tp_generate_stats stats;
    options.max_tokens = tokens;
    options.ignore_stop_ids = true;
    must(tp_generate_ids(s->generator, s->ids.data, (size_t)s->ids.count, &options, NULL, NULL, &stats));
    return stats;
}

/* Seconds from the prompt to its last token's logits. */
static double run_prompt(contest *c, int times) {
    double seconds = 0;
    for (int i = 0; i < times; i++) seconds += generate(c, 1).prompt_seconds;
    return seconds / times;
}

/* Seconds a token behind the prompt: the first of them costs no pass of the model. */
static double run_tokens(contest *c, int times) {
    const int64_t tokens = key_number(c, "tokens", 32);
    double seconds = 0;
    for (int i = 0; i < times; i++) seconds += generate(c, tokens).seconds;
    return seconds / times / (double)(tokens - 1);
}

/* The logits of the last of `count` ids behind the cache's first `start`. */
static tp_tensor *last_logits(contest *c, tp_kv_cache *cache, int32_t start, int64_t count) {
    const model_state *s = c->state;
    const int64_t grid[] = {1, count}, one = 1;
    const int32_t *ids = (const int32_t *)s->ids.data + start, row = (int32_t)count - 1;
    tp_tensor *out;
    tp_forward f = TP_FORWARD_INIT;
    f.tokens = tp_lazy_from_slice(c->graph, c->device, TP_I32, 2, grid, ids);
    f.start = tp_lazy_from_slice(c->graph, c->device, TP_I32, 1, &one, &start);
    f.rows = tp_lazy_from_slice(c->graph, c->device, TP_I32, 1, &one, &row);
    f.cache = cache;
    must(tp_lazy_eval(tp_model_forward_lazy(s->model, &f), &out));
    tp_graph_reset(c->graph);
    return out;
}

/* The last id's logits, computed behind a cache of the others: what a step of generation does. */
static void logits(contest *c, results *out) {
    const model_state *s = c->state;
    const int64_t count = s->ids.count;
    tp_kv_cache *cache;
    must(tp_kv_cache_create(&cache, s->model, 1, count));
    tp_tensor_release(last_logits(c, cache, 0, count - 1));
    give(out, "logits", last_logits(c, cache, (int32_t)count - 1, 1));
    tp_kv_cache_destroy(cache);
}

/* ---- loading: ids i32 [prompt] ---- */

/* Seconds from opening the files to the first token's logits. */
static double run_load(contest *c, int times) {
    double seconds = 0;
    for (int i = 0; i < times; i++) {
        double start = clock_seconds();
        open_generator(c);
        generate(c, 1);
        seconds += clock_seconds() - start;
        close_model(c);
    }
    return seconds / times;
}

static void loaded_logits(contest *c, results *out) {
    open_generator(c);
    logits(c, out);
    close_model(c);
}

const work model_works[] = {
    {.name = "train_step",
     .open = open_training,
     .run = run_training,
     .result = losses,
     .close = close_model},
    {.name = "prompt", .open = open_generator, .run = run_prompt, .result = logits, .close = close_model},
    {.name = "generate", .open = open_generator, .run = run_tokens, .result = logits, .close = close_model},
    {.name = "load", .run = run_load, .result = loaded_logits},
    {.name = NULL},
};
