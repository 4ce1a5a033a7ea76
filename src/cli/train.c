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

#define AT(field) offsetof(arguments, field)

static const char *const methods[] = {"lora", "full", NULL};
static const char *const overlongs[] = {"error", "drop", "truncate", "split", NULL};
static const char *const losses[] = {"completion", "all", NULL};
static const char *const schedules[] = {"cosine", "linear", "constant", NULL};
static const char *const optimizers[] = {"adamw", NULL};
static const char *const dtypes[] = {"f32", "bf16", "f16", NULL};

_Static_assert(sizeof(tp_train_method) == sizeof(int) && sizeof(tp_dtype) == sizeof(int),
               "choices are stored as int");

static const option_row rows[] = {
    {.kind = OPTION_HEADING, .help = "Files:"},
    {.kind = OPTION_TEXT,
     .name = "model",
     .letter = 'm',
     .offset = AT(train.model),
     .value = "DIR",
     .help = "The model's directory"},
    {.kind = OPTION_TEXT,
     .name = "data",
     .letter = 'd',
     .offset = AT(train.data),
     .value = "PATH",
     .help = "A directory with train.jsonl (and valid.jsonl), or a .jsonl file"},
    {.kind = OPTION_TEXT,
     .name = "out",
     .letter = 'o',
     .offset = AT(train.out),
     .value = "DIR",
     .aliases = "adapter-path",
     .help = "The directory to write"},
    {.kind = OPTION_TEXT,
     .name = "config",
     .letter = 'c',
     .offset = AT(config),
     .value = "FILE",
     .line_only = true,
     .help = "Read options from a YAML file; the command line beats it"},
    {.kind = OPTION_HEADING, .help = "What is trained:"},
    {.kind = OPTION_CHOICE,
     .name = "method",
     .offset = AT(train.method),
     .choices = methods,
     .value = "NAME",
     .aliases = "fine-tune-type",
     .help = "lora: an adapter; full: all weights"},
    {.kind = OPTION_INT, .name = "rank", .offset = AT(train.rank), .value = "R", .help = "Of the adapter"},
    {.kind = OPTION_REAL,
     .name = "alpha",
     .offset = AT(train.alpha),
     .value = "X",
     .help = "The adapter acts alpha / rank strong"},
    {.kind = OPTION_REAL,
     .name = "dropout",
     .offset = AT(train.dropout),
     .value = "P",
     .help = "Of the adapter's input"},
    {.kind = OPTION_FLAG,
     .name = "rslora",
     .offset = AT(train.rslora),
     .bare = "true",
     .help = "The adapter acts alpha / sqrt(rank) strong"},
    {.kind = OPTION_LIST,
     .name = "targets",
     .offset = AT(targets),
     .value = "LIST",
     .help = "Adapted layers: all-linear, attn, mlp, names, re:REGEX [all-linear]"},
    {.kind = OPTION_LIST,
     .name = "exclude",
     .offset = AT(exclude),
     .value = "LIST",
     .help = "Layers left out, in the same words"},
    {.kind = OPTION_TEXT,
     .name = "layers",
     .offset = AT(train.layers),
     .value = "all|N|A-B",
     .aliases = "num-layers",
     .help = "All blocks, the last N, or from A to B"},
    {.kind = OPTION_CHOICE,
     .name = "dtype",
     .offset = AT(train.dtype),
     .choices = dtypes,
     .value = "NAME",
     .help = "Of the weights that method full writes: f32, bf16 or f16"},
    {.kind = OPTION_HEADING, .help = "Data:"},
    {.kind = OPTION_INT,
     .name = "epochs",
     .offset = AT(train.epochs),
     .value = "N",
     .help = "Passes over the data"},
    {.kind = OPTION_INT,
     .name = "iters",
     .offset = AT(train.iters),
     .value = "N",
     .aliases = "steps",
     .help = "Optimizer steps; 0: as many as the epochs take"},
    {.kind = OPTION_INT,
     .name = "batch-size",
     .letter = 'b',
     .offset = AT(train.batch_size),
     .value = "N",
     .help = "Rows a batch"},
    {.kind = OPTION_INT,
     .name = "grad-accum",
     .offset = AT(train.grad_accum),
     .value = "N",
     .aliases = "grad-accumulation-steps gradient-accumulation-steps",
     .help = "Batches a step"},
    {.kind = OPTION_INT,
     .name = "max-seq",
     .offset = AT(train.max_seq),
     .value = "N",
     .aliases = "max-seq-length",
     .help = "Tokens a row"},
    {.kind = OPTION_CHOICE,
     .name = "overlong",
     .offset = AT(train.overlong),
     .choices = overlongs,
     .value = "NAME",
     .help = "Rows of more tokens: error, drop, truncate or split"},
    {.kind = OPTION_FLAG,
     .name = "pack",
     .offset = AT(train.pack),
     .bare = "true",
     .help = "Fill rows with one text behind the other"},
    {.kind = OPTION_CHOICE,
     .name = "loss",
     .offset = AT(train.loss),
     .choices = losses,
     .value = "NAME",
     .help = "Tokens that count: completion or all"},
    {.kind = OPTION_HEADING, .help = "Optimizer:"},
    {.kind = OPTION_REAL,
     .name = "lr",
     .offset = AT(train.lr),
     .value = "X",
     .aliases = "learning-rate",
     .help = "Learning rate at its peak"},
    {.kind = OPTION_CHOICE,
     .name = "schedule",
     .offset = AT(train.schedule),
     .choices = schedules,
     .value = "NAME",
     .help = "After the warm-up: cosine, linear or constant"},
    {.kind = OPTION_REAL,
     .name = "warmup",
     .offset = AT(train.warmup),
     .value = "X",
     .help = "Below 1 a share of the steps, else steps"},
    {.kind = OPTION_CHOICE,
     .name = "optimizer",
     .offset = AT(optimizer),
     .choices = optimizers,
     .value = "NAME",
     .help = "adamw"},
    {.kind = OPTION_REAL,
     .name = "weight-decay",
     .offset = AT(train.weight_decay),
     .value = "X",
     .help = "Decoupled weight decay"},
    {.kind = OPTION_REAL,
     .name = "beta1",
     .offset = AT(train.beta1),
     .value = "X",
     .help = "Decay of the first moment"},
    {.kind = OPTION_REAL,
     .name = "beta2",
     .offset = AT(train.beta2),
     .value = "X",
     .help = "Decay of the second moment"},
    {.kind = OPTION_REAL,
     .name = "clip",
     .offset = AT(train.clip),
     .value = "X",
     .help = "Largest norm of the gradients; 0: any"},
    {.kind = OPTION_INT,
     .name = "seed",
     .offset = AT(train.seed),
     .value = "N",
     .help = "Of weights, order and dropout"},
    {.kind = OPTION_FLAG,
     .name = "recompute",
     .offset = AT(train.recompute),
     .bare = "true",
     .aliases = "grad-checkpoint",
     .help = "Less memory, more time: activations are computed twice"},
    {.kind = OPTION_HEADING, .help = "Running:"},
    {.kind = OPTION_INT,
     .name = "eval-every",
     .offset = AT(train.eval_every),
     .value = "N",
     .aliases = "steps-per-eval",
     .help = "Steps between validations; 0: first and last alone"},
    {.kind = OPTION_INT,
     .name = "val-batches",
     .offset = AT(train.val_batches),
     .value = "N",
     .help = "Batches of a validation; 0: all"},
    {.kind = OPTION_INT,
     .name = "patience",
     .offset = AT(train.patience),
     .value = "N",
     .help = "End after N validations without a new lowest loss; 0: never"},
    {.kind = OPTION_INT,
     .name = "save-every",
     .offset = AT(train.save_every),
     .value = "N",
     .help = "Steps between checkpoints; 0: at the end alone"},
    {.kind = OPTION_INT,
     .name = "keep",
     .offset = AT(train.keep),
     .value = "N",
     .help = "Checkpoints kept; 0: all"},
    {.kind = OPTION_INT,
     .name = "log-every",
     .offset = AT(train.log_every),
     .value = "N",
     .aliases = "steps-per-report",
     .help = "Steps between reports"},
    {.kind = OPTION_TEXT,
     .name = "resume",
     .offset = AT(train.resume),
     .value = "auto|DIR",
     .bare = "auto",
     .help = "Go on from the newest checkpoint, or from this one"},
    {.kind = OPTION_FLAG,
     .name = "dry-run",
     .offset = AT(dry_run),
     .bare = "true",
     .help = "Check everything, print what the run needs, and stop"},
    {.kind = OPTION_HEADING, .help = "Machine:"},
    SESSION_ROWS(arguments, session),
};

static const option_table table = {"train",
                                   "Fine-tune a language model on rows of {\"prompt\", \"completion\"} or "
                                   "{\"text\"}, and write the adapter, the log and the curves.",
                                   rows,
                                   sizeof rows / sizeof *rows,
                                   sizeof(arguments),
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
