/* Whole runs: what they leave, when they end and what they refuse, and that a run which was interrupted,
 * killed or starved of memory goes on to the same numbers. */
#include "model_helpers.h"

#include "io/file.h"
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
    options.lr = 1e-3; /* AdamW divides by |gradient|: at a high rate it makes much of the last bits */
    options.batch_size = 1;
    options.grad_accum = 8;
    must(run(&options, &many, NULL));
    options.out = in_root("one");
    options.batch_size = 8;
    options.grad_accum = 1;
    must(run(&options, &one, NULL));
    for (int i = 1; i <= 12; i++)
        cr_expect(fabs(many.losses[i] - one.losses[i]) < 1e-5 * one.losses[i], "step %d: %.8g, %.8g", i,
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
    const char *state = in_root("out/checkpoints/step-000004/state.json");
    must(tpi_file_read(state, 1 << 20, &data, &size));
    static const char *const keys[] = {"iter", "updates", "epoch_step", "epoch", "tokens", "skipped"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char key[32], wanted[96];
        snprintf(key, sizeof key, "\"%s\": ", keys[i]);
        const char *at = strstr(data, key);
        cr_assert_not_null(at, "%s", key);
        at += strlen(key);
        char *bad =
            tpi_asprintf("%.*s%s%s", (int)(at - data), data, i == 4 ? "-5" : "1000", at + strcspn(at, ",\n"));
        put_text(state, bad);
        snprintf(wanted, sizeof wanted, "state.json: %s is %s, expected 0 to", keys[i],
                 i == 4 ? "-5" : "1000");
        must_fail(run(&options, &w, NULL), TP_EFORMAT, i == 4 ? "tokens" : wanted);
        tpi_free(bad);
    }
    tpi_free(data);
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{\"format\": 1}");
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "options");
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{\"format\": 9}");
    must_fail(run(&options, &w, NULL), TP_EUNSUPPORTED, "format 9");
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{");
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "state.json:1:");
}

/* ---- ends ---- */

/* Puts `value` into the first element of the last parameter trained. */
static void poison(tp_trainer *trainer, float value) {
    tp_tensor *last = trainer->step->parameters[trainer->step->count - 1].tensor;
    float *values = read_f32(last);
    values[0] = value;
    must(tp_tensor_write(last, values, (size_t)tp_tensor_count(last) * sizeof(float)));
    free(values);
}

/* Leaves no memory for running the last skipped step again. */
static void starve(void *user, const tp_train_record *record) {
    if (record->event == TP_TRAIN_SKIPPED && record->skipped == 5) tpi_alloc_fail_at(1);
    on_event(user, record);
}

static void run_poisoned(const char *out, tp_train_fn heard, const char *part) {
    tp_context *ctx = make_context();
    witness w = {0};
    tp_trainer *trainer;
    tp_train_options options = run_options(TP_TRAIN_FULL, in_root(out));
    options.user = &w;
    options.on_event = heard;
    must(tp_trainer_create(&trainer, tp_device_cpu(ctx), &options));
    poison(trainer, NAN);
    must_fail(tp_trainer_run(trainer), TP_ENONFINITE, part);
    cr_expect(strstr(tp_error_message(), "; not finite in 5 steps in a row; no checkpoint was saved"), "%s",
              tp_error_message());
    cr_expect(w.skipped == 5 && w.saved == 0);
    must_fail(tp_trainer_run(trainer), TP_EINVAL, "has run");
    tp_trainer_destroy(trainer);
    tp_context_destroy(ctx);
}

Test(run, five_steps_that_are_not_finite_end_it) {
    run_poisoned("out", on_event, "step 5: rms_norm (kernel ");
    run_poisoned("starved", starve, "step 5: loss nan and gradient norm ");
}

static void poison_later(void *user, const tp_train_record *record) {
    witness *w = user;
    if (record->event == TP_TRAIN_STEP && record->iter == 7) poison(w->trainer, 3e38f);
    on_event(user, record);
}

/* A weight becomes huge: step 8 overflows. */
Test(run, the_first_operation_that_is_not_finite_is_named) {
    for (int detect = 0; detect < 2; detect++) {
        witness w = {0};
        tp_train_options options = run_options(TP_TRAIN_FULL, in_root(detect ? "detect" : "out"));
        options.on_event = poison_later;
        options.detect_nan = detect;
        must_fail(run(&options, &w, NULL), TP_ENONFINITE, detect ? "step 8: " : "step 12: ");
        const char *message = tp_error_message();
        cr_expect(strstr(message, " (kernel ") && strstr(message, "its inputs are finite"), "%s", message);
        cr_expect((strstr(message, "in a row") == NULL) == detect, "%s", message);
        cr_expect(strstr(message, "the last good checkpoint is ") && strstr(message, "/step-000006"), "%s",
                  message);
        cr_expect_eq(w.skipped, detect ? 0 : 5);
        cr_expect(tpi_path_exists(
            in_root(detect ? "detect/checkpoints/step-000006" : "out/checkpoints/step-000006")));
    }
}

Test(run, detection_changes_no_number) {
    witness plain = {0}, checked = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("plain"));
    must(run(&options, &plain, NULL));
    options.out = in_root("checked");
    options.detect_nan = true;
    must(run(&options, &checked, NULL));
    expect_same_from(&plain, &checked, 1);
    expect_same_weights(TP_TRAIN_LORA, in_root("plain"), in_root("checked"));
}

Test(run, patience_ends_it_and_best_is_kept) {
    witness w = {0};
    tp_trainer_info info;
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.iters = 60;
    options.lr = 3.0; /* what the first step learns the next ones lose, by far more than rounding moves */
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

/* Validation may take more than a step. */
Test(run, the_plan_knows_validation) {
    uint64_t bytes[2];
    for (int i = 0; i < 2; i++) {
        tp_context *ctx = make_context();
        tp_trainer *trainer;
        tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
        write_rows(in_root("data/train.jsonl"), 1, 0);
        if (i == 1) write_rows(in_root("data/valid.jsonl"), 22, 3);
        options.batch_size = 200;
        must(tp_trainer_create(&trainer, tp_device_cpu(ctx), &options));
        must(tp_trainer_plan(trainer, &bytes[i]));
        tp_trainer_destroy(trainer);
        tp_context_destroy(ctx);
    }
    cr_expect_gt(bytes[1], bytes[0]);
}

/* Tries a second run in the first one's directory while that is training. */
static void intrude(void *user, const tp_train_record *record) {
    on_event(user, record);
    if (record->event != TP_TRAIN_STEP || record->iter != 2) return;
    witness second = {0};
    put_text(in_root("out/checkpoints.tmp-1-0"), "being written");
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    must_fail(run(&options, &second, NULL), TP_EINVAL, "another process writes into it");
    cr_expect(tpi_path_exists(in_root("out/checkpoints.tmp-1-0")));
    cr_expect_eq(second.steps, 0);
}

Test(run, a_directory_is_one_runs) {
    witness w = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.on_event = intrude;
    options.save_every = 0;
    must(run(&options, &w, NULL));
    cr_expect_eq(w.steps, 12);
    options.on_event = on_event;
    options.resume = "auto";
    w = (witness){0};
    must(run(&options, &w, NULL));
    cr_expect_not(tpi_path_exists(in_root("out/checkpoints.tmp-1-0")), "what was left is removed");
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
