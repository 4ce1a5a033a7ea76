/* A chain of eight LoRA layers: eight eager calls against one lazy evaluation. */
#include "ways.h"

enum { ROWS = 128, FEATURES = 512, RANK = 8, LAYERS = 8 };

typedef struct chain {
    ways_tensor x, a[LAYERS], b[LAYERS];
} chain;

static tp_lazy *record(ways *w, tp_graph *g) {
    const chain *c = w->user;
    tp_lazy *h = ways_leaf(w, g, &c->x);
    for (int i = 0; i < LAYERS; i++)
        h = tp_lazy_lora_fused(h, ways_leaf(w, g, &c->a[i]), ways_leaf(w, g, &c->b[i]), 0.01);
    return h;
}

static void eager(ways *w) {
    const chain *c = w->user;
    tp_tensor *h = tp_tensor_retain(c->x.in[0]), *next;
    for (int i = 0; i < LAYERS; i++) {
        bench_must(tp_tensor_lora_fused(h, c->a[i].in[0], c->b[i].in[0], 0.01, &next));
        tp_tensor_release(h);
        h = next;
    }
    tp_tensor_release(h);
}

int main(int argc, char **argv) {
    chain c;
    ways w = {.record = record, .eager = eager, .user = &c};
    w.names[0] = "eight eager calls", w.names[1] = "lazy, cached plan", w.names[2] = "lazy, cold plan";
    w.names[3] = "host alone, a layer";
    w.flops = 2.0 * 2 * ROWS * FEATURES * RANK * LAYERS;
    w.units = LAYERS;
    w.host_target = 1e-6;
    ways_open(&w, argc, argv);
    ways_randn(&w, 2, (int64_t[]){ROWS, FEATURES}, 1, &c.x);
    for (int i = 0; i < LAYERS; i++) {
        ways_randn(&w, 2, (int64_t[]){FEATURES, RANK}, (uint64_t)i + 2, &c.a[i]);
        ways_randn(&w, 2, (int64_t[]){RANK, FEATURES}, (uint64_t)i + 20, &c.b[i]);
    }
    bench_entry entries[WAYS];
    ways_entries(&w, entries);
    int status = bench_run(argc, argv, "chain of eight LoRA layers, x [128, 512], rank 8", entries, WAYS);
    ways_release(&c.x);
    for (int i = 0; i < LAYERS; i++) ways_release(&c.a[i]), ways_release(&c.b[i]);
    ways_close(&w);
    return status;
}
