/* Each way has a context of its own: a cache of one byte holds no plan, so that context plans every time. */
#include "ways.h"

static void run_lazy(ways *w, tp_graph *g) {
    tp_tensor *out;
    bench_must(tp_lazy_eval(w->record(w, g), &out));
    tp_tensor_release(out);
    tp_graph_reset(g);
}

static void call_eager(void *user) {
    ways *w = user;
    w->eager(w);
}

static void call_cached(void *user) {
    ways *w = user;
    run_lazy(w, w->graph);
}

/* A graph remembers the plan that it used last, so a cold plan takes a new graph too. */
static void call_cold(void *user) {
    ways *w = user;
    tp_graph *g;
    bench_must(tp_graph_create(&g, w->cold));
    run_lazy(w, g);
    tp_graph_destroy(g);
}

static void call_host(void *user) {
    ways *w = user;
    run_lazy(w, w->host_graph);
}

void ways_open(ways *w, int argc, char **argv) {
    w->context = bench_context(argc, argv, 0);
    w->cold = bench_context(argc, argv, 1);
    w->host = bench_context(argc, argv, 0);
    w->host->null_kernels = true;
    bench_must(tp_graph_create(&w->graph, w->context));
    bench_must(tp_graph_create(&w->host_graph, w->host));
}

void ways_entries(ways *w, bench_entry entries[WAYS]) {
    static void (*const calls[WAYS])(void *) = {call_eager, call_cached, call_cold, call_host};
    for (int i = 0; i < WAYS; i++)
        entries[i] = (bench_entry){
            .name = w->names[i], .call = calls[i], .user = w, .flops = w->flops, .bytes = w->bytes};
    entries[3] = (bench_entry){
        .name = w->names[3], .call = call_host, .user = w, .per = w->units, .target = w->host_target};
}

void ways_close(ways *w) {
    tp_graph_destroy(w->graph);
    tp_graph_destroy(w->host_graph);
    tp_context_destroy(w->context);
    tp_context_destroy(w->cold);
    tp_context_destroy(w->host);
}

void ways_randn(const ways *w, int rank, const int64_t *shape, uint64_t seed, ways_tensor *out) {
    out->in[0] = bench_randn(w->context, rank, shape, seed);
    out->in[1] = bench_randn(w->cold, rank, shape, seed);
    out->in[2] = bench_randn(w->host, rank, shape, seed);
}

void ways_release(ways_tensor *t) {
    for (int i = 0; i < 3; i++) tp_tensor_release(t->in[i]);
}

tp_lazy *ways_leaf(const ways *w, tp_graph *g, const ways_tensor *t) {
    tp_context *ctx = tp_graph_context(g);
    return tp_lazy_from_tensor(g, t->in[ctx == w->context ? 0 : ctx == w->cold ? 1 : 2]);
}

int ways_rows(int argc, char **argv, const char *title, tp_lazy *(*record)(ways *w, tp_graph *g),
              void (*eager)(ways *w)) {
    enum { SIDE = 4096 };
    ways_tensor x;
    ways w = {.record = record, .eager = eager, .user = &x};
    w.names[0] = "eager", w.names[1] = "lazy, cached plan", w.names[2] = "lazy, cold plan",
    w.names[3] = "host alone";
    w.bytes = 2.0 * SIDE * SIDE * sizeof(float);
    w.host_target = 1e-6;
    ways_open(&w, argc, argv);
    ways_randn(&w, 2, (int64_t[]){SIDE, SIDE}, 1, &x);
    bench_entry entries[WAYS];
    ways_entries(&w, entries);
    int status = bench_run(argc, argv, title, entries, WAYS);
    ways_release(&x);
    ways_close(&w);
    return status;
}
