/* The loops are made of twelve independent accumulators, named one by one so that they stay in registers;
 * this file is compiled with contraction on, so that each step of the arithmetic is one fma. */
#include "limits.h"
#include "clock.h"

#include "backend/cpu/cpu.h"
#include "core/threads.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ROUNDS 8192        /* steps of a block of arithmetic */
#define BLOCKS 32          /* blocks a thread */
#define TOUCH  LIMITS_MOST /* bytes that a measurement of bandwidth moves at least */

typedef float vec16 __attribute__((vector_size(64)));
typedef float vec8 __attribute__((vector_size(32)));

#define EACH(X)    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define DECLARE(i) sum##i = step + (float)i,
#define ADVANCE(i) sum##i = sum##i * factor + step;
#define TOTAL(i)   +sum##i[0]

/* Operations done. */
#define FMA_KERNEL(name, vec, target)                                                                        \
    target static double name(void) {                                                                        \
        vec zero = {0}, factor = zero + 0.999f, step = zero + 0.001f, EACH(DECLARE) *none = NULL;            \
        for (int r = 0; r < ROUNDS; r++) {                                                                   \
            EACH(ADVANCE)                                                                                    \
        }                                                                                                    \
        volatile float total = 0 EACH(TOTAL);                                                                \
        (void)total, (void)none;                                                                             \
        return 2.0 * 12 * (sizeof(vec) / sizeof(float)) * ROUNDS;                                            \
    }

#define START(i) sum##i = zero,
#define LOAD(i)  sum##i += at[i];

/* Reads `floats` from a 64-byte boundary so many times, but for a rest of less than a step. */
#define READ_KERNEL(name, vec, target)                                                                       \
    target static void name(const float *from, size_t floats, int passes) {                                  \
        vec zero = {0}, EACH(START) *none = NULL;                                                            \
        const size_t width = sizeof(vec) / sizeof(float);                                                    \
        for (int pass = 0; pass < passes; pass++)                                                            \
            for (size_t i = 0; i + 12 * width <= floats; i += 12 * width) {                                  \
                const vec *at = (const vec *)(const void *)(from + i);                                       \
                EACH(LOAD)                                                                                   \
            }                                                                                                \
        volatile float total = 0 EACH(TOTAL);                                                                \
        (void)total, (void)none;                                                                             \
    }

FMA_KERNEL(fma_plain, vec8, )
READ_KERNEL(read_plain, vec8, )

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f")))
#define AVX2   __attribute__((target("avx2,fma")))
FMA_KERNEL(fma_avx512, vec16, AVX512)
READ_KERNEL(read_avx512, vec16, AVX512)
FMA_KERNEL(fma_avx2, vec8, AVX2)
READ_KERNEL(read_avx2, vec8, AVX2)

#define DECLARE_DOT(i) sum##i = _mm512_set1_ps((float)i),
#define ADVANCE_DOT(i) sum##i = _mm512_dpbf16_ps(sum##i, a, b);
__attribute__((target("avx512f,avx512bf16"))) static double dot_avx512(void) {
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f)), b = a;
    __m512 EACH(DECLARE_DOT) *none = NULL;
    for (int r = 0; r < ROUNDS; r++) {
        EACH(ADVANCE_DOT)
    }
    volatile float total = 0 EACH(TOTAL);
    (void)total, (void)none;
    return 2.0 * 12 * 32 * ROUNDS;
}

/* Four tiles of sums from two of either operand, as a product has them. Zeros would be multiplied faster
 * where power is short. */
__attribute__((target("amx-tile,amx-bf16"))) static double dot_amx(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    uint16_t noise[4 * 512];
    for (uint32_t i = 0, x = 1; i < 4 * 512; i++, x = x * 1664525u + 1013904223u)
        noise[i] = (uint16_t)(0x3c00 | (x >> 16 & 0x83ff)); /* ±2⁻⁷ to ±2 */
    __asm__ volatile("" ::"r"(noise) : "memory"); /* some compilers do not know that tiles read memory */
    _tile_loadconfig(&config);
    _tile_loadd(4, noise, 64);
    _tile_loadd(5, noise + 512, 64);
    _tile_loadd(6, noise + 1024, 64);
    _tile_loadd(7, noise + 1536, 64);
    for (int r = 0; r < ROUNDS; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 2.0 * 4 * 16 * 16 * 32 * ROUNDS;
}
#endif

/* The best that this processor runs. */
static double (*fma_block(void))(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return fma_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_avx2;
#endif
    return fma_plain;
}

static void (*read_block(void))(const float *, size_t, int) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return read_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return read_avx2;
#endif
    return read_plain;
}

struct limits {
    tpi_threads *threads;
    float *from, *to; /* LIMITS_MOST bytes, the second half of it being `to` */
};

limits *limits_open(int threads) {
    limits *l = malloc(sizeof *l);
    if (!l || tpi_threads_create(&l->threads, threads) != TP_OK) exit(1);
    if (!(l->from = aligned_alloc(4096, LIMITS_MOST))) exit(1);
    memset(l->from, 1, LIMITS_MOST);
    l->to = l->from + LIMITS_MOST / 2 / sizeof(float);
    return l;
}

void limits_close(limits *l) {
    free(l->from);
    tpi_threads_destroy(l->threads);
    free(l);
}

int limits_threads(const limits *l) {
    return tpi_threads_parts(l->threads);
}

/* ---- jobs ---- */

typedef struct job {
    limits *l;
    double (*arithmetic)(void);
    void (*read)(const float *from, size_t floats, int passes);
    size_t floats; /* read, or copied */
    int passes;
} job;

static void spin(void *arg, int index, int count) {
    const job *j = arg;
    (void)index, (void)count;
    for (int i = 0; i < BLOCKS; i++) j->arithmetic();
}

/* Whole cache lines, so that no two threads share one. */
static size_t share_begin(const job *j, int index, int count) {
    return j->floats / 16 * (size_t)index / (size_t)count * 16;
}

static void read_share(void *arg, int index, int count) {
    const job *j = arg;
    size_t begin = share_begin(j, index, count), end = share_begin(j, index + 1, count);
    j->read(j->l->from + begin, end - begin, j->passes);
}

static void copy_share(void *arg, int index, int count) {
    const job *j = arg;
    size_t begin = share_begin(j, index, count), end = share_begin(j, index + 1, count);
    for (int i = 0; i < j->passes; i++)
        memcpy(j->l->to + begin, j->l->from + begin, (end - begin) * sizeof(float));
}

static void nothing(void *arg, int index, int count) {
    (void)arg, (void)index, (void)count;
}

static double seconds_of(const job *j, void (*work)(void *, int, int)) {
    double start = clock_seconds();
    tpi_parallel(j->l->threads, work, (void *)j);
    return clock_seconds() - start;
}

static double rate_of_arithmetic(limits *l, double (*block)(void)) {
    if (!block) return 0;
    const job j = {.l = l, .arithmetic = block};
    double operations = block() * BLOCKS * limits_threads(l);
    return operations / seconds_of(&j, spin);
}

double limits_f32(limits *l) {
    return rate_of_arithmetic(l, fma_block());
}

double limits_bf16_pairs(limits *l) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bf16")) return rate_of_arithmetic(l, dot_avx512);
#endif
    (void)l;
    return 0;
}

double limits_bf16_tiles(limits *l) {
#if defined(__x86_64__)
    if (tpi_cpu_isa() == TPI_ISA_AMX) return rate_of_arithmetic(l, dot_amx);
#endif
    (void)l;
    return 0;
}

double limits_bf16(limits *l) {
    double pairs = limits_bf16_pairs(l), tiles = limits_bf16_tiles(l);
    return tiles > pairs ? tiles : pairs;
}

/* `parts` says into how many blocks of j->floats the set falls. What fits a cache is brought there first. */
static double rate_of_bytes(job *j, size_t bytes, int parts, void (*work)(void *, int, int)) {
    if (bytes > LIMITS_MOST) bytes = LIMITS_MOST;
    j->floats = bytes / sizeof(float) / (size_t)parts / 16 * 16;
    j->passes = 1;
    if (j->floats == 0) return 0;
    if (bytes < LIMITS_MOST) seconds_of(j, work);
    j->passes = (int)(TOUCH / bytes);
    return (double)j->passes * (double)j->floats * sizeof(float) * parts / seconds_of(j, work);
}

double limits_read(limits *l, size_t bytes) {
    job j = {.l = l, .read = read_block()};
    return rate_of_bytes(&j, bytes, 1, read_share);
}

double limits_copy(limits *l, size_t bytes) {
    job j = {.l = l};
    return rate_of_bytes(&j, bytes, 2, copy_share);
}

double limits_fork_join(limits *l) {
    enum { TIMES = 256 };
    const job j = {.l = l};
    double start = clock_seconds();
    for (int i = 0; i < TIMES; i++) seconds_of(&j, nothing);
    return (clock_seconds() - start) / TIMES;
}
