/* Runs that were interrupted, killed or refused: they go on to the same numbers, or say why not. */
#include "train_helpers.h"

#include <sys/wait.h>

TestSuite(run, .init = set_up, .fini = tear_down);

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

static size_t checkpoint_count(const char *out) {
    char path[512], **names;
    size_t count;
    snprintf(path, sizeof path, "%s/checkpoints", out);
    must(tpi_dir_list(path, &names, &count));
    tpi_dir_list_free(names, count);
    return count;
}

/* A process may be killed between the last checkpoint and the removal of those before it. */
Test(run, resuming_removes_checkpoints_beyond_those_to_keep) {
    witness w = {0};
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    options.save_every = 1;
    options.keep = 0; /* all */
    must(run(&options, &w, NULL));
    cr_assert_eq(checkpoint_count(options.out), 12);
    options.resume = in_root("out/checkpoints/step-000007");
    options.keep = 3;
    w = (witness){.stop_at = 8};
    must_fail(run(&options, &w, NULL), TP_EINTERRUPTED, "step-000008");
    cr_expect_eq(checkpoint_count(options.out), 3 + 4, "6 to 8, and those that are newer");
    options.resume = "auto";
    options.keep = 1;
    w = (witness){0};
    must(run(&options, &w, NULL));
    cr_expect_eq(w.steps, 0);
    cr_expect_eq(checkpoint_count(options.out), 1);
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
    cr_expect_eq(checkpoint_count(in_root("killed")), 1, "nothing half-written is left");
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
    write_rows(in_root("data/valid.jsonl"), 6, 2);
    must_fail(run(&options, &w, NULL), TP_EINVAL, "other validation data");
    write_rows(in_root("data/valid.jsonl"), 6, 3);
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
    data[size - 40] ^= 4; /* a number somewhat larger */
    must(tpi_file_write(tensors, data, size));
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "state.safetensors: damaged: hash ");
    cr_expect_eq(w.steps, 0);
    data[size - 40] ^= 4;
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
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{\"format\": 2}");
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "options");
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{\"format\": 9}");
    must_fail(run(&options, &w, NULL), TP_EUNSUPPORTED, "format 9");
    put_text(in_root("out/checkpoints/step-000004/state.json"), "{");
    must_fail(run(&options, &w, NULL), TP_EFORMAT, "state.json:1:");
}

/* Tries a second run in the first one's directory while that is training. */
static void intrude(void *user, const tp_train_record *record) {
    on_event(user, record);
    if (record->event != TP_TRAIN_STEP || record->iter != 2) return;
    witness second = {0};
    put_text(in_root("out/checkpoints.tmp-1-0"), "being written");
    tp_train_options options = run_options(TP_TRAIN_LORA, in_root("out"));
    must_fail(run(&options, &second, NULL), TP_EINVAL, "out/best): resume it");
    must(tpi_dir_remove(in_root("out/best")));
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
