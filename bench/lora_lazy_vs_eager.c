/* LoRA's forward pass, [128, 512], rank 8: eager, lazy, and what the host adds to the kernels. */
#include "ways.h"

enum { ROWS = 128, FEATURES = 512, RANK = 8 };

typedef struct layer {
    ways_tensor x, a, b;
} layer;

static tp_lazy *record(ways *w, tp_graph *g) {
    const layer *l = w->user;
    return tp_lazy_lora_fused(ways_leaf(w, g, &l->x), ways_leaf(w, g, &l->a), ways_leaf(w, g, &l->b), 2.0);
}

static void eager(ways *w) {
    const layer *l = w->user;
    tp_tensor *out;
    bench_must(tp_tensor_lora_fused(l->x.in[0], l->a.in[0], l->b.in[0], 2.0, &out));
    tp_tensor_release(out);
}

int main(int argc, char **argv) {
    layer l;
    ways w = {.record = record, .eager = eager, .user = &l};
    w.names[0] = "eager", w.names[1] = "lazy, cached plan", w.names[2] = "lazy, cold plan",
    w.names[3] = "host alone";
    w.flops = 2.0 * 2 * ROWS * FEATURES * RANK;
    w.host_target = 1e-6;
    ways_open(&w, argc, argv);
    ways_randn(&w, 2, (int64_t[]){ROWS, FEATURES}, 1, &l.x);
    ways_randn(&w, 2, (int64_t[]){FEATURES, RANK}, 2, &l.a);
    ways_randn(&w, 2, (int64_t[]){RANK, FEATURES}, 3, &l.b);
    bench_entry entries[WAYS];
    ways_entries(&w, entries);
    int status = bench_run(argc, argv, "LoRA forward, x [128, 512], rank 8", entries, WAYS);
    ways_release(&l.x), ways_release(&l.a), ways_release(&l.b);
    ways_close(&w);
    return status;
}
