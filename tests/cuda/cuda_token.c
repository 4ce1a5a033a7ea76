/* A token's way through a transformer block on a GPU: norm, q, k and v with biases, rotation, cache writes,
 * attention, o, residual sums, norm, gate and up with silu·mul, down. A backend may launch several of these
 * steps as one, and read early what no step writes; the numbers are the CPU's within bf16's rounding, token
 * after token: in the first run, the captured and the replayed ones. A token beyond the cache is an error and
 * leaves the cache as it was. */
#include "compare.h"

#define LAYERS  2
#define RUNS    5
#define MOST    8 /* sequences */
#define NEAREST 0.012

/* ---- the block ---- */

typedef struct sizes {
    tp_dtype dtype;
    int64_t batch, length; /* rows of a run: sequences, tokens of each */
    int64_t hidden, heads, groups, head, ffn, capacity;
    int32_t start; /* tokens in the cache before the first run */
} sizes;

enum { Q, K, V, O, GATE, UP, DOWN, LINEARS };

typedef struct layer {
    tp_tensor *w[LINEARS], *bias[LINEARS], *norm[2], *keys, *values;
} layer;

typedef struct block {
    sizes n;
    tp_tensor *x, *start, *frequencies;
    layer layers[LAYERS];
    tp_program *program;
} block;

static void make_layer(layer *l, const sizes *n, tp_device *device, uint64_t seed) {
    const int64_t q = n->heads * n->head, kv = n->groups * n->head;
    const int64_t out[LINEARS] = {q, kv, kv, n->hidden, n->ffn, n->ffn, n->hidden};
    const int64_t in[LINEARS] = {n->hidden, n->hidden, n->hidden, q, n->hidden, n->hidden, n->ffn};
    const int64_t cache[] = {n->batch, n->capacity, n->groups, n->head};
    for (int i = 0; i < LINEARS; i++) {
        const double most = 1.5 / sqrt((double)in[i]);
        l->w[i] = uniform(device, 2, SHAPE(out[i], in[i]), most, seed + (uint64_t)i, n->dtype);
        l->bias[i] = i <= V ? uniform(device, 1, &out[i], 0.5, seed + 10 + (uint64_t)i, n->dtype) : NULL;
    }
    for (int i = 0; i < 2; i++)
        l->norm[i] = uniform(device, 1, &n->hidden, 1, seed + 20 + (uint64_t)i, n->dtype);
    l->keys = uniform(device, 4, cache, 1, seed + 30, n->dtype);
    l->values = uniform(device, 4, cache, 1, seed + 31, n->dtype);
}

static tp_lazy *leaf(tp_tensor *t) {
    return t ? tp_lazy_from_tensor(g, t) : NULL;
}

static tp_lazy *apply(const layer *l, int i, tp_lazy *x) {
    return tp_lazy_linear(x, tp_lazy_transpose(leaf(l->w[i]), 0, 1), leaf(l->bias[i]));
}

static tp_lazy *split(const block *m, tp_lazy *x, int64_t heads) {
    return tp_lazy_reshape(x, 4, SHAPE(m->n.batch, m->n.length, heads, m->n.head));
}

static tp_lazy *remember(tp_tensor *cache, tp_lazy *x, tp_lazy *start) {
    tp_lazy *old = leaf(cache);
    return tp_lazy_assign(old, tp_lazy_cache_write(old, x, start));
}

static tp_lazy *attend(const block *m, const layer *l, tp_lazy *x) {
    const sizes *n = &m->n;
    int32_t steps[MOST];
    for (int t = 0; t < n->length; t++) steps[t] = t;
    tp_lazy *start = leaf(m->start), *frequencies = leaf(m->frequencies);
    tp_lazy *positions = tp_lazy_reshape(start, 2, SHAPE(n->batch, 1));
    if (n->length > 1)
        positions = tp_lazy_add(
            positions, tp_lazy_from_slice(g, tp_tensor_device(m->x), TP_I32, 2, SHAPE(1, n->length), steps));
    tp_lazy *q = apply(l, Q, x), *k = apply(l, K, x), *v = apply(l, V, x);
    q = tp_lazy_rope(split(m, q, n->heads), positions, frequencies, TP_ROPE_HALF);
    k = tp_lazy_rope(split(m, k, n->groups), positions, frequencies, TP_ROPE_HALF);
    k = remember(l->keys, k, start);
    v = remember(l->values, split(m, v, n->groups), start);
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.causal = true, options.start = start;
    tp_lazy *y = tp_lazy_attention(q, k, v, &options);
    return apply(l, O, tp_lazy_reshape(y, 3, SHAPE(n->batch, n->length, n->heads * n->head)));
}

static void make(block *m, const sizes *n, tp_device *device) {
    float frequencies[256];
    *m = (block){.n = *n};
    for (int64_t i = 0; i < n->head / 2; i++)
        frequencies[i] = (float)pow(1e6, -2.0 * (double)i / (double)n->head);
    must(tp_tensor_from_data(device, TP_F32, 1, SHAPE(n->head / 2), frequencies, &m->frequencies), "angles");
    must(tp_tensor_zeros(device, TP_I32, 1, &n->batch, &m->start), "start");
    m->x = uniform(device, 3, SHAPE(n->batch, n->length, n->hidden), 1, 1, n->dtype);
    for (int i = 0; i < LAYERS; i++) make_layer(&m->layers[i], n, device, 100 * (uint64_t)(i + 1));
    tp_lazy *x = leaf(m->x);
    for (int i = 0; i < LAYERS; i++) {
        const layer *l = &m->layers[i];
        x = tp_lazy_add(x, attend(m, l, tp_lazy_rms_norm(x, leaf(l->norm[0]), 1e-6)));
        tp_lazy *y = tp_lazy_rms_norm(x, leaf(l->norm[1]), 1e-6);
        y = tp_lazy_silu_mul(apply(l, GATE, y), apply(l, UP, y));
        x = tp_lazy_add(x, apply(l, DOWN, y));
    }
    must(tp_program_create(&m->program, g, &x, 1), "program");
    tp_graph_reset(g);
}

static void release(block *m) {
    tp_program_destroy(m->program);
    tp_tensor_release(m->x), tp_tensor_release(m->start), tp_tensor_release(m->frequencies);
    for (int i = 0; i < LAYERS; i++) {
        layer *l = &m->layers[i];
        for (int k = 0; k < LINEARS; k++) tp_tensor_release(l->w[k]), tp_tensor_release(l->bias[k]);
        tp_tensor_release(l->norm[0]), tp_tensor_release(l->norm[1]);
        tp_tensor_release(l->keys), tp_tensor_release(l->values);
    }
}

/* Sequence b is b tokens ahead. */
static tp_status run(block *m, int32_t start, tp_tensor **out) {
    int32_t starts[MOST];
    for (int b = 0; b < m->n.batch; b++) starts[b] = start + b;
    must(tp_tensor_write(m->start, starts, (size_t)m->n.batch * sizeof *starts), "write");
    return tp_program_run(m->program, out);
}

/* ---- comparing ---- */

static double cache_distance(const block *a, const block *b) {
    double most = 0;
    for (int i = 0; i < LAYERS; i++) {
        most = fmax(most, distance(a->layers[i].keys, b->layers[i].keys));
        most = fmax(most, distance(a->layers[i].values, b->layers[i].values));
    }
    return most;
}

/* A token beyond the cache, and one that is there again. */
static void overrun(block *m, double before, const block *like) {
    tp_tensor *out = NULL;
    float *values = calloc((size_t)(m->n.batch * m->n.length * m->n.hidden), sizeof *values);
    if (!values) abort();
    tp_status status = run(m, (int32_t)m->n.capacity, &out);
    if (status == TP_OK)
        status = tp_tensor_read(out, TP_F32, values, (size_t)tp_tensor_count(out) * sizeof *values);
    expect(status == TP_EINVAL, "a token beyond the cache is an error");
    expect(cache_distance(m, like) == before, "a token beyond the cache leaves the cache");
    tp_tensor_release(out);
    free(values);
}

static void compare_sizes(tp_device *cpu, tp_device *gpu, const sizes *n) {
    block here, there;
    double worst = 0;
    make(&here, n, cpu), make(&there, n, gpu);
    for (int i = 0; i < RUNS; i++) {
        tp_tensor *wanted = NULL, *got = NULL;
        const int32_t start = n->start + i * (int32_t)n->length;
        must(run(&here, start, &wanted), "run on the CPU");
        must(run(&there, start, &got), "run on the GPU");
        const double apart = distance(got, wanted);
        worst = fmax(worst, apart);
        checks++;
        if (!(apart < NEAREST))
            faults++, printf("FAIL run %d is %.3g of its largest value apart\n", i, apart);
        tp_tensor_release(wanted), tp_tensor_release(got);
    }
    const double caches = cache_distance(&there, &here);
    expect(caches < NEAREST, "the caches are the CPU's");
    overrun(&there, caches, &here);
    printf("%d × %d of %d, %d: within %.2g, caches within %.2g\n", (int)n->batch, (int)n->length,
           (int)n->hidden, (int)n->ffn, worst, caches);
    release(&here), release(&there);
}

static void compare(tp_device *cpu, tp_device *gpu) {
    static const sizes all[] = {
        {TP_BF16, 1, 1, 448, 7, 1, 64, 1216, 64, 33},  /* one stage of weights each */
        {TP_BF16, 1, 1, 1544, 4, 2, 64, 6152, 128, 9}, /* several, the last a part; odd ends */
        {TP_BF16, 2, 2, 896, 14, 2, 64, 1216, 64, 20},
        {TP_BF16, 3, 1, 512, 4, 4, 128, 2304, 512, 300}, /* parts of keys */
        {TP_BF16, 1, 4, 256, 2, 1, 128, 5504, 64, 0},
        {TP_F16, 1, 1, 448, 7, 1, 64, 1216, 64, 33},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) compare_sizes(cpu, gpu, &all[i]);
}

int main(void) {
    return compare_devices(compare);
}
