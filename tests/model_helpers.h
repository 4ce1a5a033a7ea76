/* What the tests of models and adapters share: a context, golden files, and differences. */
#ifndef TAPER_TESTS_MODEL_HELPERS_H
#define TAPER_TESTS_MODEL_HELPERS_H

#include "must.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/safetensors.h"
#include "taper/adapter.h"
#include "taper/lora.h"
#include "taper/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN TAPER_TEST_DATA "/golden/models/"

static inline tp_context *make_context(void) {
    tp_context *ctx;
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 2;
    must(tp_context_create(&ctx, &options));
    return ctx;
}

static inline tp_graph *make_graph(tp_context *ctx) {
    tp_graph *g;
    must(tp_graph_create(&g, ctx));
    return g;
}

static inline float *read_f32(const tp_tensor *t) {
    size_t bytes = (size_t)tp_tensor_count(t) * sizeof(float);
    float *values = malloc(bytes + 1);
    must(tp_tensor_read(t, TP_F32, values, bytes));
    return values;
}

static inline double max_difference(const float *a, const float *b, size_t count) {
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= largest)) largest = d; /* NaN counts as largest */
    }
    return largest;
}

static inline double tensor_difference(const tp_tensor *a, const tp_tensor *b) {
    cr_assert_eq(tp_tensor_count(a), tp_tensor_count(b));
    float *x = read_f32(a), *y = read_f32(b);
    double d = max_difference(x, y, (size_t)tp_tensor_count(a));
    free(x);
    free(y);
    return d;
}

/* The value of a node, which is evaluated alone. */
static inline tp_tensor *value_of(tp_lazy *x, tp_graph *g) {
    tp_tensor *out = NULL;
    cr_assert(x, "%s", tp_error_message());
    must(tp_lazy_eval(x, &out));
    cr_assert_eq(tp_graph_status(g), TP_OK);
    return out;
}

/* ---- golden files ---- */

typedef struct golden {
    char path[512];
    tpi_safetensors *st;
} golden;

static inline golden open_golden(const char *model) {
    golden g;
    snprintf(g.path, sizeof g.path, GOLDEN "%s/golden.safetensors", model);
    must(tpi_safetensors_open(g.path, &g.st));
    snprintf(g.path, sizeof g.path, GOLDEN "%s", model);
    return g;
}

static inline const tpi_st_tensor *golden_find(const golden *g, const char *prefix, const char *name) {
    char full[128];
    snprintf(full, sizeof full, "%s%s%s", prefix, *prefix ? "." : "", name);
    const tpi_st_tensor *t;
    must(tpi_safetensors_get(g->st, full, &t));
    return t;
}

/* An i32 array as a tensor of this shape. */
static inline tp_tensor *golden_ids(const golden *g, tp_device *device, const char *name, int rank,
                                    const int64_t *shape) {
    const tpi_st_tensor *t = golden_find(g, "", name);
    tp_tensor *out;
    must(tp_tensor_from_data(device, TP_I32, rank, shape, t->data, &out));
    return out;
}

#endif
