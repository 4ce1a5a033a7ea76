/* LoRA training steps by hand: forward, loss, gradients, clipping and AdamW are one graph and so one plan.
 * The layer learns the difference between two frozen weights, which has rank 2. */
#include "taper/graph.h"
#include "taper/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 64, FEATURES = 32, RANK = 2, STEPS = 300 };

static void check(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "%s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

typedef struct trained {
    tp_tensor *value, *m, *v; /* the parameter and AdamW's two moments */
} trained;

static trained make_trained(tp_tensor *value) {
    trained t = {value, NULL, NULL};
    tp_device *device = tp_tensor_device(value);
    check(tp_tensor_zeros(device, TP_F32, tp_tensor_rank(value), tp_tensor_shape(value), &t.m));
    check(tp_tensor_zeros(device, TP_F32, tp_tensor_rank(value), tp_tensor_shape(value), &t.v));
    return t;
}

/* 1 / max(1, norm): the gradients together get a norm of at most 1. */
static tp_lazy *clip_scale(tp_graph *g, tp_lazy *const gradients[2]) {
    tp_lazy *squares[2], *one = tp_lazy_ones(g, tp_lazy_device(gradients[0]), TP_F32, 1, (int64_t[]){1});
    for (int i = 0; i < 2; i++)
        squares[i] = tp_lazy_sum(tp_lazy_mul(gradients[i], gradients[i]), TP_ALL_DIMS, false);
    return tp_lazy_div(one, tp_lazy_maximum(one, tp_lazy_sqrt(tp_lazy_add(squares[0], squares[1]))));
}

static float train_step(tp_graph *g, const tp_lora_layer *layer, trained pair[2], tp_tensor *x,
                        tp_tensor *target, tp_tensor *step) {
    tp_lazy *y = tp_lora_forward_lazy(layer, tp_lazy_from_tensor(g, x));
    tp_lazy *error = tp_lazy_sub(y, tp_lazy_from_tensor(g, target));
    tp_lazy *loss = tp_lazy_mean(tp_lazy_mul(error, error), TP_ALL_DIMS, false);
    tp_lazy *parameters[2], *gradients[2];
    for (int i = 0; i < 2; i++) parameters[i] = tp_lazy_from_tensor(g, pair[i].value);
    check(tp_graph_grad(g, loss, parameters, 2, gradients));
    tp_lazy *scale = clip_scale(g, gradients), *rate = tp_lazy_from_tensor(g, step);
    for (int i = 0; i < 2; i++)
        tp_lazy_adamw(parameters[i], tp_lazy_from_tensor(g, pair[i].m), tp_lazy_from_tensor(g, pair[i].v),
                      gradients[i], rate, scale, NULL);
    tp_tensor *out;
    float value;
    check(tp_lazy_eval(loss, &out)); /* the assignments happen too */
    check(tp_tensor_read(out, TP_F32, &value, sizeof value));
    tp_tensor_release(out);
    tp_graph_reset(g);
    return value;
}

int main(void) {
    tp_context *ctx;
    tp_graph *g;
    check(tp_context_create(&ctx, NULL));
    check(tp_graph_create(&g, ctx));
    tp_device *cpu = tp_device_cpu(ctx);

    tp_lora_config config = tp_lora_config_square(FEATURES, RANK);
    tp_lora_layer *layer;
    check(tp_lora_layer_create(&layer, cpu, &config, 1));
    trained pair[2] = {make_trained(tp_lora_layer_a(layer)), make_trained(tp_lora_layer_b(layer))};

    tp_tensor *x, *down, *up, *target, *step;
    check(tp_tensor_randn(cpu, 2, (int64_t[]){ROWS, FEATURES}, 2, &x));
    check(tp_tensor_randn(cpu, 2, (int64_t[]){FEATURES, RANK}, 3, &down));
    check(tp_tensor_randn(cpu, 2, (int64_t[]){RANK, FEATURES}, 4, &up));
    check(tp_tensor_lora_fused(x, down, up, 0.1, &target));
    check(tp_tensor_zeros(cpu, TP_F32, 1, (int64_t[]){3}, &step));

    float first = 0.0f, last = 0.0f;
    for (int t = 1; t <= STEPS;
         t++) { /* what changes from step to step is an input, so one plan serves all */
        const float now[] = {0.02f, 1.0f - powf(0.9f, (float)t), 1.0f - powf(0.999f, (float)t)};
        check(tp_tensor_write(step, now, sizeof now));
        last = train_step(g, layer, pair, x, target, step);
        if (t == 1) first = last;
        if (t == 1 || t % 100 == 0) printf("step %3d: loss %.6f\n", t, (double)last);
    }

    for (int i = 0; i < 2; i++) {
        tp_tensor_release(pair[i].m);
        tp_tensor_release(pair[i].v);
    }
    tp_tensor *all[] = {x, down, up, target, step};
    for (int i = 0; i < 5; i++) tp_tensor_release(all[i]);
    tp_lora_layer_destroy(layer);
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
    return last < 0.01f * first ? 0 : 1;
}
