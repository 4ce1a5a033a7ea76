/* What programs that hold a GPU's numbers against the CPU's share. A plain program's checks: it runs where
 * only the library does. */
#ifndef TAPER_TESTS_CUDA_COMPARE_H
#define TAPER_TESTS_CUDA_COMPARE_H

#include "taper/taper.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define SHAPE(...) ((int64_t[]){__VA_ARGS__})

static tp_context *ctx;
static tp_graph *g;
static int checks, faults;

static void expect(bool holds, const char *what) {
    checks++;
    if (holds) return;
    faults++;
    printf("FAIL %s\n", what);
}

static void must(tp_status status, const char *what) {
    expect(status == TP_OK, what);
    if (status != TP_OK) printf("     %s\n", tp_error_message());
}

static tp_tensor *uniform(tp_device *device, int rank, const int64_t *shape, double most, uint64_t seed,
                          tp_dtype dtype) {
    tp_tensor *wide = NULL, *t = NULL;
    must(tp_tensor_uniform(device, rank, shape, -most, most, seed, &wide), "uniform");
    must(tp_lazy_eval(tp_lazy_cast(tp_lazy_from_tensor(g, wide), dtype), &t), "cast");
    tp_graph_reset(g);
    tp_tensor_release(wide);
    return t;
}

static float *values_of(const tp_tensor *t) {
    const size_t bytes = (size_t)tp_tensor_count(t) * sizeof(float);
    float *values = calloc(1, bytes);
    if (!values) abort();
    must(tp_tensor_read(t, TP_F32, values, bytes), "read");
    return values;
}

/* The largest difference, of the largest value. */
static double distance(const tp_tensor *a, const tp_tensor *b) {
    float *x = values_of(a), *y = values_of(b);
    double most = 0, apart = 0;
    for (int64_t i = 0; i < tp_tensor_count(a); i++) {
        most = fmax(most, fabs((double)y[i]));
        apart = isfinite(x[i]) ? fmax(apart, fabs((double)x[i] - (double)y[i])) : INFINITY;
    }
    free(x), free(y);
    return apart / most;
}

/* What main does: 77, saying why, where there is no GPU. */
static int compare_devices(void (*compare)(tp_device *cpu, tp_device *gpu)) {
    if (tp_context_create(&ctx, NULL) != TP_OK || tp_graph_create(&g, ctx) != TP_OK) return 1;
    tp_device *gpu = tp_device_cuda(ctx, 0);
    if (gpu) {
        compare(tp_device_cpu(ctx), gpu);
        printf("%d checks, %d faults\n", checks, faults);
    } else
        printf("skipped: %s\n", tp_error_message());
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
    return !gpu ? 77 : faults > 0;
}

#endif
