/* Evaluation on the queue: order, events, what waits, and failures that surface where a result is read. */
#include "engine_helpers.h"

#include <pthread.h>
#include <stdatomic.h>

ENGINE_SUITE(async);

static tp_lazy *bad_rows(void) {
    tp_tensor *ids;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 1, SHAPE(1), (int32_t[]){9}, &ids));
    return tp_lazy_gather(random_leaf(2, SHAPE(3, 4), 1), leaf_of(ids));
}

static tp_lazy *slow_product(void) {
    tp_lazy *x = random_leaf(2, SHAPE(256, 256), 3), *y = x;
    for (int i = 0; i < 20; i++) y = tp_lazy_mul_scalar(tp_lazy_matmul(y, x), 0.05);
    return y;
}

Test(async, results_wait_and_recording_goes_on) {
    tp_lazy *y = slow_product();
    tp_tensor *expected = evaluate(y), *out, *next;
    tp_graph_reset(g);
    tp_event *event;
    must(tp_lazy_eval_async(slow_product(), &out, &event));
    tp_graph_reset(g); /* the job holds what it needs */
    must(tp_lazy_eval_async(tp_lazy_neg(tp_lazy_from_tensor(g, out)), &next, NULL));
    cr_assert_eq(largest_difference(out, expected), 0);
    cr_assert(tp_event_query(event, NULL), "the result was read, so its evaluation ended");
    tp_tensor *sum;
    must(tp_lazy_eval(tp_lazy_add(tp_lazy_from_tensor(g, out), tp_lazy_from_tensor(g, next)), &sum));
    float *zeros = values_of(sum);
    for (int i = 0; i < 256 * 256; i++) cr_assert_eq(zeros[i], 0);
    free(zeros);
    tp_event_release(event);
    tp_tensor_release(expected), tp_tensor_release(out), tp_tensor_release(next), tp_tensor_release(sum);
}

Test(async, evaluations_run_in_order) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){0, 1, 2, 3});
    for (int i = 0; i < 200; i++) {
        tp_lazy *state = tp_lazy_from_tensor(g, s);
        tp_lazy_assign(state, i & 1 ? tp_lazy_mul_scalar(state, 0.5) : tp_lazy_add_scalar(state, 2));
        must(tp_graph_eval_async(g, NULL, 0, NULL, NULL));
        tp_graph_reset(g);
    }
    double expected = 0;
    for (int i = 0; i < 200; i++) expected = i & 1 ? expected * 0.5 : expected + 2;
    float values[4];
    must(tp_tensor_read(s, TP_F32, values, sizeof values));
    cr_assert_float_eq((double)values[0], expected, 1e-5);
    tp_tensor_release(s);
}

static void on_done(void *user, tp_status status) {
    atomic_store((atomic_int *)user, 100 + (int)status);
}

Test(async, wait_query_and_callback) {
    atomic_int called = 0, at_once = 0;
    tp_event *event;
    tp_status status = TP_EINTERNAL;
    must(tp_lazy_eval_async(slow_product(), NULL, &event));
    must(tp_event_on_done(event, on_done, &called));
    must_fail(tp_event_on_done(event, on_done, &called), TP_EINVAL, "callback already");
    must(tp_event_wait(event));
    cr_assert(tp_event_query(event, &status));
    cr_assert_eq(status, TP_OK);
    tp_event_release(event);
    must(tp_lazy_eval_async(bad_rows(), NULL, &event));
    must_fail(tp_event_wait(event), TP_EINVAL, "id 9");
    cr_assert(tp_event_query(event, &status));
    cr_assert_eq(status, TP_EINVAL);
    must(tp_event_on_done(event, on_done, &at_once));
    cr_assert_eq(atomic_load(&at_once), 100 + TP_EINVAL);
    tp_event_release(event);
    must_fail(tp_event_wait(NULL), TP_EINVAL, "NULL");
    cr_assert_not(tp_event_query(NULL, NULL));
    tp_event_release(NULL);
    close_context(); /* the callback comes before the job is put away */
    cr_assert_eq(atomic_load(&called), 100 + TP_OK);
    open_context(NULL);
}

Test(async, failures_surface_where_results_are_read) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4}), *table = random_tensor(2, SHAPE(3, 4), 1);
    tp_tensor *before, *r[2], *more;
    tp_tensor *ids;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 1, SHAPE(1), (int32_t[]){9}, &ids));
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    must(tp_lazy_eval(tp_lazy_neg(tp_lazy_from_tensor(g, table)), &before));
    tp_lazy_assign(state, tp_lazy_mul_scalar(state, 2));
    tp_lazy *rows = tp_lazy_gather(tp_lazy_from_tensor(g, table), leaf_of(ids));
    tp_lazy *outputs[] = {rows, tp_lazy_exp(state)};
    tp_event *event;
    must(tp_graph_eval_async(g, outputs, 2, r, &event));
    must_fail(tp_event_wait(event), TP_EINVAL, "id 9");
    float values[4];
    for (int i = 0; i < 2; i++) {
        must_fail(tp_tensor_read(r[i], TP_F32, values, sizeof values), TP_EINVAL, "id 9");
        cr_assert_null(tp_tensor_data(r[i]));
    }
    expect4(s, 1, 2, 3, 4); /* state is intact, and so are inputs */
    cr_assert_not_null(tp_tensor_data(table));
    must_fail(tp_lazy_eval(tp_lazy_neg(rows), &more), TP_EINVAL, "id 9");
    cr_assert_null(more);
    tp_event *second;
    must(tp_lazy_eval_async(tp_lazy_neg(tp_lazy_from_tensor(g, r[1])), &more, &second));
    must_fail(tp_event_wait(second), TP_EINVAL, "id 9");
    must_fail(tp_tensor_read(more, TP_F32, values, sizeof values), TP_EINVAL, "id 9");
    tp_graph_reset(g);
    must(tp_lazy_eval(tp_lazy_neg(tp_lazy_from_tensor(g, s)), NULL));
    tp_event_release(event), tp_event_release(second);
    tp_tensor_release(s), tp_tensor_release(table), tp_tensor_release(before);
    tp_tensor_release(r[0]), tp_tensor_release(r[1]), tp_tensor_release(more);
}

Test(async, errors_of_planning_come_at_once) {
    tp_tensor *out;
    tp_event *event;
    tp_lazy_matmul(random_leaf(2, SHAPE(2, 3), 1), random_leaf(2, SHAPE(2, 3), 2));
    must_fail(tp_graph_eval_async(g, NULL, 0, &out, &event), TP_ESHAPE, "matmul");
    cr_assert_null(event);
    must_fail(tp_lazy_eval_async(NULL, &out, &event), TP_EINVAL, "NULL");
    cr_assert(!out && !event);
}

/* ---- several threads, each with a graph of its own ---- */

#define THREADS 4
#define ROUNDS  150

typedef struct worker {
    pthread_t thread;
    tp_tensor *shared;
    int index, wrong;
} worker;

static void *work(void *arg) {
    worker *w = arg;
    tp_graph *own;
    if (tp_graph_create(&own, ctx) != TP_OK) return NULL;
    for (int round = 0; round < ROUNDS; round++) {
        tp_tensor *out = NULL;
        tp_lazy *y = tp_lazy_add_scalar(tp_lazy_from_tensor(own, w->shared), w->index);
        for (int i = 0; i < round % 7; i++) y = tp_lazy_add_scalar(tp_lazy_neg(tp_lazy_neg(y)), 1);
        tp_status status = round & 1 ? tp_lazy_eval(y, &out) : tp_lazy_eval_async(y, &out, NULL);
        float values[4] = {0};
        if (status == TP_OK) status = tp_tensor_read(out, TP_F32, values, sizeof values);
        for (int i = 0; i < 4; i++)
            w->wrong += status != TP_OK || values[i] != (float)(i + w->index + round % 7);
        tp_tensor_release(out);
        tp_graph_reset(own);
    }
    tp_graph_destroy(own);
    return NULL;
}

Test(async, threads_with_their_own_graphs) {
    worker workers[THREADS];
    tp_tensor *shared = tensor_of(1, SHAPE(4), (float[]){0, 1, 2, 3});
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.shared = shared, .index = i};
        cr_assert_eq(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        cr_assert_eq(workers[i].wrong, 0, "thread %d", i);
    }
    cr_assert_eq(stats().plan_misses + stats().plan_hits, THREADS * ROUNDS);
    tp_tensor_release(shared);
}
