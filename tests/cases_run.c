/* Blocks with guards, and the launch by hand. */
#include "cases_run.h"

#include "core/alloc.h"
#include "core/convert.h"

#include <stdlib.h>
#include <string.h>

#define GUARD 64 /* bytes on either side; keeps the alignment that plans give */
#define NOISE 0xA5

static case_block block_create(size_t bytes) {
    case_block block = {aligned_alloc(TPI_ALIGN, (bytes + 3 * GUARD) / GUARD * GUARD), NULL, bytes};
    if (!block.memory) abort();
    memset(block.memory, NOISE, bytes + 2 * GUARD);
    block.data = block.memory + GUARD;
    return block;
}

static bool block_guards_hold(const case_block *block) {
    for (int i = 0; block->memory && i < GUARD; i++)
        if ((unsigned char)block->memory[i] != NOISE ||
            (unsigned char)block->memory[GUARD + block->bytes + (size_t)i] != NOISE)
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

bool case_run_kernel(case_run *run, const tpi_kernel *kernel, tpi_threads *threads, tp_status *status) {
    int scratch = run->instance->n_in + run->instance->n_out;
    if (kernel->accepts && !kernel->accepts(&run->step)) return false;
    run->step.kernel = kernel;
    run->step.scratch = kernel->scratch ? kernel->scratch(&run->step, tpi_threads_count(threads)) : 0;
    free(run->blocks[scratch].memory);
    run->blocks[scratch] = block_create(run->step.scratch);
    run->slots[scratch] = (uint32_t)scratch;
    run->pointers[scratch] = run->blocks[scratch].data;
    const tpi_launch launch = {&run->step, run->pointers, threads};
    *status = kernel->run(&launch);
    return true;
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
