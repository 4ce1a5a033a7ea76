/* The kinds of operations: each at the dtypes of training, bf16 activations and frozen weights. Weights of
 * linear layers are [out, in], as models hold them; "_f32" kinds have f32 adapters, as training does. */
#include "measure.h"

#include <stdlib.h>

#define SHAPE(...) ((int64_t[]){__VA_ARGS__})
#define BF16       TP_BF16

static double root(double x) {
    return __builtin_sqrt(x);
}

/* ---- products ---- */

/* matmul-MxKxN */
static void matmul(recording *r) {
    const int64_t m = r->size[0], k = r->size[1], n = r->size[2];
    tp_lazy *a = normal(r, BF16, 1, 2, SHAPE(m, k)),
            *b = normal(r, BF16, 1 / root((double)k), 2, SHAPE(k, n));
    r->flops += 2.0 * (double)(m * k * n);
    want(r, tp_lazy_matmul(a, b));
}

/* lora-MxW-rR: 2 · x · a · b, x [M, W], as wide behind as before. */
static void record_lora(recording *r, tp_dtype adapter) {
    const int64_t m = r->size[0], width = r->size[1], rank = r->size[2];
    tp_lazy *x = normal(r, BF16, 1, 2, SHAPE(m, width));
    tp_lazy *a = normal(r, adapter, 1 / root((double)width), 2, SHAPE(width, rank));
    tp_lazy *b = normal(r, adapter, 1 / root((double)rank), 2, SHAPE(rank, width));
    r->flops += 4.0 * (double)(m * width * rank);
    want(r, tp_lazy_lora_fused(x, a, b, 2.0));
}

static void lora(recording *r) {
    record_lora(r, BF16);
}
static void lora_f32(recording *r) {
    record_lora(r, TP_F32);
}

/* An adapted linear layer, or without an adapter: MxIxO or MxIxO-rR. */
typedef struct layer {
    tp_lazy *x, *w, *a, *b;
    int64_t rows, in, out, rank;
} layer;

static double layer_flops(const layer *l) {
    return 2.0 * (double)(l->rows * l->in * l->out) + 2.0 * (double)(l->rows * l->rank * (l->in + l->out));
}

static layer make_layer(recording *r, bool adapted, tp_dtype adapter) {
    layer l = {.rows = r->size[0], .in = r->size[1], .out = r->size[2], .rank = adapted ? r->size[3] : 0};
    l.x = normal(r, BF16, 1, 2, SHAPE(l.rows, l.in));
    l.w = tp_lazy_transpose(normal(r, BF16, 1 / root((double)l.in), 2, SHAPE(l.out, l.in)), 0, 1);
    r->flops += layer_flops(&l);
    if (!adapted) return l;
    l.a = tp_lazy_transpose(normal(r, adapter, 1 / root((double)l.in), 2, SHAPE(l.rank, l.in)), 0, 1);
    l.b = tp_lazy_transpose(normal(r, adapter, 1 / root((double)l.rank), 2, SHAPE(l.out, l.rank)), 0, 1);
    return l;
}

static tp_lazy *forward(const layer *l) {
    return l->rank ? tp_lazy_linear_lora(l->x, l->w, l->a, l->b, 2.0, NULL)
                   : tp_lazy_linear(l->x, l->w, NULL);
}

static void record_forward(recording *r, bool adapted, tp_dtype adapter) {
    layer l = make_layer(r, adapted, adapter);
    want(r, forward(&l));
}

#define GRAD_X     1u
#define GRAD_X_A_B (1u | 4u | 8u)

/* The gradient by x, which costs what the forward pass does. */
static void record_dx(recording *r, bool adapted, tp_dtype adapter) {
    layer l = make_layer(r, adapted, adapter);
    want_gradients(r, forward(&l), normal(r, BF16, 1, 2, SHAPE(l.rows, l.out)), GRAD_X);
}

/* Forward, and the gradients by x, a and b: each pass has two thin products beside its own, and each leaves
 * one for the gradient of a or b, which is another. */
static void record_training(recording *r, tp_dtype adapter) {
    layer l = make_layer(r, true, adapter);
    tp_lazy *y = forward(&l);
    r->flops += layer_flops(&l) + 2.0 * (double)(l.rows * l.rank * (l.in + l.out));
    want(r, y);
    want_gradients(r, y, normal(r, BF16, 1, 2, SHAPE(l.rows, l.out)), GRAD_X_A_B);
}

static void linear(recording *r) {
    record_forward(r, false, BF16);
}
static void linear_dx(recording *r) {
    record_dx(r, false, BF16);
}
static void linear_lora(recording *r) {
    record_forward(r, true, BF16);
}
static void linear_lora_dx(recording *r) {
    record_dx(r, true, BF16);
}
static void linear_lora_grad(recording *r) {
    record_training(r, BF16);
}
static void linear_lora_f32(recording *r) {
    record_forward(r, true, TP_F32);
}
static void linear_lora_f32_grad(recording *r) {
    record_training(r, TP_F32);
}

/* ---- rows: MxN ---- */

static tp_lazy *rows(recording *r) {
    return normal(r, BF16, 1, 2, r->size);
}
static tp_lazy *norm_weight(recording *r) {
    return normal(r, TP_F32, 1, 1, &r->size[1]);
}

static void softmax(recording *r) {
    want(r, tp_lazy_softmax(rows(r), -1));
}

static void softmax_grad(recording *r) {
    tp_lazy *x = rows(r), *dy = rows(r);
    want_gradients(r, tp_lazy_softmax(x, -1), dy, 1);
}

static void rms_norm(recording *r) {
    tp_lazy *x = rows(r), *weight = norm_weight(r);
    want(r, tp_lazy_rms_norm(x, weight, 1e-6));
}

static void rms_norm_grad(recording *r) {
    tp_lazy *x = rows(r), *weight = norm_weight(r), *dy = rows(r);
    want_gradients(r, tp_lazy_rms_norm(x, weight, 1e-6), dy, 1);
}

static void add_rms_norm(recording *r) {
    tp_lazy *a = rows(r), *b = rows(r), *sum = tp_lazy_add(a, b);
    want(r, sum);
    want(r, tp_lazy_rms_norm(sum, norm_weight(r), 1e-6));
}

static void silu_mul(recording *r) {
    tp_lazy *gate = rows(r), *up = rows(r);
    want(r, tp_lazy_silu_mul(gate, up));
}

static void silu_mul_grad(recording *r) {
    tp_lazy *gate = rows(r), *up = rows(r), *dy = rows(r);
    want_gradients(r, tp_lazy_silu_mul(gate, up), dy, 3);
}

/* Six pointwise operations over three operands, interpreted as one chain. */
static void chain(recording *r) {
    tp_lazy *x = rows(r), *y = rows(r), *z = rows(r);
    tp_lazy *sum = tp_lazy_add(tp_lazy_mul(x, y), x);
    want(r, tp_lazy_sub(tp_lazy_mul(sum, tp_lazy_tanh(z)), tp_lazy_mul_scalar(z, 0.5)));
}

/* ---- attention: BxT-HxD-kvG ---- */

/* rope-BxT-HxD */
static void rope(recording *r) {
    const int64_t length = r->size[1], half = r->size[3] / 2;
    int32_t *positions = allocated(calloc((size_t)length, sizeof *positions));
    float *frequencies = allocated(calloc((size_t)half, sizeof *frequencies));
    for (int64_t t = 0; t < length; t++) positions[t] = (int32_t)t;
    for (int64_t i = 0; i < half; i++) frequencies[i] = (float)__builtin_pow(1e6, -(double)i / (double)half);
    tp_lazy *at = tp_lazy_broadcast(values(r, TP_I32, 2, SHAPE(1, length), positions), 2, r->size);
    tp_lazy *by = values(r, TP_F32, 1, &half, frequencies);
    free(positions), free(frequencies);
    want(r, tp_lazy_rope(normal(r, BF16, 1, 4, r->size), at, by, TP_ROPE_HALF));
}

/* Causal; `products` of queries by keys, over the pairs that see each other. */
static tp_lazy *record_attention(recording *r, double products) {
    const int64_t batch = r->size[0], length = r->size[1], heads = r->size[2], wide = r->size[3];
    const int64_t *kv = SHAPE(batch, length, r->size[4], wide);
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.causal = true;
    r->flops += products * (double)(batch * heads * wide) * (double)length * (double)(length + 1);
    tp_lazy *q = normal(r, BF16, 1, 4, r->size), *k = normal(r, BF16, 1, 4, kv),
            *v = normal(r, BF16, 1, 4, kv);
    return tp_lazy_attention(q, k, v, &options);
}

static void attention(recording *r) {
    want(r, record_attention(r, 2));
}

/* Forward and backward: the backward pass has five products, one of them again. */
static void attention_grad(recording *r) {
    tp_lazy *y = record_attention(r, 2 + 5);
    want_gradients(r, y, normal(r, BF16, 1, 4, r->size), 7);
}

/* ---- the ends of a training step ---- */

/* gather-VxW-N: N rows of a table. */
static void gather(recording *r) {
    const double line = 2.0 * (double)r->size[1], all = line * (double)r->size[0];
    tp_lazy *table = normal(r, BF16, 1, 2, r->size);
    r->bytes += line * (double)r->size[2] - all;
    want(r, tp_lazy_gather(table, ids(r, (int32_t)r->size[0], 1, &r->size[2])));
}

/* cross_entropy-MxWxV: losses of rows [M, W] over a vocabulary, and the gradient by the rows. */
static void cross_entropy(recording *r) {
    const int64_t m = r->size[0], width = r->size[1], vocab = r->size[2];
    tp_lazy *h = normal(r, BF16, 1, 2, SHAPE(m, width));
    tp_lazy *w = tp_lazy_transpose(normal(r, BF16, 1 / root((double)width), 2, SHAPE(vocab, width)), 0, 1);
    tp_lazy *loss = tp_lazy_linear_cross_entropy(h, w, ids(r, (int32_t)vocab, 1, &m), -100);
    r->flops += 4.0 * (double)(m * width * vocab);
    want(r, loss);
    want_gradients(r, loss, normal(r, TP_F32, 1, 1, &m), 1);
}

/* Adapters of a model, LxWxF-kvK-rR: the matrices of seven linear layers in each of L layers, of hidden size
 * W and inner size F, with K features of keys. */
static int adapter_shapes(const recording *r, int64_t shapes[14][2]) {
    const int64_t w = r->size[1], f = r->size[2], kv = r->size[3], rank = r->size[4];
    const int64_t features[7][2] = {{w, w}, {w, kv}, {w, kv}, {w, w}, {w, f}, {w, f}, {f, w}};
    for (int i = 0; i < 7; i++) {
        shapes[2 * i][0] = rank, shapes[2 * i][1] = features[i][0];
        shapes[2 * i + 1][0] = features[i][1], shapes[2 * i + 1][1] = rank;
    }
    return 14;
}

static void adamw(recording *r) {
    const float rates[3] = {1e-6f, 0.1f, 0.001f}, one = 1;
    const tp_adamw_options options = TP_ADAMW_OPTIONS_INIT;
    int64_t shapes[14][2];
    const int n = adapter_shapes(r, shapes);
    tp_lazy *step = values(r, TP_F32, 1, SHAPE(3), rates), *scale = values(r, TP_F32, 0, NULL, &one);
    for (int64_t i = 0; i < r->size[0] * n; i++) {
        const int64_t *shape = shapes[i % n];
        tp_lazy *p = state(r, 0.02, 2, shape), *m = state(r, 1e-3, 2, shape), *v = state(r, 1e-6, 2, shape);
        r->bytes += 2.0 * 4 * (double)(shape[0] * shape[1]); /* moments, written too */
        want(r, tp_lazy_adamw(p, m, v, normal(r, TP_F32, 1e-3, 2, shape), step, scale, &options));
    }
}

/* The norm of all gradients together. */
static void squares(recording *r) {
    int64_t shapes[14][2];
    const int n = adapter_shapes(r, shapes);
    tp_lazy *sum = NULL, *some[128];
    int count = 0;
    for (int64_t i = 0; i < r->size[0] * n; i++) {
        some[count++] = normal(r, TP_F32, 1, 2, shapes[i % n]);
        if (count < 128 && i + 1 < r->size[0] * n) continue;
        tp_lazy *squares = tp_lazy_sum_squares(some, count);
        sum = sum ? tp_lazy_add(sum, squares) : squares;
        count = 0;
    }
    want(r, tp_lazy_sqrt(sum));
}

const kind kinds[] = {
    {"matmul", matmul, {40, 96, 72}, true},
    {"lora", lora, {24, 64, 8}, false},
    {"lora_f32", lora_f32, {24, 64, 8}, false},
    {"linear", linear, {40, 64, 96}, false},
    {"linear_dx", linear_dx, {40, 64, 96}, false},
    {"linear_lora", linear_lora, {40, 64, 96, 8}, false},
    {"linear_lora_dx", linear_lora_dx, {40, 64, 96, 8}, false},
    {"linear_lora_grad", linear_lora_grad, {40, 64, 96, 8}, false},
    {"linear_lora_f32", linear_lora_f32, {40, 64, 96, 8}, false},
    {"linear_lora_f32_grad", linear_lora_f32_grad, {40, 64, 96, 8}, false},
    {"softmax", softmax, {24, 512}, false},
    {"softmax_grad", softmax_grad, {24, 512}, false},
    {"rms_norm", rms_norm, {24, 512}, false},
    {"rms_norm_grad", rms_norm_grad, {24, 512}, false},
    {"add_rms_norm", add_rms_norm, {24, 512}, false},
    {"silu_mul", silu_mul, {24, 96}, false},
    {"silu_mul_grad", silu_mul_grad, {24, 96}, false},
    {"chain", chain, {24, 96}, false},
    {"rope", rope, {2, 24, 4, 64}, false},
    {"attention", attention, {2, 80, 4, 64, 2}, false},
    {"attention_grad", attention_grad, {2, 80, 4, 64, 2}, false},
    {"gather", gather, {100, 64, 24}, false},
    {"cross_entropy", cross_entropy, {24, 64, 1000}, true},
    {"adamw", adamw, {2, 64, 96, 32, 8}, true},
    {"squares", squares, {2, 64, 96, 32, 8}, true},
    {NULL, NULL, {0}, false},
};
