/* Gradients: a line is fitted to points by gradient descent. The gradients are recorded in the same graph as
 * the loss, and the new weights are assigned by it, so a step is one evaluation. */
#include "taper/graph.h"
#include "taper/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define POINTS 64

static void check(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "%s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

/* One step: loss = mean((x · slope + offset - y)²); each parameter moves against its gradient. */
static float descend(tp_graph *g, tp_tensor *x, tp_tensor *y, tp_tensor *slope, tp_tensor *offset) {
    tp_lazy *parameters[] = {tp_lazy_from_tensor(g, slope), tp_lazy_from_tensor(g, offset)}, *gradients[2];
    tp_lazy *line = tp_lazy_add(tp_lazy_mul(tp_lazy_from_tensor(g, x), parameters[0]), parameters[1]);
    tp_lazy *error = tp_lazy_sub(line, tp_lazy_from_tensor(g, y));
    tp_lazy *loss = tp_lazy_mean(tp_lazy_mul(error, error), TP_ALL_DIMS, false);
    check(tp_graph_grad(g, loss, parameters, 2, gradients));
    for (int i = 0; i < 2; i++)
        tp_lazy_assign(parameters[i], tp_lazy_sub(parameters[i], tp_lazy_mul_scalar(gradients[i], 0.5)));

    tp_tensor *out;
    float value;
    check(tp_lazy_eval(loss, &out));
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

    float xs[POINTS], ys[POINTS], slope_value, offset_value;
    for (int i = 0; i < POINTS; i++) {
        xs[i] = (float)i / (POINTS / 2) - 1.0f;
        ys[i] = 3.0f * xs[i] - 0.5f;
    }
    tp_tensor *x, *y, *slope, *offset;
    check(tp_tensor_from_data(cpu, TP_F32, 1, (int64_t[]){POINTS}, xs, &x));
    check(tp_tensor_from_data(cpu, TP_F32, 1, (int64_t[]){POINTS}, ys, &y));
    check(tp_tensor_zeros(cpu, TP_F32, 1, (int64_t[]){1}, &slope));
    check(tp_tensor_zeros(cpu, TP_F32, 1, (int64_t[]){1}, &offset));

    for (int step = 0; step <= 40; step++) {
        float loss = descend(g, x, y, slope, offset);
        if (step % 10 == 0) printf("step %2d: loss %.6f\n", step, (double)loss);
    }
    check(tp_tensor_read(slope, TP_F32, &slope_value, sizeof slope_value));
    check(tp_tensor_read(offset, TP_F32, &offset_value, sizeof offset_value));
    printf("y = %.3f x + %.3f\n", (double)slope_value, (double)offset_value);

    tp_tensor *all[] = {x, y, slope, offset};
    for (int i = 0; i < 4; i++) tp_tensor_release(all[i]);
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
    return fabsf(slope_value - 3.0f) < 1e-3f && fabsf(offset_value + 0.5f) < 1e-3f ? 0 : 1;
}
