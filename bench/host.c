/* The host's cost taken apart: leaves, recording, evaluation, reset of the LoRA forward pass, with no
 * kernels. */
#include "bench.h"

typedef struct host {
    tp_graph *graph;
    tp_tensor *x, *a, *b;
} host;

static tp_lazy *record(const host *h) {
    return tp_lazy_lora_fused(tp_lazy_from_tensor(h->graph, h->x), tp_lazy_from_tensor(h->graph, h->a),
                              tp_lazy_from_tensor(h->graph, h->b), 2.0);
}

static void leaves(void *user) {
    const host *h = user;
    tp_lazy_from_tensor(h->graph, h->x);
    tp_lazy_from_tensor(h->graph, h->a);
    tp_lazy_from_tensor(h->graph, h->b);
    tp_graph_reset(h->graph);
}

static void record_only(void *user) {
    const host *h = user;
    record(h);
    tp_graph_reset(h->graph);
}

static void lookup(void *user) {
    const host *h = user;
    uint64_t bytes;
    bench_must(tp_graph_memory(h->graph, &(tp_lazy *){record(h)}, 1, &bytes));
    tp_graph_reset(h->graph);
}

static void whole(void *user) {
    const host *h = user;
    tp_tensor *out;
    bench_must(tp_lazy_eval(record(h), &out));
    tp_tensor_release(out);
    tp_graph_reset(h->graph);
}

int main(int argc, char **argv) {
    tp_context *ctx = bench_context(argc, argv, 0);
    host h = {.x = bench_randn(ctx, 2, (int64_t[]){128, 512}, 1),
              .a = bench_randn(ctx, 2, (int64_t[]){512, 8}, 2),
              .b = bench_randn(ctx, 2, (int64_t[]){8, 512}, 3)};
    ctx->null_kernels = true;
    bench_must(tp_graph_create(&h.graph, ctx));
    const bench_entry entries[] = {
        {.name = "three leaves, reset", .call = leaves, .user = &h},
        {.name = "and recording", .call = record_only, .user = &h},
        {.name = "and lookup of the plan", .call = lookup, .user = &h},
        {.name = "and binding, result, commit", .call = whole, .user = &h, .target = 1e-6},
    };
    int status = bench_run(argc, argv, "host's cost of a LoRA forward pass, step by step", entries, 4);
    tp_graph_destroy(h.graph);
    tp_tensor_release(h.x), tp_tensor_release(h.a), tp_tensor_release(h.b);
    tp_context_destroy(ctx);
    return status;
}
