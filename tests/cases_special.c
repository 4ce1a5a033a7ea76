/* What the case table's smooth numbers do not reach: bad indices, NaN and infinities, and skipped updates,
 * for every kernel of the operation. */
#include "cases_run.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#define ATTR(type, ...) &(const type){__VA_ARGS__}, sizeof(type)

/* Puts values into the first elements of input k. */
static void poke(case_run *run, int k, int n, const float *values) {
    memcpy(run->pointers[k], values, (size_t)n * sizeof *values);
}

static void poke_ints(case_run *run, int k, int n, const int32_t *values) {
    memcpy(run->pointers[k], values, (size_t)n * sizeof *values);
}

/* ---- indices ---- */

/* Every kernel refuses index `bad` at position `at` of input k with this text, and writes nothing. */
static void expect_refused(op_case from, int k, int at, int32_t bad, const char *text) {
    case_instance instance;
    tpi_threads *threads;
    cr_assert_eq(tpi_threads_create(&threads, 2), TP_OK);
    case_instantiate(&from, TP_F32, &instance);
    for (int i = 0; i < case_kernel_count(from.op); i++) {
        const tpi_kernel *kernel = &tpi_backend_cpu()->kernels(from.op)[i];
        case_run run;
        tp_status status;
        case_run_init(&run, &instance);
        ((int32_t *)run.pointers[k])[at] = bad;
        if (case_run_kernel(&run, kernel, threads, &status)) {
            cr_expect_eq(status, TP_EINVAL, "%s: %s took index %d", tpi_ops[from.op].name, kernel->name, bad);
            cr_expect(strstr(tp_error_message(), text), "%s says \"%s\", not \"%s\"", kernel->name,
                      tp_error_message(), text);
            const case_block *out = &run.blocks[instance.n_in];
            for (size_t b = 0; b < out->bytes; b++)
                cr_assert_eq(out->data[b], out->data[0], "%s: %s wrote before it failed",
                             tpi_ops[from.op].name, kernel->name);
        }
        case_run_clear(&run);
    }
    tpi_threads_destroy(threads);
}

Test(special, indices_are_checked) {
    op_case gather = {TPI_GATHER, CASE_DIRECT, "f32:6,3 i32:2,4<6", NULL, 0};
    expect_refused(gather, 1, 5, 6, "id 6 at position 5 is outside [0, 6)");
    expect_refused(gather, 1, 0, -1, "id -1 at position 0 is outside [0, 6)");
    op_case scatter = {TPI_SCATTER_ADD, CASE_DIRECT, "f32:6,3 i32:8<6 f32:8,3", NULL, 0};
    expect_refused(scatter, 1, 7, 100, "id 100 at position 7 is outside [0, 6)");
    op_case cache = {TPI_CACHE_WRITE, CASE_DIRECT, "f32:2,9,8 f32:2,4,8 i32:2<5", NULL, 0};
    expect_refused(cache, 2, 1, 6, "4 positions from 6 in row 1 are outside [0, 9)");
    expect_refused(cache, 2, 0, -2, "are outside [0, 9)");
    op_case loss = {TPI_CROSS_ENTROPY, CASE_DIRECT, "f32:4,5 i32:4<5", ATTR(tpi_attr_ignore, -100)};
    expect_refused(loss, 1, 2, 5, "label 5 at position 2 is outside [0, 5)");
    expect_refused(loss, 1, 3, -99, "label -99 at position 3 is outside [0, 5)");
    op_case linear = {TPI_LINEAR_CROSS_ENTROPY, CASE_DIRECT, "f32:4,3 f32:3,5 i32:4<5",
                      ATTR(tpi_attr_ignore, -100)};
    expect_refused(linear, 2, 2, 5, "label 5 at position 2 is outside [0, 5)");
    expect_refused(linear, 2, 0, -1, "label -1 at position 0 is outside [0, 5)");
}

/* ---- NaN and infinities ---- */

/* Every kernel gives these values for input 0 = x (a second input, if any, holds `second`). */
static void expect_results(op_case from, int n, const float *x, const float *second, int m,
                           const double *want) {
    case_instance instance;
    tpi_threads *threads;
    char label[256];
    cr_assert_eq(tpi_threads_create(&threads, 2), TP_OK);
    case_instantiate(&from, TP_F32, &instance);
    for (int i = 0; i < case_kernel_count(from.op); i++) {
        const tpi_kernel *kernel = &tpi_backend_cpu()->kernels(from.op)[i];
        case_run run;
        tp_status status;
        case_run_init(&run, &instance);
        poke(&run, 0, n, x);
        if (second) poke(&run, 1, n, second);
        bool taken = case_run_kernel(&run, kernel, threads, &status);
        for (int j = 0; taken && j < m; j++) {
            double got = case_run_result(&run, 0, j);
            bool same = got == want[j] || (got != got && want[j] != want[j]) || fabs(got - want[j]) < 1e-6;
            cr_expect(same, "%s: %s gives %g at %d, expected %g", case_label(&instance, label), kernel->name,
                      got, j, want[j]);
        }
        case_run_clear(&run);
    }
    tpi_threads_destroy(threads);
}

#define BAD ((float)NAN)
#define INF INFINITY

static op_case direct(tpi_op op, const char *operands, const void *attr, size_t bytes) {
    return (op_case){op, CASE_DIRECT, operands, attr, bytes};
}

Test(special, nan_propagates) {
    const float x[] = {1, BAD, 3, BAD, -INF, -INF, -INF, -INF, 2, 5, 5, 1};
    const double nan = (double)NAN;
    expect_results(direct(TPI_MAX, "f32:3,4", ATTR(tpi_attr_reduce, 2, 0)), 12, x, NULL, 3,
                   (const double[]){nan, -INF, 5});
    expect_results(direct(TPI_ARGMAX, "f32:3,4", ATTR(tpi_attr_reduce, 2, 0)), 12, x, NULL, 3,
                   (const double[]){1, 0, 1});
    expect_results(direct(TPI_RELU, "f32:3,4", NULL, 0), 12, x, NULL, 6,
                   (const double[]){1, nan, 3, nan, 0, 0});
    const float a[] = {BAD, 1, BAD, 2}, b[] = {1, BAD, BAD, 3};
    expect_results(direct(TPI_MAXIMUM, "f32:4 f32:4", NULL, 0), 4, a, b, 4,
                   (const double[]){nan, nan, nan, 3});
    expect_results(direct(TPI_MINIMUM, "f32:4 f32:4", NULL, 0), 4, a, b, 4,
                   (const double[]){nan, nan, nan, 2});
    expect_results(direct(TPI_COMPARE, "f32:4 f32:4", ATTR(tpi_attr_index, TP_NE)), 4, a, b, 4,
                   (const double[]){1, 1, 1, 1});
    expect_results(direct(TPI_CAST, "f32:4", ATTR(tpi_attr_cast, TP_I32)), 4,
                   (const float[]){BAD, 3e9f, -3e9f, -1.9f}, NULL, 4,
                   (const double[]){0, 2147483647.0, -2147483648.0, -1});
}

/* A long row, so that vector loops and their tails both meet the NaN. */
Test(special, nan_in_long_rows) {
    for (int at = 0; at < 131; at += 13) {
        float x[131];
        for (int i = 0; i < 131; i++) x[i] = (float)i;
        x[at] = BAD;
        expect_results(direct(TPI_MAX, "f32:1,131", ATTR(tpi_attr_reduce, 2, 0)), 131, x, NULL, 1,
                       (const double[]){(double)NAN});
        expect_results(direct(TPI_ARGMAX, "f32:1,131", ATTR(tpi_attr_reduce, 2, 0)), 131, x, NULL, 1,
                       (const double[]){at});
    }
}

Test(special, softmax_of_extremes) {
    const float x[] = {-INF, -INF, -INF, 1e4f, -1e4f, 1e4f, -INF, 0, -INF};
    const op_case softmax = direct(TPI_SOFTMAX, "f32:3,3", ATTR(tpi_attr_dim, 1));
    expect_results(softmax, 9, x, NULL, 9, (const double[]){0, 0, 0, 0.5, 0, 0.5, 0, 1, 0});
    const op_case lse = direct(TPI_LOGSUMEXP, "f32:3,3", ATTR(tpi_attr_reduce, 2, 0));
    const float y[] = {-INF, -INF, -INF, 1e4f, -1e4f, -1e4f, INF, 0, -INF};
    expect_results(lse, 9, y, NULL, 3, (const double[]){-INF, 1e4, INF});
}

/* ---- AdamW with a gradient scale that is not finite ---- */

Test(special, adamw_skips) {
    op_case adamw = direct(TPI_ADAMW, "f32:5,67 f32:5,67 f32:5,67>0 f32:5,67 f32:3>0 f32:",
                           ATTR(tpi_attr_adamw, 0.9, 0.999, 1e-8, 0.1));
    case_instance instance;
    tpi_threads *threads;
    cr_assert_eq(tpi_threads_create(&threads, 2), TP_OK);
    case_instantiate(&adamw, TP_F32, &instance);
    for (int i = 0; i < case_kernel_count(TPI_ADAMW); i++)
        for (int shared = 0; shared < 2; shared++) {
            const tpi_kernel *kernel = &tpi_backend_cpu()->kernels(TPI_ADAMW)[i];
            case_run before, run;
            tp_status status;
            case_run_init(&before, &instance);
            case_run_init(&run, &instance);
            poke(&run, 5, 1, shared ? (const float[]){INF} : (const float[]){BAD});
            for (int k = 0; shared && k < 3; k++) case_run_share(&run, k, k);
            if (case_run_kernel(&run, kernel, threads, &status))
                for (int k = 0; k < 3; k++)
                    cr_expect(memcmp(run.pointers[6 + k], before.pointers[k], before.blocks[k].bytes) == 0,
                              "adamw: %s changed output %d in a step to be skipped", kernel->name, k);
            case_run_clear(&run);
            case_run_clear(&before);
        }
    tpi_threads_destroy(threads);
}

/* ---- attention: a query that sees no key ---- */

Test(special, attention_without_keys) {
    op_case attention = direct(TPI_ATTENTION, "f32:2,3,2,8 f32:2,5,2,8 f32:2,5,2,8 i32:2<1",
                               ATTR(tpi_attr_attention, .scale = 0.5, .has_lengths = 1));
    case_instance instance;
    tpi_threads *threads;
    cr_assert_eq(tpi_threads_create(&threads, 2), TP_OK);
    case_instantiate(&attention, TP_F32, &instance);
    for (int i = 0; i < case_kernel_count(TPI_ATTENTION); i++) {
        const tpi_kernel *kernel = &tpi_backend_cpu()->kernels(TPI_ATTENTION)[i];
        case_run run;
        tp_status status;
        case_run_init(&run, &instance);
        poke_ints(&run, 3, 2, (const int32_t[]){0, 5}); /* nothing is seen in the first sequence */
        if (case_run_kernel(&run, kernel, threads, &status)) {
            for (int j = 0; j < 3 * 2 * 8; j++)
                cr_expect_eq(case_run_result(&run, 0, j), 0, "%s", kernel->name);
            for (int j = 0; j < 3 * 2; j++)
                cr_expect_eq(case_run_result(&run, 1, j), -INF, "%s", kernel->name);
            cr_expect_neq(case_run_result(&run, 0, 3 * 2 * 8), 0, "%s", kernel->name);
        }
        case_run_clear(&run);
    }
    tpi_threads_destroy(threads);
}
