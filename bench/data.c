/* Inputs and the comparison of results.
 *
 *     bench_data normal OUT.npy SEED SCALE SIZE...    f32, normal with this deviation
 *     bench_data ids OUT.npy SEED VOCABULARY SIZE...  i32, uniform in [0, VOCABULARY)
 *     bench_data compare A.npy B.npy                  prints max |a - b| / max |b|; fails on another shape
 *
 * The same seed gives the same file everywhere. */
#include "npy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what) {
    fprintf(stderr, "bench_data: %s\n", what);
    return 1;
}

static int make(bool normal, const char *path, uint64_t seed, double scale, int rank, const int64_t *shape) {
    tp_context *ctx;
    tp_tensor *values;
    if (tp_context_create(&ctx, NULL) != TP_OK) return fail(tp_error_message());
    tp_device *cpu = tp_device_cpu(ctx);
    tp_status status = normal ? tp_tensor_randn(cpu, rank, shape, seed, &values)
                              : tp_tensor_uniform(cpu, rank, shape, 0.0, scale, seed, &values);
    if (status != TP_OK) return fail(tp_error_message());
    size_t count = (size_t)tp_tensor_count(values);
    const float *from = tp_tensor_data(values);
    float *scaled = malloc(count * 4 + 1);
    int32_t *ids = (int32_t *)(void *)scaled;
    if (!from || !scaled) return fail("out of memory");
    for (size_t i = 0; i < count; i++) {
        if (normal)
            scaled[i] = from[i] * (float)scale;
        else
            ids[i] = from[i] < (float)scale ? (int32_t)from[i] : (int32_t)scale - 1;
    }
    npy_write(path, normal ? TP_F32 : TP_I32, rank, shape, scaled);
    free(scaled);
    tp_tensor_release(values);
    tp_context_destroy(ctx);
    return 0;
}

static int compare(const char *a_path, const char *b_path) {
    npy a = npy_read(a_path), b = npy_read(b_path);
    if (a.dtype != b.dtype || a.rank != b.rank || memcmp(a.shape, b.shape, sizeof a.shape) != 0)
        return fail("shapes or dtypes differ");
    if (a.dtype != TP_F32) return fail("only f32 is compared");
    const float *x = a.data, *y = b.data;
    double largest = 0, apart = 0;
    for (int64_t i = 0; i < a.count; i++) {
        double difference = fabs((double)x[i] - (double)y[i]);
        if (!(difference <= apart)) apart = difference; /* and keeps a NaN, which makes no comparison true */
        if (isnan(difference)) break;
        largest = fmax(largest, fabs((double)y[i]));
    }
    printf("%.6g\n", apart == 0 ? 0.0 : apart / largest);
    npy_free(&a), npy_free(&b);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "compare") == 0) return compare(argv[2], argv[3]);
    bool normal = argc > 1 && strcmp(argv[1], "normal") == 0;
    if (argc < 6 || argc - 5 > TP_MAX_RANK || (!normal && strcmp(argv[1], "ids") != 0))
        return fail("usage: normal|ids OUT.npy SEED SCALE SIZE... or compare A.npy B.npy");
    int64_t shape[TP_MAX_RANK];
    for (int i = 5; i < argc; i++) shape[i - 5] = atoll(argv[i]);
    return make(normal, argv[2], strtoull(argv[3], NULL, 10), atof(argv[4]), argc - 5, shape);
}
