/* softmax over rows of [4096, 4096]: one read and one write of memory, against copying. */
#include "ways.h"

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
    return ways_rows(argc, argv, "softmax over rows of [4096, 4096]", record, eager);
}
