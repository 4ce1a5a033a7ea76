/* Whole runs: what they learn and leave, when they end, what they refuse, and that none of it depends on
 * memory. */
#include "train_helpers.h"

TestSuite(run, .init = set_up, .fini = tear_down);

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

/* Found before the first step, not when the weights are to be written. */
Test(run, where_a_model_cannot_be_written_none_is_trained) {
    static const struct {
        const char *out, *part;
    } cases[] = {{"model", "own directory"}, {"sharded", "sharded"}, {"data/train.jsonl", "not a directory"}};
    must(tpi_dir_create(in_root("sharded")));
    put_text(in_root("sharded/model.safetensors.index.json"), "{}");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        witness w = {0};
        tp_train_options options = run_options(TP_TRAIN_FULL, in_root(cases[i].out));
        options.model = in_root("model");
        tp_status status = run(&options, &w, NULL);
        cr_expect(status != TP_OK && strstr(tp_error_message(), cases[i].part), "%s: %s", cases[i].out,
                  tp_error_message());
        cr_expect_eq(w.steps, 0);
    }
    cr_expect_not(tpi_path_exists(in_root("model/taper.json")));
}

/* A layer that is named is adapted, also one that is in no block. */
Test(run, the_head_is_a_target) {
    tp_context *ctx = make_context();
    tp_trainer *trainer;
    tp_trainer_info with, without;
    const char *const both[] = {"q_proj", "lm_head"};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.targets = both;
    for (int n = 1; n <= 2; n++) {
        options.target_count = n;
        must(tp_trainer_create(&trainer, tp_device_cpu(ctx), &options));
        tp_trainer_get_info(trainer, n == 1 ? &without : &with);
        tp_trainer_destroy(trainer);
    }
    cr_expect_gt(with.trained_parameters, without.trained_parameters);
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
