/* Trials of the vector kernels: one step made by hand, run by every kernel that accepts it and by the
 * reference.
 *
 * Invariant: a trial's operands and attributes are set before check(); what it fills in, it frees. */
#ifndef TAPER_TESTS_SIMD_HELPERS_H
#define TAPER_TESTS_SIMD_HELPERS_H

#include "backend/cpu/cpu.h"
#include "core/alloc.h"
#include "core/convert.h"
#include "taper/ops.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#if defined(TAPER_CUSTOM_KERNELS) && defined(__x86_64__)

#define OPERANDS 12

typedef struct trial {
    tpi_step step;
    tpi_operand operands[OPERANDS];
    uint32_t slots[OPERANDS + 1];
    void *data[OPERANDS + 1]; /* the reference's outputs; inputs */
    double tolerance;         /* relative to 1 + |reference| */
    int ids;                  /* i32 inputs are in [0, ids) */
    float low, high;          /* f32 inputs */
} trial;

#define SHAPE(...)                                                                                           \
    (const int64_t[]) {                                                                                      \
        __VA_ARGS__                                                                                          \
    }
#define COUNT(...) (int)(sizeof(SHAPE(__VA_ARGS__)) / sizeof(int64_t))
#define DIMS(...)  COUNT(__VA_ARGS__), SHAPE(__VA_ARGS__)

static inline tpi_operand strided(tp_dtype dtype, int rank, const int64_t *shape, const int64_t *stride) {
    tpi_operand x = {.dtype = (uint8_t)dtype, .rank = (uint8_t)rank, .contiguous = true, .count = 1};
    for (int d = rank - 1; d >= 0; d--) {
        x.shape[d] = shape[d];
        x.stride[d] = stride ? stride[d] : x.count;
        if (shape[d] != 1 && x.stride[d] != x.count) x.contiguous = false;
        x.count *= shape[d];
    }
    return x;
}
static inline tpi_operand dense(tp_dtype dtype, int rank, const int64_t *shape) {
    return strided(dtype, rank, shape, NULL);
}

static inline int64_t extent(const tpi_operand *x) {
    int64_t last = 0;
    for (int d = 0; d < x->rank; d++) last += (x->shape[d] - 1) * x->stride[d];
    return x->count ? last + 1 : 0;
}

static uint32_t state = 1;
static inline double uniform(void) {
    state = state * 1664525u + 1013904223u;
    return (double)(state >> 8) / (double)(1 << 24);
}

static inline size_t bytes_of(const tpi_operand *x) {
    size_t size = x->dtype == TP_U8 ? 1 : x->dtype == TP_F32 || x->dtype == TP_I32 ? 4 : 2;
    return (size_t)extent(x) * size;
}

/* Exactly as large as the operand: the address sanitizer sees a step beyond. */
static inline void *filled(const trial *t, const tpi_operand *x) {
    void *data = malloc(bytes_of(x) + 1);
    for (int64_t i = 0; i < extent(x); i++) {
        double v = t->low + (t->high - t->low) * uniform();
        if (x->dtype == TP_I32)
            ((int32_t *)data)[i] = (int32_t)(uniform() * t->ids);
        else
            tpi_store_f32(data, (tp_dtype)x->dtype, i, x->dtype == TP_U8 ? (float)(v > 0.0) : (float)v);
    }
    return data;
}

static inline void begin(trial *t, tpi_op op, int n_in, int n_out, const void *attr) {
    t->step = (tpi_step){.op = (uint16_t)op, .n_in = (uint8_t)n_in, .n_out = (uint8_t)n_out, .attr = attr};
    t->step.operands = t->operands, t->step.slots = t->slots;
    for (uint32_t i = 0; i <= OPERANDS; i++) t->slots[i] = i;
    if (t->tolerance == 0.0) t->tolerance = 2e-5;
    if (t->low == t->high) t->low = -2.0f, t->high = 2.0f;
}

static inline tp_status launch(trial *t, const tpi_kernel *kernel, void **data, tpi_threads *threads) {
    t->step.kernel = kernel;
    size_t scratch = kernel->scratch ? kernel->scratch(&t->step, tpi_threads_parts(threads)) : 0;
    void *space = tpi_aligned_alloc(scratch);
    memset(space, 0xff, scratch);
    data[t->step.n_in + t->step.n_out] = space;
    tpi_launch l = {&t->step, data, threads, NULL};
    tp_status status = kernel->run(&l);
    tpi_free(space);
    return status;
}

static inline const tpi_kernel *find(const tpi_kernel_entry *list, const tpi_step *step) {
    for (; list->kernel.run; list++)
        if (list->op == (tpi_op)step->op && (!list->kernel.accepts || list->kernel.accepts(step)))
            return &list->kernel;
    return NULL;
}

static inline const tpi_kernel *reference(const tpi_step *step) {
    const tpi_kernel_entry *lists[] = {tpi_reference_pointwise, tpi_reference_reduce, tpi_reference_shape,
                                       tpi_reference_linalg,    tpi_reference_nn,     tpi_reference_attention,
                                       tpi_reference_loss};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        if (find(lists[i], step)) return find(lists[i], step);
    return NULL;
}

static inline void compare_output(const trial *t, const tpi_kernel *kernel, int k, const void *expected,
                                  const void *got) {
    const tpi_operand *y = &t->operands[t->step.n_in + k];
    double ulp = y->dtype == TP_BF16 ? 8e-3 : y->dtype == TP_F16 ? 1e-3 : 0.0;
    for (int64_t i = 0; i < y->count; i++) {
        double e = (double)tpi_load_f32(expected, (tp_dtype)y->dtype, i);
        double g = (double)tpi_load_f32(got, (tp_dtype)y->dtype, i);
        bool same = e == g || (e != e && g != g) || fabs(e - g) <= (t->tolerance + ulp) * (1.0 + fabs(e));
        cr_assert(same, "%s op %d output %d [%lld]: expected %.9g, got %.9g", kernel->name, t->step.op, k,
                  (long long)i, e, g);
    }
}

static inline void check_kernel(trial *t, const tpi_kernel *kernel, int threads) {
    tpi_threads *pool;
    void *data[OPERANDS + 1] = {NULL};
    cr_assert_eq(tpi_threads_create(&pool, threads), TP_OK);
    for (int i = 0; i < t->step.n_in + t->step.n_out; i++) {
        bool copied = i < t->step.n_in;
        size_t bytes = bytes_of(&t->operands[i]);
        if (!copied && (t->step.optional_missing >> (i - t->step.n_in) & 1)) continue;
        data[i] = malloc(bytes + 1);
        memcpy(data[i], t->data[copied ? i : 0], copied ? bytes : 0);
    }
    bool in_place = t->step.op == TPI_ADAMW;
    for (int k = 0; in_place && k < t->step.n_out; k++) {
        free(data[t->step.n_in + k]);
        data[t->step.n_in + k] = data[k];
    }
    cr_assert_eq(launch(t, kernel, data, pool), TP_OK);
    for (int k = 0; k < t->step.n_out; k++)
        if (data[t->step.n_in + k])
            compare_output(t, kernel, k, t->data[t->step.n_in + k], data[t->step.n_in + k]);
    for (int i = 0; i < t->step.n_in + (in_place ? 0 : t->step.n_out); i++) free(data[i]);
    tpi_threads_destroy(pool);
}

/* bf16 products by pairs and by tiles in plain C, so that their packing is tried on any processor. */
extern const tpi_kernel_entry tpi_emulated_pairs_kernels[], tpi_emulated_tiles_kernels[];

static inline bool has_isa(const char *isa) {
    const char *const names[] = {"avx2", "avx512", "avx512_bf16", "amx"};
    for (int i = 0; i < 4; i++)
        if (strcmp(isa, names[i]) == 0) return (int)tpi_cpu_isa() >= TPI_ISA_AVX2 + i;
    return tpi_cpu_isa() >= TPI_ISA_AVX2; /* emulated */
}

/* Fills the inputs, computes the reference, and compares each list's kernel. Returns how many accepted. */
static inline int check(trial *t) {
    const tpi_kernel_entry *lists[] = {
        tpi_amx_kernels,  tpi_avx512_bf16_kernels,    tpi_avx512_kernels,
        tpi_avx2_kernels, tpi_emulated_tiles_kernels, tpi_emulated_pairs_kernels};
    const tpi_kernel *oracle = reference(&t->step);
    tpi_threads *one;
    int accepted = 0, n = t->step.n_in + t->step.n_out;
    cr_assert_not_null(oracle);
    cr_assert_eq(tpi_threads_create(&one, 1), TP_OK);
    for (int i = 0; i < n; i++)
        if (!t->data[i]) t->data[i] = filled(t, &t->operands[i]);
    cr_assert_eq(launch(t, oracle, t->data, one), TP_OK);
    for (size_t l = 0; l < sizeof lists / sizeof *lists; l++) {
        if (!lists[l]->kernel.run || !has_isa(lists[l]->kernel.name)) continue; /* not even what it accepts */
        const tpi_kernel *kernel = find(lists[l], &t->step);
        if (!kernel) continue;
        check_kernel(t, kernel, 1);
        check_kernel(t, kernel, 3);
        accepted++;
    }
    for (int i = 0; i < n; i++) free(t->data[i]);
    tpi_threads_destroy(one);
    return accepted;
}

/* check, and that some kernel took it. */
static inline void must(trial *t) {
    int available = has_isa("avx2");
    int accepted = check(t);
    cr_assert(!available || accepted > 0, "op %d: no vector kernel accepted", t->step.op);
}

#endif
#endif
