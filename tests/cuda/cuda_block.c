/* A transformer block of adapted layers on a GPU: q, k and v of one x, gate and up with silu·mul, norms and
 * residual sums, and the gradients by all of it. A backend may launch several of these steps as one; the
 * numbers are the CPU's within bf16's rounding, in every run: the first, the captured and the replayed one.
 */
#include "compare.h"

#define ROWS   320
#define WIDE   192
#define NARROW 64
#define HIDDEN 448
#define LAYERS 7
#define WANTED (2 * LAYERS + 1)
#define RUNS   4

/* ---- the block ---- */

typedef struct layer {
    int64_t in, out;
    bool biased;
} layer;

enum { Q, K, V, O, GATE, UP, DOWN };
static const layer layers[LAYERS] = {
    [Q] = {WIDE, WIDE, true},       [K] = {WIDE, NARROW, true},     [V] = {WIDE, NARROW, true},
    [O] = {WIDE, WIDE, false},      [GATE] = {WIDE, HIDDEN, false}, [UP] = {WIDE, HIDDEN, false},
    [DOWN] = {HIDDEN, WIDE, false},
};

typedef struct block {
    tp_tensor *x, *norm, *mix;
    tp_tensor *w[LAYERS], *a[LAYERS], *b[LAYERS], *bias[LAYERS];
    tp_lazy *wanted[WANTED];
} block;

/* Of all the block's adapters. */
typedef struct adapters {
    int64_t rank;
    tp_dtype dtype;
} adapters;

static void make(block *m, tp_device *device, adapters of) {
    m->x = uniform(device, 2, SHAPE(ROWS, WIDE), 1, 1, TP_BF16);
    m->norm = uniform(device, 2, SHAPE(1, WIDE), 1, 2, TP_BF16);
    m->mix = uniform(device, 2, SHAPE(NARROW, WIDE), 0.2, 3, TP_BF16);
    for (int i = 0; i < LAYERS; i++) {
        const layer *l = &layers[i];
        const uint64_t seed = 10 + 4 * (uint64_t)i;
        m->w[i] = uniform(device, 2, SHAPE(l->out, l->in), 0.1, seed, TP_BF16);
        m->a[i] = uniform(device, 2, SHAPE(of.rank, l->in), 0.1, seed + 1, of.dtype);
        m->b[i] = uniform(device, 2, SHAPE(l->out, of.rank), 0.3, seed + 2, of.dtype);
        m->bias[i] = l->biased ? uniform(device, 2, SHAPE(1, l->out), 0.5, seed + 3, TP_BF16) : NULL;
    }
}

static void release(block *m) {
    tp_tensor_release(m->x), tp_tensor_release(m->norm), tp_tensor_release(m->mix);
    for (int i = 0; i < LAYERS; i++) {
        tp_tensor_release(m->w[i]), tp_tensor_release(m->a[i]), tp_tensor_release(m->b[i]);
        if (m->bias[i]) tp_tensor_release(m->bias[i]);
    }
}

static tp_lazy *apply(block *m, int i, tp_lazy *x) {
    tp_lazy *a = tp_lazy_from_tensor(g, m->a[i]), *b = tp_lazy_from_tensor(g, m->b[i]);
    tp_lazy *w = tp_lazy_transpose(tp_lazy_from_tensor(g, m->w[i]), 0, 1);
    tp_lazy *bias =
        m->bias[i] ? tp_lazy_reshape(tp_lazy_from_tensor(g, m->bias[i]), 1, SHAPE(layers[i].out)) : NULL;
    m->wanted[2 * i] = a, m->wanted[2 * i + 1] = b;
    return tp_lazy_linear_lora(x, w, tp_lazy_transpose(a, 0, 1), tp_lazy_transpose(b, 0, 1), 2.0, bias);
}

/* The block's loss; its gradients by all adapters and x are wanted. */
static tp_lazy *record(block *m) {
    tp_lazy *x = tp_lazy_from_tensor(g, m->x), *mix = tp_lazy_from_tensor(g, m->mix);
    tp_lazy *weight = tp_lazy_reshape(tp_lazy_from_tensor(g, m->norm), 1, SHAPE(WIDE));
    m->wanted[WANTED - 1] = x;
    tp_lazy *n = tp_lazy_rms_norm(x, weight, 1e-6);
    tp_lazy *q = apply(m, Q, n), *k = apply(m, K, n), *v = apply(m, V, n);
    tp_lazy *heads = tp_lazy_mul(tp_lazy_tanh(q), tp_lazy_matmul(tp_lazy_mul(k, v), mix));
    x = tp_lazy_add(x, apply(m, O, heads));
    n = tp_lazy_rms_norm(x, weight, 1e-6);
    tp_lazy *gate = apply(m, GATE, n), *up = apply(m, UP, n);
    x = tp_lazy_add(x, apply(m, DOWN, tp_lazy_silu_mul(gate, up)));
    tp_lazy *out = tp_lazy_cast(tp_lazy_rms_norm(x, weight, 1e-6), TP_F32);
    return tp_lazy_sum(tp_lazy_mul(out, tp_lazy_tanh(out)), TP_ALL_DIMS, false);
}

/* out: the gradients. */
static void evaluate(block *m, tp_tensor **out) {
    tp_lazy *grads[WANTED];
    tp_lazy *loss = record(m);
    must(tp_graph_grad(g, loss, m->wanted, WANTED, grads), "grad");
    must(tp_graph_eval(g, grads, WANTED, out), "eval");
    tp_graph_reset(g);
}

/* ---- comparing ---- */

static double expect_near(const tp_tensor *got, const tp_tensor *wanted, double most, adapters of, int run,
                          const char *what, int i) {
    const double apart = distance(got, wanted);
    checks++;
    if (apart < most) return apart;
    faults++;
    printf("FAIL rank %d, %s, run %d: %s %d is %.3g of its largest value apart\n", (int)of.rank,
           tp_dtype_name(of.dtype), run, what, i, apart);
    return apart;
}

static void compare_gradients(tp_device *cpu, tp_device *gpu, adapters of) {
    block here, there;
    tp_tensor *wanted[WANTED], *got[WANTED];
    make(&here, cpu, of), make(&there, gpu, of);
    evaluate(&here, wanted);
    for (int run = 0; run < RUNS; run++) {
        double worst = 0;
        evaluate(&there, got);
        for (int i = 0; i < WANTED; i++) {
            worst = fmax(worst, expect_near(got[i], wanted[i], 0.03, of, run, "gradient", i));
        }
        if (run == RUNS - 1)
            printf("rank %d, %s: gradients within %.2g\n", (int)of.rank, tp_dtype_name(of.dtype), worst);
        for (int i = 0; i < WANTED; i++) tp_tensor_release(got[i]);
    }
    for (int i = 0; i < WANTED; i++) tp_tensor_release(wanted[i]);
    release(&here), release(&there);
}

/* What a sum of layers, and of a norm's gradient, is made of is wanted, too. */
enum { A_LAYER, ANOTHER, THEIR_SUM, SLOPE, SLOPE_SUM, PARTS };

static void evaluate_parts(block *m, tp_tensor **out) {
    tp_lazy *x = tp_lazy_from_tensor(g, m->x), *parts[PARTS];
    tp_lazy *weight = tp_lazy_reshape(tp_lazy_from_tensor(g, m->norm), 1, SHAPE(WIDE));
    parts[A_LAYER] = apply(m, O, x), parts[ANOTHER] = apply(m, O, tp_lazy_tanh(x));
    parts[THEIR_SUM] = tp_lazy_add(parts[A_LAYER], parts[ANOTHER]);
    tp_lazy *norm = tp_lazy_rms_norm(x, weight, 1e-6);
    must(tp_graph_grad(g, tp_lazy_sum(tp_lazy_mul(norm, tp_lazy_tanh(norm)), TP_ALL_DIMS, false), &x, 1,
                       &parts[SLOPE]),
         "grad");
    parts[SLOPE_SUM] = tp_lazy_add(parts[SLOPE], x);
    must(tp_graph_eval(g, parts, PARTS, out), "eval");
    tp_graph_reset(g);
}

static void compare_parts(tp_device *cpu, tp_device *gpu, adapters of) {
    block here, there;
    tp_tensor *wanted[PARTS], *got[PARTS];
    make(&here, cpu, of), make(&there, gpu, of);
    evaluate_parts(&here, wanted);
    for (int run = 0; run < RUNS; run++) {
        evaluate_parts(&there, got);
        for (int i = 0; i < PARTS; i++) {
            expect_near(got[i], wanted[i], 0.01, of, run, "part", i);
            tp_tensor_release(got[i]);
        }
    }
    for (int i = 0; i < PARTS; i++) tp_tensor_release(wanted[i]);
    release(&here), release(&there);
}

static int64_t most_ranks = INT64_MAX;

static void compare(tp_device *cpu, tp_device *gpu) {
    static const adapters all[] = {{8, TP_F32},   {3, TP_F32},  {12, TP_F32}, {20, TP_F32},  {8, TP_BF16},
                                   {16, TP_BF16}, {40, TP_F32}, {72, TP_F32}, {131, TP_F32}, {256, TP_F32}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].rank > most_ranks) continue;
        compare_gradients(cpu, gpu, all[i]);
        compare_parts(cpu, gpu, all[i]);
    }
}

/* cuda_block [MOST_RANKS] */
int main(int argc, char **argv) {
    if (argc > 1) most_ranks = strtol(argv[1], NULL, 10);
    return compare_devices(compare);
}
