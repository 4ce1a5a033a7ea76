/* The loss with its output product on a GPU, over vocabularies of several slices, beside the CPU's: losses
 * and the gradient by h, of rows whose logits stay where the first slice saw them, and of rows that rise far
 * beyond it.
 *
 *   cuda_loss [ROWS]   only shapes of so many rows at most, for compute-sanitizer */
#include "compare.h"

#include <limits.h>

#define RUNS   4
#define IGNORE (-100)

typedef struct shape {
    int64_t rows, features, vocabulary;
    double rise; /* the columns of the later half of the vocabulary are larger by this factor */
} shape;

typedef struct head {
    tp_tensor *h, *w, *labels;
} head;

/* Labels at the ends of the vocabulary and of what may be slices; every seventh row is left out. */
static tp_tensor *some_labels(tp_device *device, const shape *s) {
    const int64_t ends[] = {0, 1023, 1024, s->vocabulary - 1, s->vocabulary / 2};
    tp_tensor *t = NULL;
    int32_t *labels = calloc((size_t)s->rows, sizeof *labels);
    if (!labels) abort();
    for (int64_t i = 0; i < s->rows; i++)
        labels[i] = (int32_t)(i % 7 == 3 ? IGNORE : i % 3 == 0 ? ends[i / 3 % 5] : i * 7919 % s->vocabulary);
    must(tp_tensor_from_data(device, TP_I32, 1, &s->rows, labels, &t), "labels");
    free(labels);
    return t;
}

static head make(tp_device *device, const shape *s) {
    const int64_t early = s->vocabulary / 2;
    head m = {uniform(device, 2, SHAPE(s->rows, s->features), 1, 1, TP_BF16), NULL, some_labels(device, s)};
    tp_tensor *low = uniform(device, 2, SHAPE(early, s->features), 0.2, 2, TP_BF16);
    tp_tensor *high =
        uniform(device, 2, SHAPE(s->vocabulary - early, s->features), 0.2 * s->rise, 3, TP_BF16);
    tp_lazy *parts[] = {tp_lazy_from_tensor(g, low), tp_lazy_from_tensor(g, high)};
    must(tp_lazy_eval(tp_lazy_concat(parts, 2, 0), &m.w), "w");
    tp_graph_reset(g);
    tp_tensor_release(low), tp_tensor_release(high);
    return m;
}

static void release(head *m) {
    tp_tensor_release(m->h), tp_tensor_release(m->w), tp_tensor_release(m->labels);
}

/* out: the losses and the gradient of their sum by h; or the losses alone. */
static void evaluate(const head *m, bool gradient, tp_tensor *out[2]) {
    tp_lazy *h = tp_lazy_from_tensor(g, m->h), *w = tp_lazy_transpose(tp_lazy_from_tensor(g, m->w), 0, 1);
    tp_lazy *wanted[2] = {tp_lazy_linear_cross_entropy(h, w, tp_lazy_from_tensor(g, m->labels), IGNORE)};
    if (gradient)
        must(tp_graph_grad(g, tp_lazy_sum(wanted[0], TP_ALL_DIMS, false), &h, 1, &wanted[1]), "grad");
    must(tp_graph_eval(g, wanted, gradient ? 2 : 1, out), "eval");
    tp_graph_reset(g);
}

static void expect_near(double apart, double most, const char *what, const shape *s, int run) {
    checks++;
    if (apart <= most) return;
    faults++;
    printf("FAIL %d x %d, rise %g, run %d: %s are %.3g of their largest apart\n", (int)s->rows,
           (int)s->vocabulary, s->rise, run, what, apart);
}

static void compare_shape(tp_device *cpu, tp_device *gpu, const shape *s) {
    head here = make(cpu, s), there = make(gpu, s);
    tp_tensor *wanted[2], *got[2], *alone[2];
    double worst[2] = {0};
    evaluate(&here, true, wanted);
    for (int run = 0; run < RUNS; run++) {
        evaluate(&there, true, got);
        evaluate(&there, false, alone);
        const double apart[2] = {distance(got[0], wanted[0]), distance(got[1], wanted[1])};
        expect_near(apart[0], 2e-5, "losses", s, run);
        expect_near(distance(alone[0], wanted[0]), 2e-5, "losses without gradients", s, run);
        expect_near(apart[1], 0x1p-7, "gradients", s, run);
        for (int i = 0; i < 2; i++) worst[i] = fmax(worst[i], apart[i]), tp_tensor_release(got[i]);
        tp_tensor_release(alone[0]);
    }
    printf("%d x %d x %d, rise %g: losses within %.2g, gradients %.2g\n", (int)s->rows, (int)s->features,
           (int)s->vocabulary, s->rise, worst[0], worst[1]);
    for (int i = 0; i < 2; i++) tp_tensor_release(wanted[i]);
    release(&here), release(&there);
}

static long most_rows = LONG_MAX;

static void compare(tp_device *cpu, tp_device *gpu) {
    static const shape shapes[] = {
        {300, 64, 3001, 1},   {300, 72, 3001, 40},   {1, 64, 2048, 400},
        {2200, 64, 70000, 1}, {2200, 64, 70000, 90}, {130, 200, 5000, 8},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (shapes[i].rows <= most_rows) compare_shape(cpu, gpu, &shapes[i]);
}

int main(int argc, char **argv) {
    if (argc > 1) most_rows = strtol(argv[1], NULL, 10);
    return compare_devices(compare);
}
