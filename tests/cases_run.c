/* Blocks with guards, and the launch by hand. */
#include "cases_run.h"

#include "core/alloc.h"
#include "core/convert.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static case_block block_create(size_t bytes) {
    case_block block = {aligned_alloc(TPI_ALIGN, (bytes + 3 * CASE_GUARD) / CASE_GUARD * CASE_GUARD), NULL,
                        bytes};
    if (!block.memory) abort();
    memset(block.memory, CASE_NOISE, bytes + 2 * CASE_GUARD);
    block.data = block.memory + CASE_GUARD;
    return block;
}

static bool block_guards_hold(const case_block *block) {
    for (int i = 0; block->memory && i < CASE_GUARD; i++)
        if ((unsigned char)block->memory[i] != CASE_NOISE ||
            (unsigned char)block->memory[CASE_GUARD + block->bytes + (size_t)i] != CASE_NOISE)
            return false;
    return true;
}

void case_run_init(case_run *run, const case_instance *instance) {
    memset(run, 0, sizeof *run);
    run->instance = instance;
    for (int k = 0; k < instance->n_in + instance->n_out; k++) {
        const case_operand *c = &instance->operands[k];
        size_t size = tp_dtype_size((tp_dtype)c->operand.dtype);
        run->operands[k] = c->operand;
        run->slots[k] = (uint32_t)k;
        run->blocks[k] = block_create((size_t)c->elements * size);
        run->pointers[k] = run->blocks[k].data + (size_t)c->offset * size;
        if (k < instance->n_in) case_fill(c, k, run->blocks[k].data);
    }
    run->step = (tpi_step){.op = (uint16_t)instance->from->op,
                           .n_in = (uint8_t)instance->n_in,
                           .n_out = (uint8_t)instance->n_out,
                           .attr = instance->from->attr,
                           .operands = run->operands,
                           .slots = run->slots};
}

void case_run_clear(case_run *run) {
    for (int k = 0; k <= CASE_OPERANDS; k++) free(run->blocks[k].memory);
}

void case_run_share(case_run *run, int k, int j) {
    run->pointers[run->instance->n_in + k] = run->pointers[j];
}

void case_run_omit(case_run *run, int k) {
    run->pointers[run->instance->n_in + k] = NULL;
    run->operands[run->instance->n_in + k] = TPI_UNWANTED_OPERAND;
    run->step.optional_missing |= (uint8_t)(1u << k);
}

static bool can_share(const case_instance *c, int k, int j) {
    const case_operand *x = &c->operands[j], *y = &c->operands[c->n_in + k];
    return x->operand.contiguous && x->layout == 0 && x->operand.dtype == y->operand.dtype &&
           x->operand.rank == y->operand.rank &&
           memcmp(x->operand.shape, y->operand.shape, sizeof x->operand.shape) == 0;
}

int case_variations(const case_instance *c, case_variation out[CASE_VARIATIONS]) {
    const unsigned flags = tpi_ops[c->from->op].flags;
    case_variation in_place = {{-1, -1, -1}, -1};
    int n = 0;
    out[n++] = in_place;
    for (int j = 0; j < c->n_in && flags & TPI_FLAG_POINTWISE; j++)
        if (can_share(c, 0, j)) out[n++] = (case_variation){{j, -1, -1}, -1};
    bool any = false;
    for (int k = 0; k < c->n_out && flags & TPI_FLAG_IN_PLACE; k++) {
        if (!can_share(c, k, k)) continue;
        in_place.share[k] = k;
        any = true;
    }
    if (any) out[n++] = in_place;
    for (int k = 1; k < c->n_out; k++) out[n++] = (case_variation){{-1, -1, -1}, k};
    return n;
}

void case_run_vary(case_run *run, const case_variation *v) {
    for (int k = 0; k < run->instance->n_out; k++)
        if (v->share[k] >= 0) case_run_share(run, k, v->share[k]);
    if (v->omit >= 0) case_run_omit(run, v->omit);
}

bool case_run_prepare(case_run *run, const tpi_kernel *kernel, tpi_threads *threads) {
    int scratch = run->instance->n_in + run->instance->n_out;
    if (kernel->accepts && !kernel->accepts(&run->step)) return false;
    run->step.kernel = kernel;
    run->step.scratch = kernel->scratch ? kernel->scratch(&run->step, tpi_threads_parts(threads)) : 0;
    run->slots[scratch] = (uint32_t)scratch;
    return true;
}

bool case_run_kernel(case_run *run, const tpi_kernel *kernel, tpi_threads *threads, tp_status *status) {
    const int scratch = run->instance->n_in + run->instance->n_out;
    if (!case_run_prepare(run, kernel, threads)) return false;
    free(run->blocks[scratch].memory);
    run->blocks[scratch] = block_create(run->step.scratch);
    run->pointers[scratch] = run->blocks[scratch].data;
    const tpi_launch launch = {&run->step, run->pointers, threads, NULL};
    *status = kernel->run(&launch);
    return true;
}

/* ---- comparing ---- */

/* Differences allowed: a part of the value, and a part of the largest value for what cancels in sums. */
static double tolerance(tp_dtype dtype, double value, double largest) {
    double relative = dtype == TP_BF16 ? 0x1p-7 : dtype == TP_F16 ? 0x1p-10 : 1e-5;
    double tiny = dtype == TP_F16 ? 0x1p-24 : 1e-10; /* tails may be 0; f16's subnormals */
    if (!tpi_is_float(dtype)) return 0;
    return relative * fabs(value) + 1e-5 * largest + tiny;
}

static bool output_equal(const case_run *got, const case_run *want, int k, double slack, char text[160]) {
    const tpi_operand *y = &want->operands[want->instance->n_in + k];
    double largest = 0;
    for (int64_t i = 0; i < y->count; i++) {
        double b = case_run_result(want, k, i);
        largest = fmax(largest, isfinite(b) ? fabs(b) : 0);
    }
    for (int64_t i = 0; i < y->count; i++) {
        double a = case_run_result(got, k, i), b = case_run_result(want, k, i);
        if (a == b || (a != a && b != b) ||
            fabs(a - b) <= tolerance((tp_dtype)y->dtype, b, largest) + slack * largest)
            continue;
        snprintf(text, 160, "gives %.9g at %lld of output %d, the reference %.9g", a, (long long)i, k, b);
        return false;
    }
    return true;
}

bool case_run_equal(const case_run *got, const case_run *want, double slack, char text[160]) {
    text[0] = 0;
    for (int k = 0; k < want->instance->n_out; k++)
        if (!(got->step.optional_missing >> k & 1u) && !output_equal(got, want, k, slack, text)) return false;
    return true;
}

int case_run_changed_input(const case_run *got, const case_run *want) {
    for (int k = 0; k < want->instance->n_in; k++)
        if (memcmp(got->blocks[k].data, want->blocks[k].data, want->blocks[k].bytes) != 0) return k;
    return -1;
}

bool case_run_guards_hold(const case_run *run) {
    for (int k = 0; k <= CASE_OPERANDS; k++)
        if (!block_guards_hold(&run->blocks[k])) return false;
    return true;
}

double case_run_result(const case_run *run, int k, int64_t i) {
    const tpi_operand *y = &run->operands[run->instance->n_in + k];
    const void *data = run->pointers[run->instance->n_in + k];
    return y->dtype == TP_I32 ? (double)((const int32_t *)data)[i]
                              : (double)tpi_load_f32(data, (tp_dtype)y->dtype, i);
}

int case_kernel_count(tpi_op op) {
    const tpi_kernel *kernels = tpi_backend_cpu()->kernels(op);
    int n = 0;
    while (kernels && kernels[n].run) n++;
    return n;
}
