/* Programs: run again with what the leaves hold then; state goes on; failures change nothing; on the queue.
 */
#include "engine_helpers.h"

#include "core/memory.h"
#include "core/tensor.h"
#include "taper/program.h"

ENGINE_SUITE(program);

static tp_program *keep(tp_lazy *y) {
    tp_program *p;
    must(tp_program_create(&p, g, &y, 1));
    tp_graph_reset(g);
    return p;
}

static float run_scalar(tp_program *p) {
    tp_tensor *out;
    float value;
    must(tp_program_run(p, &out));
    must(tp_tensor_read(out, TP_F32, &value, sizeof value));
    tp_tensor_release(out);
    return value;
}

Test(program, sees_what_its_leaves_hold_now) {
    tp_tensor *x = tensor_of(1, SHAPE(3), (float[]){1, 2, 3}), *first, *second;
    tp_program *p = keep(tp_lazy_mul_scalar(tp_lazy_from_tensor(g, x), 10));
    must(tp_program_run(p, &first));
    must(tp_tensor_write(x, (float[]){4, 5, 6}, 3 * sizeof(float)));
    must(tp_program_run(p, &second));
    tp_tensor_release(x); /* the program holds it */
    must(tp_program_run(p, NULL));
    const float *a = tp_tensor_data(first), *b = tp_tensor_data(second);
    cr_assert(a[0] == 10 && a[2] == 30 && b[0] == 40 && b[2] == 60, "a run overwrote a result handed out");
    tp_tensor_release(first), tp_tensor_release(second);
    tp_program_destroy(p);
    tp_program_destroy(NULL);
}

Test(program, plans_once_and_gives_the_evaluation_s_bits) {
    tp_tensor *x = random_tensor(2, SHAPE(40, 30), 1), *w = random_tensor(2, SHAPE(30, 20), 2), *want, *got;
    tp_lazy *y = tp_lazy_softmax(tp_lazy_matmul(tp_lazy_from_tensor(g, x), tp_lazy_from_tensor(g, w)), -1);
    tp_program *p;
    tp_context_stats before, after;
    must(tp_program_create(&p, g, &y, 1));
    cr_assert(!tp_lazy_is_evaluated(y), "creating a program runs nothing");
    must(tp_lazy_eval(y, &want));
    tp_graph_reset(g);
    tp_context_get_stats(ctx, &before);
    for (int i = 0; i < 10; i++) {
        must(tp_program_run(p, &got));
        cr_assert_eq(memcmp(tp_tensor_data(want), tp_tensor_data(got), 40 * 20 * sizeof(float)), 0);
        tp_tensor_release(got);
    }
    tp_context_get_stats(ctx, &after);
    cr_assert_eq(after.plan_misses, before.plan_misses);
    cr_assert_eq(after.plan_hits, before.plan_hits);
    cr_assert_eq(tp_program_memory(p) > 0, true);
    cr_assert_eq(tp_program_memory(NULL), 0);
    tp_tensor_release(x), tp_tensor_release(w), tp_tensor_release(want);
    tp_program_destroy(p);
}

/* Runs, compares, and takes memory of the size that the run has given back. */
static tp_tensor *run_and_take(tp_program *p, const tp_tensor *want, tp_tensor **taken) {
    const size_t bytes = (size_t)tp_tensor_count(want) * sizeof(float);
    const int64_t arena = (int64_t)((tp_program_memory(p) - tpi_memory_block_bytes(bytes)) / sizeof(float));
    tp_tensor *out;
    must(tp_program_run(p, &out));
    cr_assert_eq(memcmp(tp_tensor_data(want), tp_tensor_data(out), bytes), 0);
    must(tp_tensor_zeros(tp_device_cpu(ctx), TP_F32, 1, &arena, taken));
    return out;
}

/* Memory that a run takes is where it was before, or elsewhere: the arena, the results, or both. */
Test(program, memory_may_move_between_runs) {
    enum { RUNS = 6 };
    tp_tensor *x = random_tensor(2, SHAPE(300, 300), 1), *want, *got[RUNS], *taken[RUNS];
    tp_lazy *leaf = tp_lazy_from_tensor(g, x), *y = tp_lazy_matmul(tp_lazy_matmul(leaf, leaf), leaf);
    tp_program *p;
    must(tp_program_create(&p, g, &y, 1));
    must(tp_lazy_eval(y, &want));
    tp_graph_reset(g);
    for (int i = 0; i < RUNS; i++) {
        got[i] = run_and_take(p, want, &taken[i]);
        if (i % 2 == 1) tp_tensor_release(got[i]); /* the next result is where this one was */
    }
    for (int i = 0; i < RUNS; i++)
        for (int64_t k = 0; k < tp_tensor_count(taken[i]); k++)
            cr_assert_eq(((const float *)tp_tensor_data(taken[i]))[k], 0, "a run wrote what others hold");
    for (int i = 0; i < RUNS; i++) {
        if (i % 2 == 0) tp_tensor_release(got[i]);
        tp_tensor_release(taken[i]);
    }
    tp_tensor_release(x), tp_tensor_release(want);
    tp_program_destroy(p);
}

Test(program, state_goes_on_from_run_to_run) {
    tp_tensor *s = tensor_of(0, NULL, (float[]){1});
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy *next = tp_lazy_assign(state, tp_lazy_mul_scalar(state, 2));
    tp_program *p = keep(next);
    float value;
    for (int i = 1; i <= 10; i++) cr_assert_eq(run_scalar(p), (float)(1 << i));
    must(tp_tensor_read(s, TP_F32, &value, sizeof value));
    cr_assert_eq(value, 1024);
    /* what was recorded on the state before a run is stale after it */
    tp_lazy *late = tp_lazy_neg(tp_lazy_from_tensor(g, s));
    run_scalar(p);
    must_fail(tp_lazy_eval(late, NULL), TP_ESTALE, "assigned after it was recorded");
    tp_graph_reset(g);
    tp_program_destroy(p);
    tp_tensor_release(s);
}

/* first = first + 1, second = 2·second. */
static tp_program *change(tp_tensor *first, tp_tensor *second) {
    tp_lazy *x = tp_lazy_from_tensor(g, first), *y = tp_lazy_from_tensor(g, second);
    tp_program *p;
    tp_lazy_assign(x, tp_lazy_add_scalar(x, 1));
    tp_lazy_assign(y, tp_lazy_mul_scalar(y, 2));
    must(tp_program_create(&p, g, NULL, 0));
    tp_graph_reset(g);
    return p;
}

static void check_value(const tp_tensor *s, float want) {
    float value;
    must(tp_tensor_read(s, TP_F32, &value, sizeof value));
    cr_assert_eq(value, want);
}

Test(program, state_of_several_programs) {
    tp_tensor *s[3];
    for (int i = 0; i < 3; i++) s[i] = tensor_of(0, NULL, (float[]){1});
    tp_program *p = change(s[0], s[1]), *q = change(s[1], s[2]);
    tp_lazy *before[3];
    for (int i = 0; i < 3; i++) before[i] = tp_lazy_neg(tp_lazy_from_tensor(g, s[i]));
    must(tp_program_run(p, NULL));
    must_fail(tp_lazy_eval(before[0], NULL), TP_ESTALE, "assigned after it was recorded");
    must_fail(tp_lazy_eval(before[1], NULL), TP_ESTALE, "assigned after it was recorded");
    must(tp_lazy_eval(before[2], NULL)); /* p does not assign it */
    tp_lazy *between[3] = {tp_lazy_neg(tp_lazy_from_tensor(g, s[1])),
                           tp_lazy_neg(tp_lazy_from_tensor(g, s[2])),
                           tp_lazy_neg(tp_lazy_from_tensor(g, s[0]))};
    tp_program_destroy(p); /* what it put together stays so */
    must(tp_program_run(q, NULL));
    must_fail(tp_lazy_eval(between[0], NULL), TP_ESTALE, "assigned after it was recorded");
    must_fail(tp_lazy_eval(between[1], NULL), TP_ESTALE, "assigned after it was recorded");
    must(tp_lazy_eval(between[2], NULL)); /* nor does q this one, though p assigned it with another */
    check_value(s[0], 2), check_value(s[1], 3), check_value(s[2], 2);
    tp_graph_reset(g);
    tp_program_destroy(q);
    for (int i = 0; i < 3; i++) tp_tensor_release(s[i]);
}

Test(program, assignments_alone) {
    tp_tensor *s = tensor_of(0, NULL, (float[]){0});
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, tp_lazy_add_scalar(state, 1));
    tp_program *p;
    float value;
    must(tp_program_create(&p, g, NULL, 0));
    tp_graph_reset(g);
    for (int i = 0; i < 5; i++) must(tp_program_run(p, NULL));
    must(tp_tensor_read(s, TP_F32, &value, sizeof value));
    cr_assert_eq(value, 5);
    tp_program_destroy(p);
    tp_tensor_release(s);
}

Test(program, a_leaf_as_output_is_the_leaf) {
    tp_tensor *x = tensor_of(1, SHAPE(2), (float[]){1, 2}), *out;
    tp_program *p = keep(tp_lazy_from_tensor(g, x));
    must(tp_program_run(p, &out));
    cr_assert_eq(out, x);
    tp_tensor_release(out);
    tp_tensor_release(x);
    tp_program_destroy(p);
}

/* ---- failures ---- */

Test(program, fails_whole_and_runs_again) {
    tp_tensor *table = random_tensor(2, SHAPE(5, 3), 1), *ids, *s = tensor_of(0, NULL, (float[]){7}), *out;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 1, SHAPE(2), (int32_t[]){0, 4}, &ids));
    tp_lazy *rows = tp_lazy_gather(tp_lazy_from_tensor(g, table), tp_lazy_from_tensor(g, ids));
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, tp_lazy_add_scalar(state, 1));
    tp_program *p = keep(rows);
    float value;
    must(tp_program_run(p, NULL));
    must(tp_tensor_write(ids, (int32_t[]){0, 5}, 2 * sizeof(int32_t)));
    must_fail(tp_program_run(p, &out), TP_EINVAL, "5");
    cr_assert_null(out);
    must(tp_tensor_read(s, TP_F32, &value, sizeof value));
    cr_assert_eq(value, 8, "a failed run assigned state");
    must(tp_tensor_write(ids, (int32_t[]){1, 1}, 2 * sizeof(int32_t)));
    must(tp_program_run(p, NULL));
    must(tp_tensor_read(s, TP_F32, &value, sizeof value));
    cr_assert_eq(value, 9);
    tp_tensor_release(table), tp_tensor_release(ids), tp_tensor_release(s);
    tp_program_destroy(p);
}

Test(program, refuses_what_an_evaluation_refuses) {
    tp_program *p = (tp_program *)&p;
    tp_graph *other;
    must(tp_graph_create(&other, ctx));
    tp_lazy *x = random_leaf(2, SHAPE(2, 3), 1), *nothing = NULL;
    must_fail(tp_program_create(&p, NULL, &x, 1), TP_EINVAL, "graph is NULL");
    cr_assert_null(p);
    must_fail(tp_program_create(&p, g, &nothing, 1), TP_EINVAL, "output 0 is NULL");
    must_fail(tp_program_create(&p, other, &x, 1), TP_EGRAPH, "another graph");
    must_fail(tp_program_run(NULL, NULL), TP_EINVAL, "NULL");
    tp_lazy *wrong = tp_lazy_matmul(x, x);
    must_fail(tp_program_create(&p, g, &wrong, 1), TP_ESHAPE, "matmul");
    cr_assert_null(p);
    tp_graph_destroy(other);
}

Test(program, over_the_limit_runs_nothing) {
    close_context();
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 1;
    options.memory_limit = 8 << 20;
    open_context(&options);
    tp_tensor *x = random_tensor(2, SHAPE(256, 256), 1), *held, *out;
    tp_program *p = keep(tp_lazy_matmul(tp_lazy_from_tensor(g, x), tp_lazy_from_tensor(g, x)));
    must(tp_program_run(p, &out));
    tp_tensor_release(out);
    must(tp_tensor_zeros(tp_device_cpu(ctx), TP_F32, 1, SHAPE(2000000), &held));
    must_fail(tp_program_run(p, &out), TP_ELIMIT, "limit");
    cr_assert_null(out);
    tp_tensor_release(held);
    must(tp_program_run(p, NULL));
    tp_tensor_release(x);
    tp_program_destroy(p);
}

/* ---- on the queue ---- */

Test(program, runs_on_the_queue_in_order) {
    tp_tensor *s = tensor_of(0, NULL, (float[]){0}), *out = NULL;
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_program *p = keep(tp_lazy_assign(state, tp_lazy_add_scalar(state, 1)));
    tp_event *event = NULL;
    float value;
    for (int i = 0; i < 50; i++) {
        tp_tensor_release(out);
        tp_event_release(event);
        must(tp_program_run_async(p, &out, &event));
    }
    tp_program_destroy(p); /* what is queued runs all the same */
    must(tp_event_wait(event));
    must(tp_tensor_read(out, TP_F32, &value, sizeof value));
    cr_assert_eq(value, 50);
    tp_event_release(event);
    tp_tensor_release(out), tp_tensor_release(s);
}

/* The row of a table that a queued evaluation gathers. */
static tp_tensor *queue_row(tp_tensor *table, int32_t row, tp_event **event) {
    tp_tensor *ids, *out;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 1, SHAPE(1), &row, &ids));
    tp_lazy *rows = tp_lazy_gather(tp_lazy_from_tensor(g, table), tp_lazy_from_tensor(g, ids));
    must(tp_lazy_eval_async(rows, &out, event));
    tp_graph_reset(g);
    tp_tensor_release(ids);
    return out;
}

Test(program, waits_for_what_makes_its_leaves) {
    tp_tensor *table = tensor_of(2, SHAPE(2, 1), (float[]){3, 5}), *row, *lost;
    tp_event *made, *failed;
    tp_program *p;
    row = queue_row(table, 1, &made);
    p = keep(tp_lazy_sum(tp_lazy_from_tensor(g, row), TP_ALL_DIMS, false));
    cr_assert_eq(run_scalar(p), 5);
    tp_program_destroy(p);
    lost = queue_row(table, 2, &failed);
    tp_lazy *y = tp_lazy_neg(tp_lazy_from_tensor(g, lost));
    must_fail(tp_program_create(&p, g, &y, 1), TP_EINVAL, "gather");
    cr_assert_null(p);
    tp_graph_reset(g);
    tp_event_release(made), tp_event_release(failed);
    tp_tensor_release(table), tp_tensor_release(row), tp_tensor_release(lost);
}

/* ---- allocations ---- */

/* Creates and runs with the n-th allocation failing, 0: none; whether it was met. */
static bool run_with_fault(tp_tensor *x, int64_t n) {
    tp_program *p = NULL;
    tp_tensor *out;
    tp_lazy *leaf = tp_lazy_from_tensor(g, x), *y = tp_lazy_softmax(tp_lazy_matmul(leaf, leaf), -1);
    tpi_alloc_fail_at(n);
    tp_status status = tp_program_create(&p, g, &y, 1);
    if (status == TP_OK) status = tp_program_run(p, &out);
    tpi_alloc_fail_at(0);
    if (status == TP_OK)
        tp_tensor_release(out);
    else
        cr_assert_eq(status, TP_ENOMEM, "%s", tp_error_message());
    tp_program_destroy(p);
    tp_graph_reset(g);
    return status != TP_OK;
}

Test(program, every_allocation_may_fail) {
    tp_tensor *x = random_tensor(2, SHAPE(8, 8), 1);
    int64_t n = 1;
    while (run_with_fault(x, n)) n++;
    cr_assert_gt(n, 3);
    tp_tensor_release(x);
}
