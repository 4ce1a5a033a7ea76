/* Formulas are those of the kernels that are compiled beforehand: their files are part of the text. */
#include "backend/cuda/chain_source.h"
#include "backend/cuda/pointwise_table.h"
#include "core/alloc.h"
#include "core/error.h"
#include "taper/ops.h"

#include <chain_text.h> /* made by cuda.cmake: the table, the formulas and chain_prelude.cuh */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ROOM (16 << 10) /* for all but the files; the longest chain takes a third */

typedef struct text {
    char *at;
    size_t left;
} text;

static void __attribute__((format(printf, 2, 3))) append(text *t, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(t->at, t->left, format, args);
    va_end(args);
    const size_t length = n < 0 || (size_t)n >= t->left ? t->left : (size_t)n;
    t->at += length;
    t->left -= length;
}

/* ---- what formulas are told: numbers of operations and comparisons ---- */

static void append_names(text *t) {
    static const char *const compares[] = {
        [TP_EQ] = "EQ", [TP_NE] = "NE", [TP_LT] = "LT", [TP_LE] = "LE", [TP_GT] = "GT", [TP_GE] = "GE"};
    for (size_t i = 0; i < sizeof compares / sizeof *compares; i++)
        append(t, "constexpr int TP_%s = %d;\n", compares[i], (int)i);
#define X(NAME, arity, formula) append(t, "constexpr int TPI_" #NAME " = %d;\n", (int)TPI_##NAME);
    POINTWISE_FORMULAS(X)
#undef X
}

/* ---- the kernel ---- */

_Static_assert(TPI_CHAIN_PACK == 8, "chain_prelude.cuh has packs of eight");

static const char *type_of(int dtype) {
    return dtype == TP_F32 ? "float" : dtype == TP_BF16 ? "bf16" : dtype == TP_F16 ? "f16" : "unsigned char";
}

static void append_head(text *t, const tpi_chain_shape *shape, bool early) {
    append(t, "struct arguments {\n    long long count, inner, outer[%d];\n    const void *in[%d];\n",
           TPI_CHAIN_INPUTS, TPI_CHAIN_INPUTS);
    append(t, "    void *out;\n    float s[%d];\n};\n", TPI_CHAIN_LENGTH);
    append(
        t,
        "extern \"C\" __global__ void __launch_bounds__(%d)\nchain(const __grid_constant__ arguments g) {\n",
        TPI_CHAIN_THREADS);
    if (early)
        append(t, "    asm volatile(\"griddepcontrol.launch_dependents;\\n griddepcontrol.wait;\" ::: "
                  "\"memory\");\n");
    append(t, "    const long long i = ((long long)blockIdx.x * %d + threadIdx.x) * %d;\n", TPI_CHAIN_THREADS,
           TPI_CHAIN_PACK);
    append(t, "    if (i >= g.count) return;\n");
    append(t, shape->rows ? "    const long long row = i / g.inner, column = i - row * g.inner;\n"
                          : "    const long long row = 0, column = i;\n");
    for (int r = 0; r < TPI_CHAIN_REGISTERS; r++) append(t, "    float r%d[8];\n", r);
}

static void append_input(text *t, const tpi_chain_shape *shape, int k) {
    append(t, "    %s(r%d, (const %s *)g.in[%d] + row * g.outer[%d]%s);\n",
           shape->stays[k] ? "spread" : "load", k, type_of(shape->dtype[k]), k, k,
           shape->stays[k] ? "" : " + column");
}

tp_status tpi_chain_source(const tpi_chain_shape *shape, bool early, char **out) {
    const size_t bytes = sizeof chain_text + ROOM;
    text t = {tpi_malloc(bytes), bytes};
    *out = t.at;
    if (!t.at) return TP_ENOMEM;
    append_names(&t);
    append(&t, "%s", chain_text);
    append_head(&t, shape, early);
    for (int k = 0; k < shape->n_in; k++) append_input(&t, shape, k);
    for (int n = 0; n < shape->length; n++)
        append(&t, "    apply<%d>(r%d, r%d, r%d, r%d, g.s[%d], %d);\n", shape->steps[n].op,
               shape->steps[n].dst, shape->steps[n].a, shape->steps[n].b, shape->steps[n].c, n,
               shape->steps[n].how);
    append(&t, "    store((%s *)g.out + i, r%d);\n}\n", type_of(shape->out_dtype),
           shape->steps[shape->length - 1].dst);
    if (t.left > 0) return TP_OK;
    tpi_free(*out), *out = NULL;
    return tpi_fail(TP_EINTERNAL, "a chain's source is longer than there is room for");
}
