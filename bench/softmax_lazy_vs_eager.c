/* softmax over rows of [4096, 4096]: one read and one write of memory, against copying. */
#include "ways.h"

enum { SIDE = 4096 };

static tp_lazy *record(ways *w, tp_graph *g) {
    return tp_lazy_softmax(ways_leaf(w, g, w->user), -1);
}

static void eager(ways *w) {
    const ways_tensor *x = w->user;
    tp_tensor *out;
    bench_must(tp_tensor_softmax(x->in[0], -1, &out));
    tp_tensor_release(out);
}

int main(int argc, char **argv) {
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
    int status = bench_run(argc, argv, "softmax over rows of [4096, 4096]", entries, WAYS);
    ways_release(&x);
    ways_close(&w);
    return status;
}
