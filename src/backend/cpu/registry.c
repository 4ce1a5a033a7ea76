/* The CPU backend: one table of candidates, merged once from the lists that this processor can run. */
#include "backend/cpu/cpu.h"
#include "backend/table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const isa_names[] = {"baseline", "avx2", "avx512"};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static tpi_isa isa;
static tpi_kernel_table table;

#if defined(__x86_64__)
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static tpi_isa detect(void) {
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? TPI_ISA_AVX512 : avx2 ? TPI_ISA_AVX2 : TPI_ISA_BASELINE;
#else
    return TPI_ISA_BASELINE;
#endif
}

/* TP_ISA lowers what was detected; a name that is none of ours changes nothing. */
static tpi_isa capped(tpi_isa detected) {
    const char *cap = getenv("TP_ISA");
    for (int i = 0; cap && i < (int)detected; i++)
        if (strcmp(cap, isa_names[i]) == 0) return (tpi_isa)i;
    return detected;
}

/* The lists in order of preference; at most one a line, ended by NULL. */
static void choose_lists(const tpi_kernel_entry *lists[]) {
    int n = 0;
#if defined(TAPER_CUSTOM_KERNELS) && defined(__x86_64__)
    if (isa >= TPI_ISA_AVX512) lists[n++] = tpi_avx512_kernels;
    if (isa >= TPI_ISA_AVX2) lists[n++] = tpi_avx2_kernels;
#endif
    lists[n++] = tpi_openblas_kernels;
    lists[n++] = tpi_reference_pointwise;
    lists[n++] = tpi_reference_reduce;
    lists[n++] = tpi_reference_shape;
    lists[n++] = tpi_reference_linalg;
    lists[n++] = tpi_reference_nn;
    lists[n++] = tpi_reference_attention;
    lists[n++] = tpi_reference_loss;
    lists[n] = NULL;
}

static void merge(void) {
    const tpi_kernel_entry *lists[12];
    isa = capped(detect());
    choose_lists(lists);
    tpi_kernel_table_merge(&table, lists);
}

static const tpi_kernel *kernels(tpi_op op) {
    pthread_once(&once, merge);
    return tpi_kernel_table_find(&table, op);
}

tpi_isa tpi_cpu_isa(void) {
    pthread_once(&once, merge);
    return isa;
}

static void describe(char *text, size_t bytes) {
#if defined(__x86_64__)
    snprintf(text, bytes, "x86-64 %s", isa_names[tpi_cpu_isa()]);
#elif defined(__aarch64__)
    snprintf(text, bytes, "aarch64 %s", isa_names[tpi_cpu_isa()]);
#else
    snprintf(text, bytes, "%s", isa_names[tpi_cpu_isa()]);
#endif
}

const tpi_backend *tpi_backend_cpu(void) {
    static const tpi_backend cpu = {"cpu", kernels, describe, NULL, NULL, 0};
    return &cpu;
}
