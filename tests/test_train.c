/* Steps and runs: agreement with PyTorch and PEFT, accumulation, what is not finite, and that a run which was
 * interrupted, killed or starved of memory goes on to the same numbers. */
#include "model_helpers.h"

#include "core/tensor.h"
#include "io/file.h"
#include "taper/tokenizer.h"
#include "train/trainer.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* Fontconfig, which draws the plot's text, keeps its caches to the end of the process. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libfontconfig\n";
}

#define WICK TAPER_TEST_DATA "/../models/taper-wick/"

/* ---- golden runs ---- */

typedef struct golden_run {
    tpi_safetensors *batches, *run;
    tp_context *ctx;
    tp_model *model;
    tp_adapter *adapter;
    tpi_step *step;
} golden_run;

static tpi_safetensors *open_tensors(const char *format, const char *model, const char *name) {
    char path[512];
    tpi_safetensors *st;
    snprintf(path, sizeof path, format, model, name);
    must(tpi_safetensors_open(path, &st));
    return st;
}

static golden_run open_run(const char *model, const char *run) {
    golden_run g = {.ctx = make_context()};
    char path[512];
    bool full = strcmp(run, "full") == 0;
    g.batches = open_tensors(GOLDEN "%s/train/%s.safetensors", model, "batches");
    g.run = open_tensors(GOLDEN "%s/train/%s.safetensors", model, run);
    tp_model_options options = TP_MODEL_OPTIONS_INIT;
    options.trainable = full;
    snprintf(path, sizeof path, GOLDEN "%s", model);
    must(tp_model_load(&g.model, tp_device_cpu(g.ctx), path, &options));
    snprintf(path, sizeof path, GOLDEN "%s/train/adapter-init", model);
    if (!full) must(tp_adapter_load(&g.adapter, g.model, path));
    const tpi_step_options step = {.model = g.model,
                                   .adapter = g.adapter,
                                   .beta1 = 0.9,
                                   .beta2 = 0.999,
                                   .eps = 1e-8,
                                   .weight_decay = 0.01,
                                   .clip = 1.0,
                                   .accumulate = true};
    must(tpi_step_create(&g.step, &step));
    return g;
}

static void close_run(golden_run *g) {
    tpi_step_destroy(g->step);
    tp_adapter_destroy(g->adapter);
    tp_model_destroy(g->model);
    tp_context_destroy(g->ctx);
    tpi_safetensors_release(g->batches);
    tpi_safetensors_release(g->run);
}

/* Rows [from, to) of batch `number`, labels moved to the positions that predict them. Free with
 * tpi_batch_free. */
static tpi_batch golden_batch(const golden_run *g, int number, int64_t from, int64_t to) {
    char name[32];
    const tpi_st_tensor *ids, *labels;
    snprintf(name, sizeof name, "%02d.ids", number);
    must(tpi_safetensors_get(g->batches, name, &ids));
    snprintf(name, sizeof name, "%02d.labels", number);
    must(tpi_safetensors_get(g->batches, name, &labels));
    tpi_batch batch = {.rows = to - from, .length = ids->shape[1]};
    size_t cells = (size_t)(batch.rows * batch.length), skip = (size_t)(from * batch.length);
    batch.ids = tpi_calloc(cells, sizeof *batch.ids);
    batch.targets = tpi_calloc(cells, sizeof *batch.targets);
    memcpy(batch.ids, (const int32_t *)ids->data + skip, cells * sizeof *batch.ids);
    for (size_t i = 0; i < cells; i++) {
        bool last = (int64_t)(i % (size_t)batch.length) == batch.length - 1;
        if (last)
            batch.targets[i] = TPI_IGNORE;
        else
            memcpy(&batch.targets[i], (const int32_t *)labels->data + skip + i + 1, sizeof batch.targets[i]);
        batch.tokens += batch.targets[i] != TPI_IGNORE;
    }
    return batch;
}

static const tpi_st_tensor *of_run(const golden_run *g, const char *prefix, const char *name) {
    char full[256];
    const tpi_st_tensor *t;
    snprintf(full, sizeof full, "%s%s", prefix, name);
    must(tpi_safetensors_get(g->run, full, &t));
    return t;
}

static void expect_final(const golden_run *g, double tolerance) {
    for (int i = 0; i < g->step->count; i++) {
        const tpi_st_tensor *wanted = of_run(g, "final.", g->step->parameters[i].name);
        const tp_tensor *got = g->step->parameters[i].tensor;
        cr_assert_eq((size_t)tp_tensor_count(got) * sizeof(float), wanted->bytes);
        float *values = read_f32(got);
        double difference = max_difference(values, wanted->data, (size_t)tp_tensor_count(got));
        cr_expect_lt(difference, tolerance, "%s: %g", g->step->parameters[i].name, difference);
        free(values);
    }
}

/* Runs all steps, each cut into batches of `rows` rows. */
static void expect_golden(const char *model, const char *run, int64_t rows) {
    golden_run g = open_run(model, run);
    const tpi_st_tensor *losses = of_run(&g, "", "loss"), *norms = of_run(&g, "", "grad_norm");
    const float *rates = of_run(&g, "", "lr")->data;
    double worst = 0.0;
    cr_assert_geq(losses->shape[0], 10);
    for (int s = 0; s < losses->shape[0]; s++) {
        tpi_batch batches[3];
        tpi_step_result result;
        int64_t count = 0;
        for (int64_t at = 0; at < 3; at += rows) batches[count++] = golden_batch(&g, s, at, at + rows);
        must(tpi_step_run(g.step, batches, count, (double)rates[s], &result));
        double loss = (double)((const float *)losses->data)[s],
               norm = (double)((const float *)norms->data)[s];
        worst = fmax(worst, fabs(result.loss - loss) / loss);
        cr_expect_not(result.skipped);
        cr_expect(fabs(result.loss - loss) <= 1e-4 * loss, "step %d: loss %.8g, expected %.8g", s,
                  result.loss, loss);
        cr_expect(fabs(result.grad_norm - norm) <= 1e-3 * norm, "step %d: norm %.8g, expected %.8g", s,
                  result.grad_norm, norm);
        while (count) tpi_batch_free(&batches[--count]);
    }
    cr_expect_lt(worst, 1e-5, "relative error of a loss: %g", worst);
    cr_expect_eq(g.step->updates, losses->shape[0]);
    expect_final(&g, 1e-4);
    close_run(&g);
}

Test(golden, lora_steps_agree_with_peft) {
    expect_golden("llama", "lora-constant", 3);
    expect_golden("llama", "lora-cosine", 3);
    expect_golden("qwen2", "lora-constant", 3);
    expect_golden("qwen2", "lora-cosine", 3);
}

Test(golden, full_steps_agree_with_torch) {
    expect_golden("llama", "full", 3);
}

Test(golden, accumulated_steps_agree_too) {
    expect_golden("llama", "lora-cosine", 1);
    expect_golden("llama", "full", 1);
}

/* ---- one step ---- */

Test(step, picked_positions_and_recompute_change_nothing) {
    double losses[3], norms[3];
    for (int variant = 0; variant < 3; variant++) {
        golden_run g = open_run("llama", "lora-constant");
        tpi_batch batch = golden_batch(&g, 0, 0, 3);
        tpi_step_result result = {0};
        g.step->options.recompute = variant == 1;
        if (variant == 2) { /* the same targets as a list of positions, with two ignored ones */
            batch.pick = tpi_calloc((size_t)batch.tokens + 2, sizeof *batch.pick);
            int64_t cells = batch.rows * batch.length;
            for (int32_t cell = 0; cell < cells; cell++) {
                if (batch.targets[cell] == TPI_IGNORE) continue;
                batch.targets[batch.picked] = batch.targets[cell];
                batch.pick[batch.picked++] = cell;
            }
            cr_assert_leq(batch.picked + 2, cells);
            batch.targets[batch.picked++] = TPI_IGNORE;
            batch.targets[batch.picked++] = TPI_IGNORE;
        }
        for (int s = 0; s < 2; s++) must(tpi_step_run(g.step, &batch, 1, 1e-2, &result));
        losses[variant] = result.loss;
        norms[variant] = result.grad_norm;
        tpi_batch_free(&batch);
        close_run(&g);
    }
    for (int variant = 1; variant < 3; variant++) {
        cr_expect(fabs(losses[variant] - losses[0]) < 1e-6 * losses[0], "%.9g, %.9g", losses[variant],
                  losses[0]);
        cr_expect(fabs(norms[variant] - norms[0]) < 1e-5 * norms[0], "%.9g, %.9g", norms[variant], norms[0]);
    }
}

/* All parameters and moments, one behind the other. */
static float *state_of(const tpi_step *step, size_t *count) {
    *count = 0;
    for (int i = 0; i < step->count; i++) *count += 3 * (size_t)tp_tensor_count(step->parameters[i].tensor);
    float *all = malloc(*count * sizeof *all), *at = all;
    for (int i = 0; i < step->count; i++) {
        const tp_tensor *const tensors[] = {step->parameters[i].tensor, step->m[i], step->v[i]};
        size_t bytes = (size_t)tp_tensor_count(tensors[0]) * sizeof(float);
        for (int k = 0; k < 3; k++, at += bytes / sizeof(float))
            must(tp_tensor_read(tensors[k], TP_F32, at, bytes));
    }
    return all;
}

Test(step, what_is_not_finite_changes_nothing) {
    static const float poison[] = {NAN, INFINITY, 3e38f};
    for (int64_t rows = 1; rows <= 3; rows += 2) {
        for (size_t p = 0; p < sizeof poison / sizeof *poison; p++) {
            golden_run g = open_run("llama", "lora-constant");
            tpi_batch batches[3];
            int64_t parts = 0;
            tpi_step_result result;
            size_t count, bytes = (size_t)tp_tensor_count(g.step->parameters[0].tensor) * sizeof(float);
            for (int64_t at = 0; at < 3; at += rows) batches[parts++] = golden_batch(&g, 0, at, at + rows);
            must(tpi_step_run(g.step, batches, parts, 1e-2, &result));
            float *values = read_f32(g.step->parameters[0].tensor), *good = malloc(bytes);
            memcpy(good, values, bytes);
            for (size_t i = 0; i < bytes / sizeof(float); i++) values[i] = poison[p];
            must(tp_tensor_write(g.step->parameters[0].tensor, values, bytes));
            float *before = state_of(g.step, &count);
            must(tpi_step_run(g.step, batches, parts, 1e-2, &result));
            float *after = state_of(g.step, &count);
            cr_expect(result.skipped, "%g: loss %g norm %g", (double)poison[p], result.loss,
                      result.grad_norm);
            cr_expect_arr_eq(before, after, count * sizeof *after);
            cr_expect_eq(g.step->updates, 1);
            must(tp_tensor_write(g.step->parameters[0].tensor, good, bytes));
            must(tpi_step_run(g.step, batches, parts, 1e-2, &result));
            cr_expect(!result.skipped && g.step->updates == 2);
            free(values), free(good), free(before), free(after);
            while (parts) tpi_batch_free(&batches[--parts]);
            close_run(&g);
        }
    }
}

/* ---- runs ---- */

static char root[] = "/tmp/taper-train-XXXXXX";
static char paths[8][640];

static const char *in_root(const char *name) {
    static int turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static void put_text(const char *path, const char *text) {
    must(tpi_file_write(path, text, strlen(text)));
}

static const char *const config = "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
                                  "\"vocab_size\": 4096, \"hidden_size\": 12,"
                                  " \"intermediate_size\": 20, \"num_hidden_layers\": 2, "
                                  "\"num_attention_heads\": 2, \"num_key_value_heads\": 1,"
                                  " \"head_dim\": 6, \"max_position_embeddings\": 64, \"rms_norm_eps\": "
                                  "1e-5, \"tie_word_embeddings\": true,"
                                  " \"hidden_act\": \"silu\", \"eos_token_id\": 4093}";

static void copy_file(const char *from, const char *to) {
    char *data;
    size_t size;
    must(tpi_file_read(from, 1 << 24, &data, &size));
    must(tpi_file_write(to, data, size));
    tpi_free(data);
}

static void write_rows(const char *path, int rows, int seed) {
    static const char *const words[] = {"light", "wax",   "flame",  "wick",
                                        "night", "table", "letter", "window"};
    char text[8192] = "", row[256];
    for (int i = 0; i < rows; i++) {
        int k = i * 5 + seed;
        snprintf(row, sizeof row, "{\"prompt\": \"the %s and\", \"completion\": \" the %s%s of the %s\"}\n",
                 words[k % 8], words[(k + 1) % 8], i % 3 ? "" : " by the long and narrow side",
                 words[(k / 8) % 8]);
        strcat(text, row);
    }
    put_text(path, text);
}

/* A directory with a model without weights, one with, and data. No context outlives this: tests fork. */
static void set_up(void) {
    cr_assert(mkdtemp(root));
    must(tpi_dir_create(in_root("start")));
    must(tpi_dir_create(in_root("data")));
    put_text(in_root("start/config.json"), config);
    copy_file(WICK "tokenizer.json", in_root("start/tokenizer.json"));
    copy_file(WICK "tokenizer_config.json", in_root("start/tokenizer_config.json"));
    write_rows(in_root("data/train.jsonl"), 22, 0);
    write_rows(in_root("data/valid.jsonl"), 6, 3);
    tp_context *ctx = make_context();
    tp_model *model;
    must(tp_model_create_random(&model, tp_device_cpu(ctx), in_root("start"), 1));
    must(tp_model_save(model, in_root("model"), NULL));
    tp_model_destroy(model);
    tp_context_destroy(ctx);
}

static void tear_down(void) {
    must(tpi_dir_remove(root));
}

TestSuite(run, .init = set_up, .fini = tear_down);

#define MAX_STEPS 64

/* What a run said, and at which step to stop it. */
typedef struct witness {
    double losses[MAX_STEPS], valid[MAX_STEPS];
    int steps, validations, skipped, saved;
    int64_t stop_at, kill_at;
    tp_trainer *trainer;
} witness;

static void on_event(void *user, const tp_train_record *record) {
    witness *w = user;
    cr_assert_lt(record->iter, MAX_STEPS);
    switch (record->event) {
    case TP_TRAIN_STEP:
        w->losses[record->iter] = record->loss;
        w->steps++;
        if (w->stop_at && record->iter >= w->stop_at) tp_trainer_stop(w->trainer);
        if (w->kill_at && record->iter >= w->kill_at) raise(SIGKILL);
        break;
    case TP_TRAIN_VALIDATION:
        w->valid[record->iter] = record->loss;
        w->validations++;
        break;
    case TP_TRAIN_SKIPPED:
        w->skipped++;
        break;
    case TP_TRAIN_SAVED:
        w->saved++;
        break;
    case TP_TRAIN_REPORT:
        break;
    }
}

/* Options with all that a state must carry: accumulation, dropout, epochs, uneven steps. Their paths live
 * until the next call. */
static tp_train_options run_options(tp_train_method method, const char *out) {
    static char model[640], data[640], output[640];
    snprintf(model, sizeof model, "%s", in_root(method == TP_TRAIN_FULL ? "start" : "model"));
    snprintf(data, sizeof data, "%s", in_root("data"));
    snprintf(output, sizeof output, "%s", out);
    tp_train_options options = TP_TRAIN_OPTIONS_INIT;
    options.model = model;
    options.data = data;
    options.out = output;
    options.method = method;
    options.rank = 3;
    options.dropout = method == TP_TRAIN_FULL ? 0.0 : 0.1;
    options.iters = 12;
    options.batch_size = 2;
    options.grad_accum = 2;
    options.max_seq = 64;
    options.lr = 2e-2;
    options.eval_every = 4;
    options.save_every = 3;
    options.log_every = 5;
    options.on_event = on_event;
    return options;
}

static tp_status run_in(tp_context *ctx, const tp_train_options *options, witness *w, tp_trainer_info *info) {
    tp_trainer *trainer;
    tp_train_options filled = *options;
    filled.user = w;
    TPI_TRY(tp_trainer_create(&trainer, tp_device_cpu(ctx), &filled));
    w->trainer = trainer;
    tp_status status = tp_trainer_run(trainer);
    if (info) tp_trainer_get_info(trainer, info);
    tp_trainer_destroy(trainer);
    return status;
}

static tp_status run(const tp_train_options *options, witness *w, tp_trainer_info *info) {
    tp_context *ctx = make_context();
    tp_status status = run_in(ctx, options, w, info);
    tp_context_destroy(ctx);
    return status;
}

static size_t line_count(const char *path) {
    char *data;
    size_t size, lines = 0;
    must(tpi_file_read(path, 1 << 24, &data, &size));
    for (size_t i = 0; i < size; i++) lines += data[i] == '\n';
    tpi_free(data);
    return lines;
}

static void expect_same_file(const char *a, const char *b) {
    char *x, *y;
    size_t x_size, y_size;
    must(tpi_file_read(a, 1 << 26, &x, &x_size));
    must(tpi_file_read(b, 1 << 26, &y, &y_size));
    cr_expect(x_size == y_size && memcmp(x, y, x_size) == 0, "%s and %s differ", a, b);
    tpi_free(x);
    tpi_free(y);
}

static const char *weights_of(tp_train_method method) {
    return method == TP_TRAIN_FULL ? "model.safetensors" : "adapter_model.safetensors";
}

static void expect_same_weights(tp_train_method method, const char *a, const char *b) {
    char left[640], right[640];
    snprintf(left, sizeof left, "%s/%s", a, weights_of(method));
    snprintf(right, sizeof right, "%s/%s", b, weights_of(method));
    expect_same_file(left, right);
}

Test(run, lora_learns_and_leaves_what_it_promises) {
    static const char *const files[] = {"adapter_config.json",
                                        "adapter_model.safetensors",
                                        "best",
                                        "taper.json",
                                        "loss.svg",
                                        "loss.png",
                                        "checkpoints/step-000012/state.json"};
    witness w = {0};
    tp_trainer_info info;
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.keep = 2;
    must(run(&options, &w, &info));
    cr_expect(w.steps == 12 && w.validations == 4 && w.saved == 4 && w.skipped == 0);
    cr_expect(info.rows == 22 && info.valid_rows == 6 && info.iters_per_epoch == 6 && info.iter == 12);
    cr_expect_float_eq(info.first_valid_loss, log(4096.0), 0.1);
    cr_expect_lt(info.last_valid_loss, info.first_valid_loss);
    cr_expect_leq(info.best_valid_loss, info.last_valid_loss);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[512];
        snprintf(path, sizeof path, "out/%s", files[i]);
        cr_expect(tpi_path_exists(in_root(path)), "%s", path);
    }
    cr_expect_not(tpi_path_exists(in_root("out/checkpoints/step-000006")), "only the last two are kept");
    cr_expect(tpi_path_exists(in_root("out/checkpoints/step-000009")));
    cr_expect_eq(line_count(in_root("out/log.jsonl")), 4 + 3);

    tp_context *ctx = make_context();
    tp_model *model;
    tp_adapter *adapter;
    must(tp_model_load(&model, tp_device_cpu(ctx), in_root("model"), NULL));
    must(tp_adapter_load(&adapter, model, in_root("out")));
    tp_adapter_destroy(adapter);
    must(tp_adapter_load(&adapter, model, in_root("out/best")));
    tp_adapter_destroy(adapter);
    tp_model_destroy(model);
    tp_context_destroy(ctx);
}

Test(run, full_pretrains_packed_text_from_random_weights) {
    witness w = {0};
    tp_trainer_info info;
    tp_train_options options = run_options(TP_TRAIN_FULL, in_root("out"));
    options.pack = true;
    options.loss = TP_LOSS_ALL;
    options.max_seq = 16;
    options.dtype = TP_BF16;
    must(run(&options, &w, &info));
    cr_expect_eq(info.trained_parameters, info.parameters);
    cr_expect_lt(info.last_valid_loss, info.first_valid_loss - 0.5);
    cr_expect_eq(info.longest, 17);
    tpi_safetensors *st;
    must(tpi_safetensors_open(in_root("out"), &st));
    for (size_t i = 0; i < tpi_safetensors_count(st); i++)
        cr_expect_eq(tpi_safetensors_at(st, i)->dtype, TPI_ST_BF16, "%s", tpi_safetensors_at(st, i)->name);
    tpi_safetensors_release(st);
    tp_context *ctx = make_context();
    tp_model *model;
    must(tp_model_load(&model, tp_device_cpu(ctx), in_root("out"), NULL));
    tp_model_destroy(model);
    tp_context_destroy(ctx);
    cr_expect(tpi_path_exists(in_root("out/tokenizer.json")));
}

Test(run, eight_times_one_equals_one_times_eight) {
    witness many = {0}, one = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("many"));
    options.dropout = 0.0;
    options.batch_size = 1;
    options.grad_accum = 8;
    must(run(&options, &many, NULL));
    options.out = in_root("one");
    options.batch_size = 8;
    options.grad_accum = 1;
    must(run(&options, &one, NULL));
    for (int i = 1; i <= 12; i++)
        cr_expect(fabs(many.losses[i] - one.losses[i]) < 1e-4 * one.losses[i], "step %d: %.8g, %.8g", i,
                  many.losses[i], one.losses[i]);
}

/* What lives, at step 20 and at every step from there on. */
typedef struct footprint {
    tp_context *ctx;
    int64_t allocations;
    uint64_t tensors, bytes;
} footprint;

static void compare_footprint(void *user, const tp_train_record *record) {
    footprint *first = user;
    tp_context_stats stats;
    if (record->event != TP_TRAIN_STEP || record->iter < 20) return;
    tp_context_get_stats(first->ctx, &stats);
    if (record->iter == 20)
        *first = (footprint){first->ctx, tpi_alloc_live(), stats.tensors, stats.memory_now};
    cr_expect_eq(tpi_alloc_live(), first->allocations, "step %lld", (long long)record->iter);
    cr_expect_eq(stats.tensors, first->tensors, "step %lld", (long long)record->iter);
    cr_expect_leq(stats.memory_now, first->bytes, "step %lld", (long long)record->iter);
}

Test(run, memory_stays_flat_over_many_steps) {
    footprint first = {.ctx = make_context()};
    tp_trainer *trainer;
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.iters = 300;
    options.save_every = 0;
    options.eval_every = 0;
    options.on_event = compare_footprint;
    options.user = &first;
    must(tp_trainer_create(&trainer, tp_device_cpu(first.ctx), &options));
    must(tp_trainer_run(trainer));
    tp_trainer_destroy(trainer);
    tp_context_destroy(first.ctx);
}

/* ---- resuming ---- */

static void expect_same_from(const witness *a, const witness *b, int first) {
    for (int i = first; i <= 12; i++) {
        cr_expect(memcmp(&a->losses[i], &b->losses[i], sizeof(double)) == 0, "step %d: %.17g, %.17g", i,
                  a->losses[i], b->losses[i]);
        if (i % 4 == 0)
            cr_expect(memcmp(&a->valid[i], &b->valid[i], sizeof(double)) == 0, "validation at %d", i);
    }
}

static void expect_interrupted_run_to_agree(tp_train_method method) {
    witness whole = {0}, first = {.stop_at = 7}, second = {0};
    tp_trainer_info whole_info, second_info;
    tp_train_options options = run_options(method, in_root("whole"));
    must(run(&options, &whole, &whole_info));
    options = run_options(method, in_root("cut"));
    must_fail(run(&options, &first, NULL), TP_EINTERRUPTED, "step-000007");
    cr_expect_eq(first.steps, 7);
    options.resume = "auto";
    must(run(&options, &second, &second_info));
    cr_expect_eq(second.steps, 5);
    expect_same_from(&whole, &second, 8);
    expect_same_weights(method, in_root("whole"), in_root("cut"));
    expect_same_weights(method, in_root("whole/best"), in_root("cut/best"));
    cr_expect_eq(line_count(in_root("whole/log.jsonl")), line_count(in_root("cut/log.jsonl")));
    cr_expect_eq(whole_info.best_iter, second_info.best_iter);
    cr_expect_eq(whole_info.first_valid_loss, second_info.first_valid_loss);
}

Test(run, interrupted_lora_resumes_to_the_same_bits) {
    expect_interrupted_run_to_agree(TP_TRAIN_LORA);
}

Test(run, interrupted_full_resumes_to_the_same_bits) {
    expect_interrupted_run_to_agree(TP_TRAIN_FULL);
}

Test(run, a_finished_run_resumes_to_its_end) {
    witness w = {0}, again = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    must(run(&options, &w, NULL));
    options.resume = in_root("out/checkpoints/step-000012");
    must(run(&options, &again, NULL));
    cr_expect(again.steps == 0 && again.validations == 0);
    options.resume = in_root("out"); /* an output directory stands for its newest checkpoint */
    must(run(&options, &again, NULL));
    cr_expect_eq(again.steps, 0);
}

/* Runs in a process of its own and kills it: at a step, or after so many microseconds. True if it ended by
 * itself. */
static bool run_and_kill(int64_t kill_at, useconds_t delay) {
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        witness w = {.kill_at = kill_at};
        tp_train_options options = run_options(TP_TRAIN_LORA, in_root("killed"));
        options.save_every = 1;
        options.keep = 1;
        options.resume = "auto";
        _exit(run(&options, &w, NULL) == TP_OK ? 0 : 1);
    }
    if (delay) {
        usleep(delay);
        kill(child, SIGKILL);
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, "the run failed by itself");
    return !WIFSIGNALED(status);
}

Test(run, killed_at_any_moment_resumes_to_the_same_bits, .timeout = 240) {
    witness whole = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("whole"));
    must(run(&options, &whole, NULL));
    for (int64_t step = 1; step <= 4; step++) cr_expect_not(run_and_kill(step, 0));
    bool done = false;
    for (useconds_t delay = 30000; !done; delay += 9000) {
        cr_assert_lt(delay, 20000000u);
        done = run_and_kill(0, delay);
    }
    expect_same_weights(TP_TRAIN_LORA, in_root("whole"), in_root("killed"));
    char *whole_log, *killed_log;
    size_t size;
    must(tpi_file_read(in_root("whole/log.jsonl"), 1 << 20, &whole_log, &size));
    must(tpi_file_read(in_root("killed/log.jsonl"), 1 << 20, &killed_log, &size));
    const char *a = whole_log, *b = killed_log;
    int records = 0;
    while ((a = strstr(a, "\"loss\": ")) && (b = strstr(b, "\"loss\": "))) { /* the text holds every bit */
        size_t length = strcspn(a, ",");
        cr_expect(strncmp(a, b, length + 1) == 0, "%.*s, %.*s", (int)length, a, (int)length, b);
        a++, b++, records++;
    }
    cr_expect_eq(records, 7);
    tpi_free(whole_log);
    tpi_free(killed_log);
    char **names;
    size_t count;
    must(tpi_dir_list(in_root("killed/checkpoints"), &names, &count));
    cr_expect_eq(count, 1, "nothing half-written is left");
    tpi_dir_list_free(names, count);
}

static void flip_model(const char *directory) {
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    char *data;
    size_t size;
    must(tpi_file_read(path, 1 << 24, &data, &size));
    data[size - 2] ^= 1;
    must(tpi_file_write(path, data, size));
    tpi_free(data);
}

Test(run, a_checkpoint_of_another_run_is_refused_by_name) {
    witness w = {.stop_at = 4};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    must_fail(run(&options, &w, NULL), TP_EINTERRUPTED, "step-000004");
    w = (witness){0};
    must_fail(run(&options, &w, NULL), TP_EINVAL, "resume it, or give another output directory");
    options.resume = "auto";
    options.lr = 1e-3;
    must_fail(run(&options, &w, NULL), TP_EINVAL, "another lr: 0.02 there, 0.001 here");
    options.lr = 2e-2;
    options.rank = 4;
    must_fail(run(&options, &w, NULL), TP_EINVAL, "another rank: 3 there, 4 here");
    options.rank = 3;
    options.iters = 13;
    must_fail(run(&options, &w, NULL), TP_EINVAL, "another iters: 12 there, 13 here");
    options.iters = 12;
    write_rows(in_root("data/train.jsonl"), 22, 1);
    must_fail(run(&options, &w, NULL), TP_EINVAL, "other training data");
    write_rows(in_root("data/train.jsonl"), 22, 0);
    flip_model(in_root("model"));
    must_fail(run(&options, &w, NULL), TP_EINVAL, "another model or other weights");
    flip_model(in_root("model"));
    options.resume = in_root("nowhere");
    must_fail(run(&options, &w, NULL), TP_EIO, "nowhere");
    cr_expect_eq(w.steps, 0);
    options.resume = "auto";
    must(run(&options, &w, NULL));
}

Test(run, a_damaged_checkpoint_is_an_error) {
    witness w = {.stop_at = 4};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    must_fail(run(&options, &w, NULL), TP_EINTERRUPTED, "step-000004");
    w = (witness){0};
    options.resume = "auto";
    const char *tensors = in_root("out/checkpoints/step-000004/state.safetensors");
    char *data;
    size_t size;
    must(tpi_file_read(tensors, 1 << 24, &data, &size));
    must(tpi_file_write(tensors, data, size - 40));
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "state.safetensors");
    must(tpi_file_write(tensors, data, size));
    tpi_free(data);
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{\"format\": 1}");
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "options");
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{\"format\": 9}");
    must_fail(run(&options, &w, NULL), TP_EUNSUPPORTED, "format 9");
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{");
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "state.json:1:");
}

/* ---- ends ---- */

Test(run, five_steps_that_are_not_finite_end_it) {
    tp_context *ctx = make_context();
    witness w = {0};
    tp_trainer *trainer;
    tp_train_options options = run_options(TP_TRAIN_FULL, in_root("out"));
    options.user = &w;
    must(tp_trainer_create(&trainer, tp_device_cpu(ctx), &options));
    const float nan_value = NAN;
    tp_tensor *norm = trainer->step->parameters[trainer->step->count - 1].tensor;
    float *values = read_f32(norm);
    values[0] = nan_value;
    must(tp_tensor_write(norm, values, (size_t)tp_tensor_count(norm) * sizeof(float)));
    free(values);
    must_fail(tp_trainer_run(trainer), TP_ENONFINITE, "step 5: loss nan");
    cr_expect(w.skipped == 5 && w.saved == 0);
    must_fail(tp_trainer_run(trainer), TP_EINVAL, "has run");
    tp_trainer_destroy(trainer);
    tp_context_destroy(ctx);
}

Test(run, patience_ends_it_and_best_is_kept) {
    witness w = {0};
    tp_trainer_info info;
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.iters = 60;
    options.lr = 5.0; /* nothing is learned at this rate */
    options.eval_every = 1;
    options.patience = 3;
    must(run(&options, &w, &info));
    cr_expect(info.early_stop && info.iter < 60);
    cr_expect_eq(info.iter, (info.best_iter < 0 ? 0 : info.best_iter) + 3);
    cr_expect(tpi_path_exists(in_root("out/best/adapter_config.json")));
    cr_expect(tpi_path_exists(in_root("out/adapter_config.json")));
}

Test(run, a_step_beyond_the_limit_fails_before_it_runs) {
    tp_context *ctx;
    tp_trainer *trainer;
    uint64_t bytes;
    tp_context_options limits = TP_CONTEXT_OPTIONS_INIT;
    limits.memory_limit = 3 << 20;
    must(tp_context_create(&ctx, &limits));
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.batch_size = 20;
    options.loss = TP_LOSS_ALL;
    options.on_event = NULL;
    must(tp_trainer_create(&trainer, tp_device_cpu(ctx), &options));
    must_fail(tp_trainer_plan(trainer, &bytes), TP_ELIMIT, "limit");
    must_fail(tp_trainer_run(trainer), TP_ELIMIT, "limit");
    cr_expect_not(tpi_path_exists(in_root("out")));
    tp_trainer_destroy(trainer);
    tp_context_destroy(ctx);

    ctx = make_context();
    must(tp_trainer_create(&trainer, tp_device_cpu(ctx), &options));
    must(tp_trainer_plan(trainer, &bytes));
    cr_expect_gt(bytes, 3u << 20);
    cr_expect_not(tpi_path_exists(in_root("out")), "planning writes nothing");
    tp_trainer_destroy(trainer);
    tp_context_destroy(ctx);
}

Test(run, bad_input_is_one_line) {
    witness w = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.data = in_root("start"); /* has no train.jsonl */
    must_fail(run(&options, &w, NULL), TP_EIO, "no train.jsonl");
    options = run_options(TP_TRAIN_LORA, in_root("out"));
    const char *const targets[] = {"q_prj"};
    options.targets = targets;
    options.target_count = 1;
    must_fail(run(&options, &w, NULL), TP_EINVAL, "q_prj");
    options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.layers = "3-9";
    must_fail(run(&options, &w, NULL), TP_EINVAL, "layers");
    options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.model = in_root("start"); /* no weights */
    cr_expect_neq(run(&options, &w, NULL), TP_OK);
    options = run_options(TP_TRAIN_LORA, in_root("start/config.json")); /* a file in the way */
    must_fail(run(&options, &w, NULL), TP_EIO, "config.json");
    cr_expect_eq(w.steps, 0);
}

/* ---- faults ---- */

/* Every allocation of a short run fails once; the numbers are thinned out, as there are thousands. */
Test(run, allocations_may_fail, .timeout = 300) {
    witness w = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("faults"));
    options.iters = 2;
    options.save_every = 1;
    options.log_every = 1;
    options.resume = "auto";
    for (int64_t n = 1;; n += 1 + n / 6) {
        must(tpi_dir_remove(in_root("faults")));
        tp_context *ctx = make_context();
        tpi_alloc_fail_at(n);
        tp_status status = run_in(ctx, &options, &w, NULL);
        tpi_alloc_fail_at(0);
        tp_context_stats stats;
        tp_context_get_stats(ctx, &stats);
        cr_assert_eq(stats.tensors, 0, "allocation %lld leaves tensors", (long long)n);
        cr_assert(status == TP_OK || status == TP_ENOMEM, "allocation %lld: %s", (long long)n,
                  tp_error_message());
        tp_context_destroy(ctx);
        if (status == TP_OK) {
            cr_expect_gt(n, 1000);
            return;
        }
    }
}
