/* A thousand additions of [16]: what one node costs. */
#include "ways.h"

enum { LENGTH = 1000 };

typedef struct operands {
    ways_tensor x, y;
} operands;

static tp_lazy *record(ways *w, tp_graph *g) {
    const operands *o = w->user;
    tp_lazy *h = ways_leaf(w, g, &o->x), *y = ways_leaf(w, g, &o->y);
    for (int i = 0; i < LENGTH; i++) h = tp_lazy_add(h, y);
    return h;
}

static void eager(ways *w) {
    const operands *o = w->user;
    tp_tensor *h = tp_tensor_retain(o->x.in[0]), *next;
    for (int i = 0; i < LENGTH; i++) {
        bench_must(tp_tensor_add(h, o->y.in[0], &next));
        tp_tensor_release(h);
        h = next;
    }
    tp_tensor_release(h);
}

int main(int argc, char **argv) {
    operands o;
    ways w = {.record = record, .eager = eager, .user = &o};
    w.names[0] = "eager, a call", w.names[1] = "lazy, cached plan, a node",
    w.names[2] = "lazy, cold plan, a node";
    w.names[3] = "host alone, a node";
    w.units = LENGTH;
    w.host_target = 20e-9;
    ways_open(&w, argc, argv);
    ways_randn(&w, 1, (int64_t[]){16}, 1, &o.x);
    ways_randn(&w, 1, (int64_t[]){16}, 2, &o.y);
    bench_entry entries[WAYS];
    ways_entries(&w, entries);
    for (int i = 0; i < WAYS; i++) entries[i].per = LENGTH;
    entries[1].target = w.host_target;
    int status = bench_run(argc, argv, "1,000 additions of [16]", entries, WAYS);
    ways_release(&o.x), ways_release(&o.y);
    ways_close(&w);
    return status;
}
