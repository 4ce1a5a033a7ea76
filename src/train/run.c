/* The loop. Whether something is due is read off the state alone, never off what this process did before: so
 * a resumed run does what the uninterrupted one would have done. */
#include "train/checkpoint.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"
#include "train/plot.h"

#include <math.h>
#include <string.h>
#include <time.h>

#define MAX_SKIPPED 5 /* steps in a row that are not finite */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ---- telling ---- */

static double epochs_done(const tp_trainer *t) {
    return (double)t->state.epoch + (double)t->state.epoch_step / (double)tpi_order_steps(&t->order);
}

static double seconds_left(const tp_trainer *t) {
    int64_t done = t->state.iter - t->pace.start_iter;
    if (done == 0) return -1.0;
    return (now() - t->pace.start) / (double)done * (double)(t->options.iters - t->state.iter);
}

/* Writes a record to the log and hands it to the caller. */
static tp_status emit(tp_trainer *t, tp_train_event event, double loss, bool best) {
    double seconds = now() - t->pace.report_start;
    tp_context_stats stats;
    tp_context_get_stats(tp_device_context(t->device), &stats);
    const tp_train_record record = {
        .event = event,
        .iter = t->state.iter,
        .iters = t->options.iters,
        .epoch = epochs_done(t),
        .loss = loss,
        .lr = t->rate,
        .grad_norm = t->last.grad_norm,
        .iters_per_second = seconds > 0.0 ? (double)(t->state.iter - t->pace.report_iter) / seconds : 0.0,
        .tokens_per_second =
            seconds > 0.0 ? (double)(t->state.tokens - t->pace.report_tokens) / seconds : 0.0,
        .tokens = t->state.tokens,
        .skipped = t->state.skipped,
        .peak_bytes = stats.memory_peak,
        .eta_seconds = seconds_left(t),
        .best = best,
        .path = event == TP_TRAIN_SAVED ? t->last_checkpoint : NULL,
    };
    TPI_TRY(tpi_log_write(&t->log, &record));
    if (t->options.on_event) t->options.on_event(t->options.user, &record);
    return TP_OK;
}

static void restart_pace(tp_trainer *t) {
    t->pace.report_start = now();
    t->pace.report_iter = t->state.iter;
    t->pace.report_tokens = t->state.tokens;
}

static tp_status report(tp_trainer *t) {
    double loss = t->state.report_tokens ? t->state.report_loss / (double)t->state.report_tokens : NAN;
    TPI_TRY(emit(t, TP_TRAIN_REPORT, loss, false));
    t->state.report_loss = 0.0;
    t->state.report_tokens = 0;
    restart_pace(t);
    return TP_OK;
}

/* The log first: a run goes on from a checkpoint with the records up to it. */
static tp_status save(tp_trainer *t) {
    TPI_TRY(tpi_log_sync(&t->log));
    TPI_TRY(tpi_checkpoint_save(t));
    TPI_TRY(tpi_plot_write(&t->log, t->options.out));
    return emit(t, TP_TRAIN_SAVED, NAN, false);
}

/* ---- a step ---- */

/* Cuts the step's rows into batches; *count is their number, also after a failure. */
static tp_status make_batches(tp_trainer *t, int64_t *count) {
    const uint32_t *rows;
    int64_t row_count, most = t->options.batch_size;
    *count = 0;
    TPI_TRY(tpi_order_next(&t->order, &rows, &row_count));
    for (int64_t at = 0; at < row_count; at += most) {
        int64_t size = row_count - at < most ? row_count - at : most;
        TPI_TRY(tpi_batch_make(&t->batches[*count], &t->train, rows + at, size));
        ++*count;
    }
    return TP_OK;
}

/* The last of the skipped steps runs again, to name the operation; where that finds none, the numbers stand
 * for it. */
static tp_status note_skipped(tp_trainer *t, int64_t batch_count) {
    t->state.skipped++;
    t->state.skipped_in_row++;
    TPI_TRY(emit(t, TP_TRAIN_SKIPPED, t->last.loss, false));
    if (t->state.skipped_in_row < MAX_SKIPPED) return TP_OK;
    if (tpi_step_diagnose(t->step, t->batches, batch_count, t->rate) != TP_ENONFINITE)
        tpi_fail(TP_ENONFINITE, "loss %g and gradient norm %g", t->last.loss, t->last.grad_norm);
    return tpi_fail(TP_ENONFINITE, "step %lld: %s; not finite in %d steps in a row", (long long)t->state.iter,
                    tp_error_message(), MAX_SKIPPED);
}

static void note_learned(tp_trainer *t) {
    t->state.skipped_in_row = 0;
    t->state.tokens += t->last.tokens;
    t->state.report_tokens += t->last.tokens;
    t->state.report_loss += t->last.loss * (double)t->last.tokens;
}

static tp_status learn(tp_trainer *t, int64_t batch_count) {
    t->rate = tpi_schedule_rate(&t->schedule, t->state.iter);
    tp_status status = tpi_step_run(t->step, t->batches, batch_count, t->rate, &t->last);
    if (status != TP_OK) return tpi_fail_within(status, "step %lld", (long long)t->state.iter + 1);
    t->state.iter++;
    t->state.updates = t->step->updates;
    t->state.epoch = t->order.epoch;
    t->state.epoch_step = t->order.step;
    if (t->last.skipped) return note_skipped(t, batch_count);
    note_learned(t);
    return TP_OK;
}

static tp_status train_step(tp_trainer *t) {
    int64_t count;
    tp_status status = make_batches(t, &count);
    if (status != TP_OK) status = tpi_fail_within(status, "step %lld", (long long)t->state.iter + 1);
    if (status == TP_OK) status = learn(t, count);
    for (int64_t i = 0; i < count; i++) tpi_batch_free(&t->batches[i]);
    TPI_TRY(status);
    TPI_TRY(emit(t, TP_TRAIN_STEP, t->last.loss, false));
    bool due = t->state.iter % t->options.log_every == 0 || t->state.iter == t->options.iters;
    return due ? report(t) : TP_OK;
}

/* ---- validation ---- */

/* Adds up the losses of these rows, and their trained tokens. */
static tp_status add_losses(tp_trainer *t, const uint32_t *rows, int64_t count, double *sum,
                            int64_t *tokens) {
    tpi_batch batch;
    double part = 0.0;
    tp_status status = tpi_batch_make(&batch, &t->valid, rows, count);
    if (status == TP_OK) status = tpi_step_loss(t->step, &batch, &part);
    *tokens += batch.tokens;
    *sum += part;
    tpi_batch_free(&batch);
    return status == TP_OK ? TP_OK : tpi_fail_within(status, "validation");
}

/* Mean loss over the first val_batches batches of the validation rows, in the order of the file; *complete is
 * false if the run was stopped meanwhile. */
static tp_status validation_loss(tp_trainer *t, double *loss, bool *complete) {
    const int64_t size = tpi_trainer_batch_rows(t, &t->valid), count = (int64_t)t->valid.row_count;
    const int64_t batches = (count + size - 1) / size, most = t->options.val_batches;
    double sum = 0.0;
    int64_t tokens = 0;
    uint32_t *rows = tpi_calloc((size_t)count, sizeof *rows);
    *complete = false;
    if (!rows) return TP_ENOMEM;
    for (int64_t i = 0; i < count; i++) rows[i] = (uint32_t)i;
    tp_status status = TP_OK;
    int64_t b = 0, end = most && most < batches ? most : batches;
    for (; b < end && status == TP_OK && !atomic_load(&t->stop); b++)
        status =
            add_losses(t, rows + b * size, count - b * size < size ? count - b * size : size, &sum, &tokens);
    tpi_free(rows);
    *complete = status == TP_OK && b == end;
    *loss = sum / (double)tokens;
    return status;
}

static tp_status validate(tp_trainer *t) {
    tpi_state *state = &t->state;
    double loss, began = now();
    bool complete;
    TPI_TRY(validation_loss(t, &loss, &complete));
    if (!complete) return TP_OK;
    bool best = isfinite(loss) && !(loss >= state->best_valid); /* also where there is none yet */
    if (best) TPI_TRY(tpi_output_best(t));
    if (best) state->best_valid = loss, state->best_iter = state->iter;
    state->bad_validations = best ? 0 : state->bad_validations + 1;
    state->early_stop = t->options.patience > 0 && state->bad_validations >= t->options.patience;
    state->last_validation = state->iter;
    state->last_valid = loss;
    if (state->iter == 0) state->first_valid = loss;
    TPI_TRY(emit(t, TP_TRAIN_VALIDATION, loss, best));
    t->pace.report_start += now() - began; /* the pace is that of steps */
    return TP_OK;
}

/* ---- the loop ---- */

static bool is_done(const tp_trainer *t) {
    return t->state.early_stop || t->state.iter >= t->options.iters;
}

static bool validation_due(const tp_trainer *t) {
    const tpi_state *state = &t->state;
    if (t->valid.row_count == 0 || state->last_validation == state->iter) return false;
    if (state->iter == 0 || is_done(t)) return true;
    return t->options.eval_every > 0 && state->iter % t->options.eval_every == 0;
}

/* Not while steps are skipped: the checkpoints before are the good ones. */
static bool save_due(const tp_trainer *t) {
    const tpi_state *state = &t->state;
    if (t->last_saved == state->iter) return false;
    if (is_done(t)) return true;
    return t->options.save_every > 0 && state->iter > 0 && state->iter % t->options.save_every == 0 &&
           state->skipped_in_row == 0;
}

static tp_status stop_run(tp_trainer *t) {
    TPI_TRY(save(t));
    return tpi_fail(TP_EINTERRUPTED, "interrupted after step %lld; the checkpoint is %s",
                    (long long)t->state.iter, t->last_checkpoint);
}

static tp_status loop(tp_trainer *t) {
    for (;;) {
        if (validation_due(t)) TPI_TRY(validate(t));
        if (atomic_load(&t->stop)) return stop_run(t);
        if (save_due(t)) TPI_TRY(save(t));
        if (is_done(t)) return TP_OK;
        TPI_TRY(train_step(t));
    }
}

/* Makes the output directory this run's alone. */
static tp_status take_directory(tp_trainer *t) {
    TPI_TRY(tpi_dir_create(t->options.out));
    TPI_TRY(tpi_dir_lock(t->options.out, &t->lock));
    if (t->lock < 0) return TP_OK; /* others may be writing */
    TPI_TRY(tpi_dir_remove_temporaries(t->options.out));
    return tpi_checkpoint_clean(t);
}

static tp_status start(tp_trainer *t) {
    char *checkpoint;
    TPI_TRY(tpi_checkpoint_find(t, &checkpoint));
    tp_status status = checkpoint ? tpi_checkpoint_load(t, checkpoint) : TP_OK;
    int64_t kept = checkpoint ? t->state.iter : TPI_NEVER;
    tpi_free(checkpoint);
    if (status == TP_OK) status = take_directory(t);
    if (status == TP_OK) status = tpi_output_options(t);
    if (status == TP_OK) status = tpi_log_open(&t->log, t->options.out, kept);
    t->pace.start = now();
    t->pace.start_iter = t->state.iter;
    restart_pace(t);
    return status;
}

/* The loop, every evaluation of which is checked if that was asked for. */
static tp_status loop_checked(tp_trainer *t) {
    tp_context *ctx = tp_device_context(t->device);
    if (!t->options.detect_nan) return loop(t);
    const bool before = tp_context_detect_nonfinite(ctx, true);
    tp_status status = loop(t);
    tp_context_detect_nonfinite(ctx, before);
    return status;
}

static tp_status name_checkpoint(const tp_trainer *t, tp_status status) {
    if (status != TP_ENONFINITE) return status;
    return tpi_fail(status, "%s; %s%s", tp_error_message(),
                    t->last_checkpoint ? "the last good checkpoint is " : "no checkpoint was saved",
                    t->last_checkpoint ? t->last_checkpoint : "");
}

tp_status tp_trainer_run(tp_trainer *t) {
    uint64_t bytes;
    if (t->ran) return tpi_fail(TP_EINVAL, "tp_trainer_run: this trainer has run");
    t->ran = true;
    TPI_TRY(tp_trainer_plan(t, &bytes));
    TPI_TRY(start(t));
    TPI_TRY(name_checkpoint(t, loop_checked(t)));
    TPI_TRY(tpi_output_final(t));
    return tpi_plot_write(&t->log, t->options.out);
}
