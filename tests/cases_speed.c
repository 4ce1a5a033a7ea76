/* The case table's third mode: `case_speed [operation]` prints the time of every kernel of every speed
 * case, with the bytes of its operands a second and, for products, arithmetic operations a second. */
#include "cases_run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS           101
#define BUDGET_SECONDS 0.2 /* a kernel; one run is made in any case */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of several runs; negative if the kernel does not take the case. */
static double median_seconds(case_run *run, const tpi_kernel *kernel, tpi_threads *threads) {
    double times[RUNS], begin = seconds();
    tp_status status;
    int n = 0;
    if (!case_run_kernel(run, kernel, threads, &status)) return -1; /* and warms up */
    const tpi_launch launch = {&run->step, run->pointers, threads, NULL};
    do {
        double start = seconds();
        kernel->run(&launch);
        times[n++] = seconds() - start;
    } while (n < RUNS && seconds() - begin < BUDGET_SECONDS);
    qsort(times, (size_t)n, sizeof *times, ascending);
    return times[n / 2];
}

/* Multiplications and additions; 0 for what is no product. */
static double operations(const case_instance *c) {
    const tpi_operand *x = &c->operands[0].operand, *y = &c->operands[c->n_in].operand;
    double inner = x->rank ? (double)x->shape[x->rank - 1] : 0, out = (double)y->count;
    double rows = y->rank && y->count ? out / (double)y->shape[y->rank - 1] : 0;
    bool with_w = c->from->op == TPI_LINEAR_LORA;
    switch (c->from->op) {
    case TPI_MATMUL:
    case TPI_LINEAR:
        return 2 * out * inner;
    case TPI_LORA:
    case TPI_LINEAR_LORA: {
        double rank = (double)c->operands[with_w ? 2 : 1].operand.shape[1];
        return 2 * rank * (rows * inner + out) + (with_w ? 2 * out * inner : 0);
    }
    default:
        return 0;
    }
}

static double operand_bytes(const case_instance *c) {
    double bytes = 0;
    for (int k = 0; k < c->n_in + c->n_out; k++)
        bytes +=
            (double)c->operands[k].elements * (double)tp_dtype_size((tp_dtype)c->operands[k].operand.dtype);
    return bytes;
}

static void time_case(const case_instance *instance, tpi_threads *threads) {
    const tpi_kernel *kernels = tpi_backend_cpu()->kernels(instance->from->op);
    char label[256];
    case_run run;
    case_run_init(&run, instance);
    printf("%s\n", case_label(instance, label));
    for (const tpi_kernel *kernel = kernels; kernel && kernel->run; kernel++) {
        double time = median_seconds(&run, kernel, threads);
        if (time < 0) continue;
        printf("    %-10s %12.1f us %8.2f GB/s", kernel->name, 1e6 * time,
               1e-9 * operand_bytes(instance) / time);
        if (operations(instance) > 0) printf(" %8.1f GFLOP/s", 1e-9 * operations(instance) / time);
        printf("\n");
        fflush(stdout);
    }
    case_run_clear(&run);
}

static int print_speeds(const char *only) {
    static const tp_dtype floats[] = {TP_F32, TP_BF16, TP_F16};
    tpi_threads *threads;
    if (tpi_threads_create(&threads, tpi_threads_available()) != TP_OK) return 1;
    for (int i = 0; i < op_case_count; i++) {
        if (op_cases[i].kind != CASE_SPEED) continue;
        if (only && strcmp(only, tpi_ops[op_cases[i].op].name) != 0) continue;
        for (size_t f = 0; f < sizeof floats / sizeof *floats; f++) {
            case_instance instance;
            if (case_instantiate(&op_cases[i], floats[f], &instance)) time_case(&instance, threads);
        }
    }
    tpi_threads_destroy(threads);
    return 0;
}

int main(int argc, char **argv) {
    return print_speeds(argc > 1 ? argv[1] : NULL);
}
