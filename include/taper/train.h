/* Training: LoRA and full fine-tuning, and pre-training, of a model on text.
 *
 * A trainer reads a model, a tokenizer and data from directories and runs AdamW over them; everything it
 * makes goes to one output directory:
 *
 *     adapter_config.json, adapter_model.safetensors   method lora: the adapter, as PEFT has it
 *     config.json, model.safetensors, tokenizer files  method full: a model directory
 *     best/                     the same with the lowest validation loss, where there is validation data
 *     checkpoints/step-000100/  what resuming needs; the last `keep` of them
 *     log.jsonl                 a record a line
 *     taper.json                the configuration with every default filled in
 *     loss.svg, loss.png        the curves
 *
 * Data is train.jsonl (and valid.jsonl) in a directory, or one file; a row is {"text": ...} or
 * {"prompt": ..., "completion": ...}. The prompt is not trained on (tp_train_loss); the end token is, behind
 * every row. The loss of a step is the sum over its trained tokens divided by their number, however the step
 * is cut into batches (batch_size · grad_accum).
 *
 * A run is a function of its options, its files and the number of threads: stopped or killed at any moment
 * and resumed, it goes on to the same losses, on the CPU bit for bit.
 *
 *     tp_train_options options = TP_TRAIN_OPTIONS_INIT;
 *     options.model = "models/taper-wick";
 *     options.data = "data/verses";
 *     options.out = "out";
 *     tp_trainer *trainer;
 *     if (tp_trainer_create(&trainer, tp_device_cpu(ctx), &options) != TP_OK) return 1;
 *     tp_status status = tp_trainer_run(trainer);
 *     tp_trainer_destroy(trainer);
 */
#ifndef TAPER_TRAIN_H
#define TAPER_TRAIN_H

#include "taper/adapter.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_trainer tp_trainer;

typedef enum tp_train_method {
    TP_TRAIN_LORA, /* an adapter; the model's weights stay as they are, held in base_dtype */
    TP_TRAIN_FULL  /* all weights, in f32; a directory without weights starts from random ones */
} tp_train_method;

/* What to do with a row of more than max_seq tokens. */
typedef enum tp_train_overlong {
    TP_OVERLONG_ERROR,
    TP_OVERLONG_DROP,
    TP_OVERLONG_TRUNCATE, /* keep the first max_seq tokens */
    TP_OVERLONG_SPLIT     /* cut into rows of at most max_seq tokens */
} tp_train_overlong;

/* Which tokens count. In a row of text all do. */
typedef enum tp_train_loss {
    TP_LOSS_COMPLETION, /* those of the completion */
    TP_LOSS_ALL         /* those of the prompt too */
} tp_train_loss;

/* The learning rate after warm-up: falls to 0 at the end along half a cosine or a line, or stays. */
typedef enum tp_train_schedule {
    TP_SCHEDULE_COSINE,
    TP_SCHEDULE_LINEAR,
    TP_SCHEDULE_CONSTANT
} tp_train_schedule;

typedef enum tp_train_event {
    TP_TRAIN_STEP,       /* after every optimizer step: for a live line; not written to the log */
    TP_TRAIN_REPORT,     /* every log_every steps and at the end: means since the last report */
    TP_TRAIN_VALIDATION, /* before the first step, every eval_every steps and at the end */
    TP_TRAIN_SKIPPED,    /* a step whose loss or gradient is not finite changed nothing */
    TP_TRAIN_SAVED       /* a checkpoint is complete */
} tp_train_event;

typedef struct tp_train_record {
    tp_train_event event;
    int64_t iter, iters;                        /* optimizer steps done, and of the whole run */
    double epoch;                               /* passes over the data done */
    double loss;                                /* natural logarithm, mean over trained tokens; SAVED: NaN */
    double lr;                                  /* of the last step */
    double grad_norm;                           /* of the last step, before clipping */
    double iters_per_second, tokens_per_second; /* since the last report; trained tokens */
    int64_t tokens;                             /* trained tokens since the start of the run */
    int64_t skipped;                            /* steps skipped since the start of the run */
    uint64_t peak_bytes;                        /* of tensors and plans, in this process */
    double eta_seconds;                         /* to the end of the run; < 0: not known yet */
    bool best;                                  /* VALIDATION: the lowest so far */
    const char *path; /* SAVED: the checkpoint's directory, borrowed for the call; else NULL */
} tp_train_record;

/* Called in the thread that runs the trainer. It may call tp_trainer_stop. */
typedef void (*tp_train_fn)(void *user, const tp_train_record *record);

typedef struct tp_train_options {
    size_t size; /* sizeof(tp_train_options): set by TP_TRAIN_OPTIONS_INIT */

    const char *model; /* a model directory */
    const char *data;  /* a directory with train.jsonl, or a .jsonl file */
    const char *out;   /* made if need be */
    tp_train_method method;

    /* lora */
    int64_t rank;
    double alpha, dropout;
    bool rslora;
    const char *const *targets; /* as in tp_adapter_options; NULL: all-linear */
    int target_count;
    const char *const *exclude;
    int exclude_count;
    const char *layers; /* "all", "8": the last 8, "4-11": from 4 to 11; NULL: all */

    /* data */
    int64_t epochs;     /* passes over the data; not looked at with iters */
    int64_t iters;      /* optimizer steps; 0: as many as `epochs` takes */
    int64_t batch_size; /* rows a batch */
    int64_t grad_accum; /* batches a step */
    int64_t max_seq;    /* tokens a row */
    tp_train_overlong overlong;
    bool pack; /* rows are put one behind the other and cut into blocks of max_seq; attention crosses rows */
    tp_train_loss loss;

    /* optimizer */
    double lr;
    tp_train_schedule schedule;
    double warmup; /* below 1 a share of the steps, else steps */
    double weight_decay, beta1, beta2;
    double clip;    /* largest norm of all gradients together; 0: no clipping */
    uint64_t seed;  /* of weights, order and dropout; below 2^53 */
    bool recompute; /* trade time for memory: activations are computed again in the backward pass */

    /* running */
    int64_t eval_every;  /* steps between validations; 0: at the start and the end alone */
    int64_t val_batches; /* batches of a validation; 0: all */
    int64_t patience;    /* end after so many validations without a new lowest loss; 0: never */
    int64_t save_every;  /* steps between checkpoints; 0: at the end alone */
    int64_t keep;        /* checkpoints kept; 0: all */
    int64_t log_every;   /* steps between reports */
    const char *resume;  /* "auto": the newest checkpoint in `out`, if any; a checkpoint's directory; NULL */
    bool detect_nan;     /* end at the first number that is not finite, as tp_context_detect_nonfinite does */
    tp_dtype dtype;      /* full: of the weights that are written, TP_F32, TP_BF16 or TP_F16 */
    tp_base_dtype base_dtype; /* lora: what the model's matrices are held in */

    tp_train_fn on_event; /* may be NULL */
    void *user;
} tp_train_options;

#define TP_TRAIN_OPTIONS_INIT                                                                                \
    {                                                                                                        \
        sizeof(tp_train_options), NULL, NULL, NULL, TP_TRAIN_LORA, /* lora */ 16, 32.0, 0.0, false, NULL, 0, \
            NULL, 0, NULL, /* data */ 1, 0, 4, 1, 2048, TP_OVERLONG_ERROR, false, TP_LOSS_COMPLETION,        \
            /* optimizer */ 1e-4, TP_SCHEDULE_COSINE, 0.03, 0.0, 0.9, 0.999, 1.0, 0, false,                  \
            /* running */ 200, 25, 0, 100, 3, 10, NULL, false, TP_F32, TP_BASE_AUTO, NULL, NULL              \
    }

/* Reads model, tokenizer and data, and makes what is trained; writes nothing. `options` and what it points to
 * are borrowed for the call. Owned. Fails with TP_EINVAL (an option out of range, by name; a target that
 * matches nothing), TP_EFORMAT and TP_EIO (a file; of data with its row, which is its line: "row 17: 0
 * trained tokens of 812"; a row too long under TP_OVERLONG_ERROR; data without rows), TP_EUNSUPPORTED (the
 * model; rows of messages), TP_ENOMEM, TP_ELIMIT. */
TP_API tp_status tp_trainer_create(tp_trainer **out, tp_device *device, const tp_train_options *options);

/* Plans the step of the largest batch and runs nothing: *bytes is the peak of tensors and plan together.
 * Fails with TP_ELIMIT when that is above the context's limit, saying which options lower it. */
TP_API tp_status tp_trainer_plan(tp_trainer *trainer, uint64_t *bytes);

/* Runs to the end, and writes the output directory. Fails with TP_EINTERRUPTED after tp_trainer_stop, when
 * the checkpoint has been saved; TP_ENONFINITE after five steps in a row that are not finite, or at the first
 * with `detect_nan`, naming the operation that made the number and the last good checkpoint, which is kept;
 * TP_EINVAL for an output directory that holds checkpoints when `resume` is NULL, and for a checkpoint of
 * another model, data or configuration, naming what differs; TP_EFORMAT for a damaged checkpoint; TP_EIO;
 * TP_ENOMEM; TP_ELIMIT as tp_trainer_plan. Once per trainer. */
TP_API tp_status tp_trainer_run(tp_trainer *trainer);

/* Asks a running trainer to save a checkpoint after the step it is in and to return. Callable from any thread
 * and from a signal handler. */
TP_API void tp_trainer_stop(tp_trainer *trainer);

/* NULL does nothing. */
TP_API void tp_trainer_destroy(tp_trainer *trainer);

/* What the data and the model came to, and where the run stands. */
typedef struct tp_trainer_info {
    int64_t rows;                      /* of training, after the policies below */
    int64_t tokens;                    /* of training, an epoch */
    int64_t trained_tokens;            /* of them those in the loss */
    int64_t longest;                   /* tokens of the longest row */
    int64_t valid_rows;                /* 0: no validation data */
    int64_t dropped, truncated, split; /* overlong rows of training by what became of them */
    int64_t iters_per_epoch, iters;
    uint64_t parameters, trained_parameters;                   /* elements */
    int64_t iter, skipped;                                     /* steps done */
    double first_valid_loss, last_valid_loss, best_valid_loss; /* NaN: none yet */
    int64_t best_iter;
    bool early_stop; /* patience ended the run */
} tp_trainer_info;

TP_API void tp_trainer_get_info(const tp_trainer *trainer, tp_trainer_info *info);

#ifdef __cplusplus
}
#endif
#endif
