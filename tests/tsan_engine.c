/* What threads may share, for the thread sanitizer: one context, its plan cache, pool and queue, tensors that
 * all read, a tokenizer. Each thread records the same program in a graph of its own, evaluates it at once, on
 * the queue and eagerly, and must get the same numbers. A plain program: exit status 0 means that they did.
 */
#include "taper/eager.h"
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
static tp_tensor *input, *weight;
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

static void count(void *user, tp_status status) {
    (void)user;
    require(status == TP_OK, "callback");
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

static void *work(void *unused) {
    (void)unused;
    tp_graph *g;
    require(tp_graph_create(&g, ctx) == TP_OK, "graph");
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
    tp_graph_destroy(g);

    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) require(pthread_create(&threads[i], NULL, work, NULL) == 0, "thread");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);

    tp_tokenizer_release(tokenizer);
    tp_tensor_release(input);
    tp_tensor_release(weight);
    tp_context_destroy(ctx); /* ends the queue, and so its callbacks */
    require(atomic_load(&callbacks) == THREADS * ROUNDS, "callbacks");
    return 0;
}
