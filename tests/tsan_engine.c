/* What threads may share, for the thread sanitizer: one context, its plan cache, pool and queue, tensors that
 * all read, a tokenizer. Each thread records the same program in a graph of its own, evaluates it at once, on
 * the queue and eagerly, and must get the same numbers; and each has a state of its own, which one program
 * assigned with those of all before. A plain program: exit status 0 means that they did.
 */
#include "taper/eager.h"
#include "taper/program.h"
#include "taper/tokenizer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS 4
#define ROUNDS  40
#define ROWS    64
#define COLUMNS 96

static tp_context *ctx;
static tp_tensor *input, *weight, *states[THREADS];
static tp_tokenizer *tokenizer;
static float expected[ROWS * COLUMNS];
static atomic_int callbacks;

static void require(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s: %s\n", what, tp_error_message());
    exit(1);
}

static tp_lazy *record(tp_graph *g) {
    tp_lazy *x = tp_lazy_from_tensor(g, input), *w = tp_lazy_from_tensor(g, weight);
    return tp_lazy_softmax(tp_lazy_add(tp_lazy_matmul(x, w), tp_lazy_silu(x)), -1);
}

static void check(tp_tensor *y, const char *what) {
    require(y && memcmp(tp_tensor_data(y), expected, sizeof expected) == 0, what);
    tp_tensor_release(y);
}

static void evaluate_now(tp_graph *g) {
    tp_tensor *y;
    require(tp_lazy_eval(record(g), &y) == TP_OK, "eval");
    check(y, "eval: other numbers");
    tp_graph_reset(g);
}

/* Evaluates, too: on the queue's own thread. */
static void count(void *user, tp_status status) {
    tp_tensor *sum;
    (void)user;
    require(status == TP_OK, "callback");
    require(tp_tensor_add(weight, weight, &sum) == TP_OK, "evaluation in a callback");
    tp_tensor_release(sum);
    atomic_fetch_add(&callbacks, 1);
}

/* The next recording overlaps the evaluation of the one before. */
static void evaluate_queued(tp_graph *g) {
    tp_tensor *first, *second;
    tp_event *event;
    require(tp_lazy_eval_async(record(g), &first, NULL) == TP_OK, "eval_async");
    require(tp_lazy_eval_async(record(g), &second, &event) == TP_OK, "eval_async");
    require(tp_event_on_done(event, count, NULL) == TP_OK, "on_done");
    require(tp_event_wait(event) == TP_OK, "wait");
    tp_event_release(event);
    check(first, "eval_async: other numbers");
    check(second, "eval_async: other numbers");
    tp_graph_reset(g);
}

static void compute_eagerly(void) {
    tp_tensor *h, *s, *sum, *y;
    require(tp_tensor_matmul(input, weight, &h) == TP_OK, "matmul");
    require(tp_tensor_silu(input, &s) == TP_OK, "silu");
    require(tp_tensor_add(h, s, &sum) == TP_OK, "add");
    require(tp_tensor_softmax(sum, -1, &y) == TP_OK, "softmax");
    tp_tensor_release(h);
    tp_tensor_release(s);
    tp_tensor_release(sum);
    check(y, "eager: other numbers");
}

static void encode(void) {
    static const char text[] = "In the beginning was the Word";
    int32_t *ids;
    size_t n, length;
    char *back;
    require(tp_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &n) == TP_OK, "encode");
    require(tp_tokenizer_decode(tokenizer, ids, n, true, &back, &length) == TP_OK, "decode");
    require(length == sizeof text - 1 && memcmp(back, text, length) == 0, "decode: another text");
    tp_text_free(back);
    tp_ids_free(ids);
}

/* A program that counts `n` states from `first` on up by one. */
static tp_program *counter(tp_graph *g, int first, int n) {
    tp_program *p;
    for (int i = first; i < first + n; i++) {
        tp_lazy *s = tp_lazy_from_tensor(g, states[i]);
        tp_lazy_assign(s, tp_lazy_add_scalar(s, 1));
    }
    require(tp_program_create(&p, g, NULL, 0) == TP_OK, "program");
    tp_graph_reset(g);
    return p;
}

/* What is recorded on a state is stale when its own thread has assigned it, not another. */
static void count_states(tp_graph *g, int thread) {
    tp_program *p = counter(g, thread, 1);
    for (int i = 0; i < ROUNDS; i++) {
        tp_tensor *y;
        tp_lazy *doubled = tp_lazy_mul_scalar(tp_lazy_from_tensor(g, states[thread]), 2);
        require(tp_lazy_eval(doubled, &y) == TP_OK, "a state of this thread");
        require(*(const float *)tp_tensor_data(y) == 2 * (float)(i + 1), "state: another number");
        tp_tensor_release(y);
        tp_graph_reset(g);
        require(tp_program_run(p, NULL) == TP_OK, "program");
    }
    tp_program_destroy(p);
}

static void *work(void *thread) {
    tp_graph *g;
    require(tp_graph_create(&g, ctx) == TP_OK, "graph");
    count_states(g, (int)((tp_tensor **)thread - states));
    for (int round = 0; round < ROUNDS; round++) {
        evaluate_now(g);
        evaluate_queued(g);
        compute_eagerly();
        encode();
    }
    tp_graph_destroy(g);
    return NULL;
}

int main(void) {
    const int64_t shape[] = {ROWS, COLUMNS}, square[] = {COLUMNS, COLUMNS};
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 3;
    options.fuse = "-pointwise"; /* so that eager calls round where the lazy program does */
    require(tp_context_create(&ctx, &options) == TP_OK, "context");
    require(tp_tensor_randn(tp_device_cpu(ctx), 2, shape, 1, &input) == TP_OK, "input");
    require(tp_tensor_randn(tp_device_cpu(ctx), 2, square, 2, &weight) == TP_OK, "weight");
    require(tp_tokenizer_load("models/taper-wick", &tokenizer) == TP_OK, "tokenizer");

    tp_graph *g;
    tp_tensor *y;
    require(tp_graph_create(&g, ctx) == TP_OK, "graph");
    require(tp_lazy_eval(record(g), &y) == TP_OK, "reference");
    memcpy(expected, tp_tensor_data(y), sizeof expected);
    tp_tensor_release(y);
    for (int i = 0; i < THREADS; i++)
        require(tp_tensor_zeros(tp_device_cpu(ctx), TP_F32, 0, NULL, &states[i]) == TP_OK, "state");
    tp_program *all = counter(g, 0, THREADS);
    require(tp_program_run(all, NULL) == TP_OK, "program");
    tp_program_destroy(all);
    tp_graph_destroy(g);

    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        require(pthread_create(&threads[i], NULL, work, &states[i]) == 0, "thread");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);

    tp_tokenizer_release(tokenizer);
    tp_tensor_release(input);
    tp_tensor_release(weight);
    for (int i = 0; i < THREADS; i++) tp_tensor_release(states[i]);
    tp_context_destroy(ctx); /* ends the queue, and so its callbacks */
    require(atomic_load(&callbacks) == THREADS * ROUNDS, "callbacks");
    return 0;
}
