/* Whole runs of a small model: a directory with the model and data, a run in it, and what it said. */
#ifndef TAPER_TEST_TRAIN_HELPERS_H
#define TAPER_TEST_TRAIN_HELPERS_H

#include "model_helpers.h"

#include "io/file.h"
#include "train/trainer.h"

#include <signal.h>
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

static inline const char *in_root(const char *name) {
    static int turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static inline void put_text(const char *path, const char *text) {
    must(tpi_file_write(path, text, strlen(text)));
}

static const char *const config = "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
                                  "\"vocab_size\": 4096, \"hidden_size\": 12,"
                                  " \"intermediate_size\": 20, \"num_hidden_layers\": 2, "
                                  "\"num_attention_heads\": 2, \"num_key_value_heads\": 1,"
                                  " \"head_dim\": 6, \"max_position_embeddings\": 64, \"rms_norm_eps\": "
                                  "1e-5, \"tie_word_embeddings\": true,"
                                  " \"hidden_act\": \"silu\", \"eos_token_id\": 4093}";

static inline void copy_file(const char *from, const char *to) {
    char *data;
    size_t size;
    must(tpi_file_read(from, 1 << 24, &data, &size));
    must(tpi_file_write(to, data, size));
    tpi_free(data);
}

static inline void write_rows(const char *path, int rows, int seed) {
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
static inline void set_up(void) {
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

static inline void tear_down(void) {
    must(tpi_dir_remove(root));
}

#define MAX_STEPS 64

/* What a run said, and at which step to stop it. */
typedef struct witness {
    double losses[MAX_STEPS], valid[MAX_STEPS];
    int steps, validations, skipped, saved;
    int64_t stop_at, kill_at;
    tp_trainer *trainer;
} witness;

static inline void on_event(void *user, const tp_train_record *record) {
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
static inline tp_train_options run_options(tp_train_method method, const char *out) {
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

static inline tp_status run_in(tp_context *ctx, const tp_train_options *options, witness *w,
                               tp_trainer_info *info) {
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

static inline tp_status run(const tp_train_options *options, witness *w, tp_trainer_info *info) {
    tp_context *ctx = make_context();
    tp_status status = run_in(ctx, options, w, info);
    tp_context_destroy(ctx);
    return status;
}

static inline size_t line_count(const char *path) {
    char *data;
    size_t size, lines = 0;
    must(tpi_file_read(path, 1 << 24, &data, &size));
    for (size_t i = 0; i < size; i++) lines += data[i] == '\n';
    tpi_free(data);
    return lines;
}

static inline void expect_same_file(const char *a, const char *b) {
    char *x, *y;
    size_t x_size, y_size;
    must(tpi_file_read(a, 1 << 26, &x, &x_size));
    must(tpi_file_read(b, 1 << 26, &y, &y_size));
    cr_expect(x_size == y_size && memcmp(x, y, x_size) == 0, "%s and %s differ", a, b);
    tpi_free(x);
    tpi_free(y);
}

static inline const char *weights_of(tp_train_method method) {
    return method == TP_TRAIN_FULL ? "model.safetensors" : "adapter_model.safetensors";
}

static inline void expect_same_weights(tp_train_method method, const char *a, const char *b) {
    char left[640], right[640];
    snprintf(left, sizeof left, "%s/%s", a, weights_of(method));
    snprintf(right, sizeof right, "%s/%s", b, weights_of(method));
    expect_same_file(left, right);
}

static inline void expect_same_from(const witness *a, const witness *b, int first) {
    for (int i = first; i <= 12; i++) {
        cr_expect(memcmp(&a->losses[i], &b->losses[i], sizeof(double)) == 0, "step %d: %.17g, %.17g", i,
                  a->losses[i], b->losses[i]);
        if (i % 4 == 0)
            cr_expect(memcmp(&a->valid[i], &b->valid[i], sizeof(double)) == 0, "validation at %d", i);
    }
}

#endif
