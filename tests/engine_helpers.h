/* What the engine's tests share: one context a test, leaves of known numbers, and reading results.
 *
 * Invariant: each test ends with no allocation alive. */
#ifndef TAPER_TESTS_ENGINE_HELPERS_H
#define TAPER_TESTS_ENGINE_HELPERS_H

#include "must.h"

#include "core/alloc.h"
#include "graph/graph.h"
#include "taper/eager.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHAPE(...) ((int64_t[]){__VA_ARGS__})

static tp_context *ctx;
static tp_graph *g;

static void open_context(const tp_context_options *options) {
    must(tp_context_create(&ctx, options));
    must(tp_graph_create(&g, ctx));
}

static void close_context(void) {
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
    g = NULL;
    ctx = NULL;
}

static void engine_setup(void) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 2;
    open_context(&options);
}

static void engine_teardown(void) {
    close_context();
    cr_assert_eq(tpi_alloc_live(), 0, "%lld allocations left", (long long)tpi_alloc_live());
}

#define ENGINE_SUITE(name) TestSuite(name, .init = engine_setup, .fini = engine_teardown)

static inline tp_tensor *tensor_of(int rank, const int64_t *shape, const float *values) {
    tp_tensor *t;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_F32, rank, shape, values, &t));
    return t;
}

static inline tp_tensor *random_tensor(int rank, const int64_t *shape, uint64_t seed) {
    tp_tensor *t;
    must(tp_tensor_randn(tp_device_cpu(ctx), rank, shape, seed, &t));
    return t;
}

/* A leaf that the graph alone owns. */
static inline tp_lazy *leaf_of(tp_tensor *tensor) {
    tp_lazy *leaf = tp_lazy_from_tensor(g, tensor);
    tp_tensor_release(tensor);
    return leaf;
}

static inline tp_lazy *random_leaf(int rank, const int64_t *shape, uint64_t seed) {
    return leaf_of(random_tensor(rank, shape, seed));
}

static inline tp_lazy *vector4(float a, float b, float c, float d) {
    return leaf_of(tensor_of(1, SHAPE(4), (float[]){a, b, c, d}));
}

/* All elements as f32; freed by the caller. */
static inline float *values_of(const tp_tensor *t) {
    size_t bytes = (size_t)tp_tensor_count(t) * sizeof(float);
    float *values = malloc(bytes + 1);
    must(tp_tensor_read(t, TP_F32, values, bytes));
    return values;
}

static inline void expect_values(const tp_tensor *t, const float *expected, double tolerance) {
    float *values = values_of(t);
    for (int64_t i = 0; i < tp_tensor_count(t); i++)
        cr_assert(fabs((double)values[i] - (double)expected[i]) <= tolerance, "element %lld: %g, expected %g",
                  (long long)i, (double)values[i], (double)expected[i]);
    free(values);
}

#define expect4(t, ...) expect_values(t, (float[]){__VA_ARGS__}, 1e-6)

static inline double largest_difference(const tp_tensor *a, const tp_tensor *b) {
    cr_assert_eq(tp_tensor_count(a), tp_tensor_count(b));
    float *x = values_of(a), *y = values_of(b);
    double largest = 0;
    for (int64_t i = 0; i < tp_tensor_count(a); i++) {
        double d = fabs((double)x[i] - (double)y[i]);
        if (!(d <= largest)) largest = d; /* NaN counts as largest */
    }
    free(x), free(y);
    return largest;
}

static inline tp_tensor *evaluate(tp_lazy *x) {
    tp_tensor *out;
    must(tp_lazy_eval(x, &out));
    return out;
}

/* Steps of the plan for one output whose line holds `part`. */
static inline int steps_with(tp_lazy *const *outputs, int n, const char *part) {
    char *text;
    int found = 0;
    must(tp_graph_explain(g, outputs, n, &text));
    for (const char *line = strchr(text, '\n'); line && line[1]; line = strchr(line + 1, '\n')) {
        const char *end = strchr(line + 1, '\n'), *at = strstr(line + 1, part);
        found += at && at < end;
    }
    tp_free(text);
    return found;
}

static inline tp_context_stats stats(void) {
    tp_context_stats s;
    tp_context_get_stats(ctx, &s);
    return s;
}

#endif
