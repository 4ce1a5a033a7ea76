/* taper train: a run of the trainer, with its progress. */
#include "progress.h"
#include "session.h"
#include "taper/train.h"

#include <math.h>
#include <string.h>

typedef struct arguments {
    tp_train_options train;
    text_list targets, exclude;
    const char *config;
    int optimizer;
    bool dry_run;
    session_options session;
} arguments;

#define ROW(kind, name, field, value, ...) OPTION_ROW(kind, name, arguments, field, value, __VA_ARGS__)

static const char *const methods[] = {"lora", "full", NULL};
static const char *const overlongs[] = {"error", "drop", "truncate", "split", NULL};
static const char *const losses[] = {"completion", "all", NULL};
static const char *const schedules[] = {"cosine", "linear", "constant", NULL};
static const char *const optimizers[] = {"adamw", NULL};
static const char *const dtypes[] = {"f32", "bf16", "f16", NULL};

_Static_assert(sizeof(tp_train_method) == sizeof(int) && sizeof(tp_dtype) == sizeof(int),
               "choices are stored as int");

static const option_row rows[] = {
    OPTION_GROUP("Files:"),
    ROW(TEXT, "model", train.model, "DIR", "The model's directory", .letter = 'm'),
    ROW(TEXT, "data", train.data, "PATH", "A directory with train.jsonl (and valid.jsonl), or a .jsonl file",
        .letter = 'd'),
    ROW(TEXT, "out", train.out, "DIR", "The directory to write", .letter = 'o', .aliases = "adapter-path"),
    ROW(TEXT, "config", config, "FILE", "Read options from a YAML file; the command line beats it",
        .letter = 'c', .line_only = true),
    OPTION_GROUP("What is trained:"),
    ROW(CHOICE, "method", train.method, "NAME", "lora: an adapter; full: all weights",
        .aliases = "fine-tune-type", .choices = methods),
    ROW(INT, "rank", train.rank, "R", "Of the adapter"),
    ROW(REAL, "alpha", train.alpha, "X", "The adapter acts alpha / rank strong"),
    ROW(REAL, "dropout", train.dropout, "P", "Of the adapter's input"),
    ROW(FLAG, "rslora", train.rslora, NULL, "The adapter acts alpha / sqrt(rank) strong", .bare = "true"),
    ROW(LIST, "targets", targets, "LIST",
        "Adapted layers: all-linear, attn, mlp, names, re:REGEX [all-linear]"),
    ROW(LIST, "exclude", exclude, "LIST", "Layers left out, in the same words"),
    ROW(TEXT, "layers", train.layers, "all|N|A-B", "All blocks, the last N, or from A to B",
        .aliases = "num-layers"),
    ROW(CHOICE, "dtype", train.dtype, "NAME", "Of the weights that method full writes: f32, bf16 or f16",
        .choices = dtypes),
    ROW(CHOICE, "base-dtype", train.base_dtype, "NAME",
        "Of the model under an adapter: auto (as stored, on a GPU bf16), stored, f32, bf16 or f16",
        .choices = base_dtypes),
    OPTION_GROUP("Data:"),
    ROW(INT, "epochs", train.epochs, "N", "Passes over the data"),
    ROW(INT, "iters", train.iters, "N", "Optimizer steps; 0: as many as the epochs take", .aliases = "steps"),
    ROW(INT, "batch-size", train.batch_size, "N", "Rows a batch", .letter = 'b'),
    ROW(INT, "grad-accum", train.grad_accum, "N", "Batches a step",
        .aliases = "grad-accumulation-steps gradient-accumulation-steps"),
    ROW(INT, "max-seq", train.max_seq, "N", "Tokens a row", .aliases = "max-seq-length"),
    ROW(CHOICE, "overlong", train.overlong, "NAME", "Rows of more tokens: error, drop, truncate or split",
        .choices = overlongs),
    ROW(FLAG, "pack", train.pack, NULL, "Fill rows with one text behind the other", .bare = "true"),
    ROW(CHOICE, "loss", train.loss, "NAME", "Tokens that count: completion or all", .choices = losses),
    OPTION_GROUP("Optimizer:"),
    ROW(REAL, "lr", train.lr, "X", "Learning rate at its peak", .aliases = "learning-rate"),
    ROW(CHOICE, "schedule", train.schedule, "NAME", "After the warm-up: cosine, linear or constant",
        .choices = schedules),
    ROW(REAL, "warmup", train.warmup, "X", "Below 1 a share of the steps, else steps"),
    ROW(CHOICE, "optimizer", optimizer, "NAME", "adamw", .choices = optimizers),
    ROW(REAL, "weight-decay", train.weight_decay, "X", "Decoupled weight decay"),
    ROW(REAL, "beta1", train.beta1, "X", "Decay of the first moment"),
    ROW(REAL, "beta2", train.beta2, "X", "Decay of the second moment"),
    ROW(REAL, "clip", train.clip, "X", "Largest norm of the gradients; 0: any"),
    ROW(INT, "seed", train.seed, "N", "Of weights, order and dropout"),
    ROW(FLAG, "recompute", train.recompute, NULL, "Less memory, more time: activations are computed twice",
        .aliases = "grad-checkpoint", .bare = "true"),
    OPTION_GROUP("Running:"),
    ROW(INT, "eval-every", train.eval_every, "N", "Steps between validations; 0: first and last alone",
        .aliases = "steps-per-eval"),
    ROW(INT, "val-batches", train.val_batches, "N", "Batches of a validation; 0: all"),
    ROW(INT, "patience", train.patience, "N", "End after N validations without a new lowest loss; 0: never"),
    ROW(INT, "save-every", train.save_every, "N", "Steps between checkpoints; 0: at the end alone"),
    ROW(INT, "keep", train.keep, "N", "Checkpoints kept; 0: all"),
    ROW(INT, "log-every", train.log_every, "N", "Steps between reports", .aliases = "steps-per-report"),
    ROW(TEXT, "resume", train.resume, "auto|DIR", "Go on from the newest checkpoint, or from this one",
        .bare = "auto"),
    ROW(FLAG, "detect-nan", train.detect_nan, NULL,
        "End at the first number that is not finite, and name the operation that made it", .bare = "true"),
    ROW(FLAG, "dry-run", dry_run, NULL, "Check everything, print what the run needs, and stop",
        .bare = "true"),
    OPTION_GROUP("Machine:"),
    SESSION_ROWS(arguments, session),
    DETERMINISTIC_ROW(arguments, session),
};

static const option_table table = {"train",
                                   "Fine-tune a language model on rows of {\"prompt\", \"completion\"} or "
                                   "{\"text\"}, and write the adapter, the log and the curves.",
                                   rows,
                                   sizeof rows / sizeof *rows,
                                   NULL,
                                   "config"};

/* ---- what is printed ---- */

static void print_plan(const tp_trainer *trainer) {
    tp_trainer_info i;
    tp_trainer_get_info(trainer, &i);
    printf("Trained parameters: %llu of %llu (%.3f%%)\n", (unsigned long long)i.trained_parameters,
           (unsigned long long)i.parameters,
           i.parameters ? 100.0 * (double)i.trained_parameters / (double)i.parameters : 0.0);
    printf("Training data: %lld rows, %lld tokens, %lld of them in the loss; the longest row has %lld\n",
           (long long)i.rows, (long long)i.tokens, (long long)i.trained_tokens, (long long)i.longest);
    if (i.dropped + i.truncated + i.split > 0)
        printf("Overlong rows: %lld dropped, %lld truncated, %lld split\n", (long long)i.dropped,
               (long long)i.truncated, (long long)i.split);
    printf("Validation data: %lld rows\n", (long long)i.valid_rows);
    printf("Steps: %lld (%lld an epoch)\n", (long long)i.iters, (long long)i.iters_per_epoch);
}

static void print_result(const tp_trainer *trainer, const arguments *a) {
    tp_trainer_info i;
    tp_trainer_get_info(trainer, &i);
    if (i.early_stop)
        printf("Ended early: no lower validation loss in %lld validations\n", (long long)a->train.patience);
    if (i.skipped > 0) printf("Steps skipped, not finite: %lld\n", (long long)i.skipped);
    if (isfinite(i.last_valid_loss))
        printf("Validation loss: %.3f before, %.3f after (best %.3f at iter %lld)\n", i.first_valid_loss,
               i.last_valid_loss, i.best_valid_loss, (long long)i.best_iter);
    printf("Wrote %s\n", a->train.out);
}

/* ---- running ---- */

static tp_trainer *volatile running; /* what Ctrl-C stops */

static void stop_running(void) {
    tp_trainer *trainer = running;
    if (trainer) tp_trainer_stop(trainer);
}

static int dry_run(tp_trainer *trainer) {
    uint64_t bytes;
    char size[SIZE_TEXT];
    print_plan(trainer);
    tp_status status = tp_trainer_plan(trainer, &bytes);
    if (status != TP_OK) return cli_fail_status(status);
    printf("Memory at the peak: %s\n", size_text(bytes, size));
    return EXIT_OK;
}

static int run(tp_trainer *trainer, const arguments *a, progress *p) {
    print_plan(trainer);
    cli_flush();
    running = trainer;
    on_interrupt(stop_running);
    progress_begin(p);
    tp_status status = tp_trainer_run(trainer);
    running = NULL;
    progress_end(p);
    if (status == TP_OK) print_result(trainer, a);
    if (status == TP_EINTERRUPTED)
        printf("Interrupted; the checkpoint is saved in %s. The same command with --resume goes on.\n",
               a->train.out);
    return cli_fail_status(status);
}

static int train(const session *s, arguments *a) {
    progress p = {0};
    tp_trainer *trainer;
    a->train.on_event = progress_event;
    a->train.user = &p;
    tp_status status = tp_trainer_create(&trainer, s->device, &a->train);
    if (status != TP_OK) return cli_fail_status(status);
    const int code = a->dry_run ? dry_run(trainer) : run(trainer, a, &p);
    tp_trainer_destroy(trainer);
    return code;
}

static int check(const arguments *a) {
    int code = require("train", "model", a->train.model);
    if (code == 0) code = require("train", "data", a->train.data);
    if (code == 0) code = require("train", "out", a->train.out);
    return code;
}

int train_command(int argc, char **argv) {
    arguments a = {.train = TP_TRAIN_OPTIONS_INIT, .session = SESSION_OPTIONS_INIT};
    int code = options_parse(&table, argc, argv, &a);
    if (code != OPTIONS_GO) return code;
    code = check(&a);
    if (code) return code;
    a.train.targets = a.targets.items;
    a.train.target_count = a.targets.count;
    a.train.exclude = a.exclude.items;
    a.train.exclude_count = a.exclude.count;
    session s;
    code = session_open(&s, &a.session);
    if (code == 0) code = train(&s, &a);
    session_close(&s);
    return code;
}
