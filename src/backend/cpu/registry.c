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
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const isa_names[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static tpi_isa isa;
static tpi_kernel_table table;

#if defined(__x86_64__)

static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

static bool has_amx(void) {
    const unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && (d & amx_tile);
}

static tpi_isa detect(void) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c())
        return TPI_ISA_BASELINE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return TPI_ISA_AVX2;
    if (!__builtin_cpu_supports("avx512bf16")) return TPI_ISA_AVX512;
    return has_amx() ? TPI_ISA_AMX : TPI_ISA_AVX512_BF16;
}

#else

static tpi_isa detect(void) {
    return TPI_ISA_BASELINE;
}

#endif

/* Tiles are so large a part of a thread's state that the system wants to be asked, once for all threads. */
static bool may_use_tiles(void) {
#if defined(__linux__) && defined(__x86_64__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
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
    const tpi_kernel_entry *const vectors[] = {NULL, tpi_avx2_kernels, tpi_avx512_kernels,
                                               tpi_avx512_bf16_kernels, tpi_amx_kernels};
    for (int i = (int)isa; i > TPI_ISA_BASELINE; i--) lists[n++] = vectors[i];
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
    const tpi_kernel_entry *lists[16];
    isa = capped(detect());
    /* Processors with tiles multiply pairs at half the rate of f32. */
    if (isa == TPI_ISA_AMX && !may_use_tiles()) isa = TPI_ISA_AVX512;
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

/* Pairs are slower than f32 only where there are tiles, too. */
static bool multiplies(tp_dtype dtype) {
    return dtype == TP_BF16 && tpi_cpu_isa() >= TPI_ISA_AVX512_BF16;
}

const tpi_backend *tpi_backend_cpu(void) {
    static const tpi_backend cpu = {"cpu", kernels, describe, NULL, NULL, 0, multiplies};
    return &cpu;
}
