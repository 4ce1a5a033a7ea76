/* The case table on a GPU: each kernel of the CUDA backend against the CPU's reference.
 *
 *     cuda_cases [operation [-v]]      -v names each launch before it is made
 *
 * Ends with 77, saying why, where there is no GPU. A plain program: it runs where only the library does. */
#include "cases_run.h"

#include "core/tensor.h"
#include "taper/graph.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static tp_device *gpu;
static tpi_threads *threads;
static int runs, faults, refused;
static bool verbose;
static bool hopper; /* the code is that of Hopper */

/* A host block's double on the device, guards and all. */
static void *double_of(const case_block *block) {
    void *memory = NULL;
    const size_t bytes = block->bytes + 2 * CASE_GUARD;
    if (!block->memory) return NULL;
    if (tpi_memory_take(gpu->memory, bytes, &memory) != TP_OK ||
        tpi_device_write(gpu, memory, block->memory, bytes) != TP_OK) {
        fprintf(stderr, "%s\n", tp_error_message());
        faults++;
    }
    return memory;
}

/* Scratch of noise on the device, with a guard behind it: workspaces of libraries are large, so the host has
 * none. */
static char *noisy_scratch(size_t bytes) {
    static char noise[1 << 20];
    void *memory = NULL;
    tp_status status = tpi_memory_take(gpu->memory, bytes + CASE_GUARD, &memory);
    memset(noise, CASE_NOISE, sizeof noise);
    for (size_t at = 0; status == TP_OK && at < bytes + CASE_GUARD; at += sizeof noise) {
        const size_t left = bytes + CASE_GUARD - at;
        status = tpi_device_write(gpu, (char *)memory + at, noise, left < sizeof noise ? left : sizeof noise);
    }
    if (status != TP_OK) fprintf(stderr, "%s\n", tp_error_message()), faults++;
    return memory;
}

static bool scratch_guard_holds(const char *scratch, size_t bytes, uint64_t mark) {
    unsigned char guard[CASE_GUARD] = {0};
    if (gpu->calls->read(gpu->state, guard, scratch + bytes, sizeof guard, mark) != TP_OK) return false;
    for (int i = 0; i < CASE_GUARD; i++)
        if (guard[i] != CASE_NOISE) return false;
    return true;
}

/* Runs the prepared step on the device; the host's blocks take what came out. */
static tp_status run_on_gpu(case_run *run) {
    void *doubles[CASE_OPERANDS + 1] = {0}, *pointers[CASE_OPERANDS + 1] = {0};
    const size_t bytes = run->step.scratch;
    char *scratch = noisy_scratch(bytes);
    for (int k = 0; k <= CASE_OPERANDS; k++) doubles[k] = double_of(&run->blocks[k]);
    for (int k = 0; k <= CASE_OPERANDS; k++) {
        const char *at = run->pointers[k];
        for (int j = 0; at && j <= CASE_OPERANDS; j++) {
            const case_block *b = &run->blocks[j];
            if (b->memory && at >= b->memory && at <= b->memory + b->bytes + CASE_GUARD)
                pointers[k] = (char *)doubles[j] + (at - b->memory);
        }
    }
    pointers[run->instance->n_in + run->instance->n_out] = scratch;
    const tpi_bound bound = {.steps = &run->step,
                             .n_steps = 1,
                             .n_slots = CASE_OPERANDS + 1,
                             .can_fail = true,
                             .slots = pointers,
                             .threads = threads};
    uint64_t mark = 0;
    tp_status status = gpu->backend->run(gpu->state, &bound, &mark);
    if (status == TP_OK) status = gpu->calls->wait(gpu->state, mark);
    for (int k = 0; k <= CASE_OPERANDS; k++) {
        const case_block *b = &run->blocks[k];
        if (!b->memory) continue;
        if (status == TP_OK)
            status = gpu->calls->read(gpu->state, b->memory, doubles[k], b->bytes + 2 * CASE_GUARD, mark);
        tpi_memory_give(gpu->memory, doubles[k], b->bytes + 2 * CASE_GUARD);
    }
    if (status == TP_OK && !scratch_guard_holds(scratch, bytes, mark))
        status = tpi_fail(TP_EINTERNAL, "wrote behind its scratch");
    tpi_memory_give(gpu->memory, scratch, bytes + CASE_GUARD);
    return status;
}

static void complain(const char *label, const char *kernel, const char *text) {
    printf("FAIL %s: %s %s\n", label, kernel, text);
    faults++;
}

/* Tensor cores take operands of the inputs' dtype: what is made on the way (probabilities, low-rank products)
 * is rounded to it once more; but on Hopper so is what an adapter adds. */
static double slack_of(const case_instance *c, const tpi_kernel *kernel) {
    const double made = c->f == TP_BF16 ? 0x1p-7 : c->f == TP_F16 ? 0x1p-10 : 0;
    const bool twice = !hopper && c->from->op == TPI_LINEAR_LORA && strcmp(kernel->name, "cuda-tensor") == 0;
    return twice ? fmax(made, 0x1p-8) : made;
}

static bool check_kernel(const case_run *want, const tpi_kernel *kernel, const case_variation *v) {
    case_run got;
    char label[256], text[160];
    const bool shares = v->share[0] >= 0 || v->share[1] >= 0 || v->share[2] >= 0;
    case_label(want->instance, label);
    case_run_init(&got, want->instance);
    case_run_vary(&got, v);
    bool accepted = case_run_prepare(&got, kernel, threads);
    if (accepted) {
        runs++;
        if (verbose) printf("%s: %s\n", label, kernel->name);
        if (run_on_gpu(&got) != TP_OK)
            complain(label, kernel->name, tp_error_message());
        else if (!case_run_equal(&got, want, slack_of(want->instance, kernel), text))
            complain(label, kernel->name, text);
        else if (!case_run_guards_hold(&got))
            complain(label, kernel->name, "wrote outside of its outputs");
        else if (!shares && case_run_changed_input(&got, want) >= 0)
            complain(label, kernel->name, "wrote into an input");
    }
    case_run_clear(&got);
    return accepted;
}

static bool strided(const case_instance *c) {
    for (int k = 0; k < c->n_in; k++)
        if (!c->operands[k].operand.contiguous) return true;
    return false;
}

static void check_case(const case_instance *instance) {
    const tpi_kernel *kernels = gpu->backend->kernels(instance->from->op);
    const tpi_kernel *reference = tpi_backend_cpu()->kernels(instance->from->op);
    case_variation variations[CASE_VARIATIONS];
    const int n = case_variations(instance, variations);
    char label[256];
    case_run want;
    tp_status status;
    case_run_init(&want, instance);
    case_run_kernel(&want, &reference[case_kernel_count(instance->from->op) - 1], threads, &status);
    bool any = false;
    for (int k = 0; kernels && kernels[k].run; k++)
        for (int v = 0; v < n; v++) any |= check_kernel(&want, &kernels[k], &variations[v]);
    if (!any && !strided(instance)) {
        complain(case_label(instance, label), "none", "takes it");
        refused++;
    }
    case_run_clear(&want);
}

static bool is_run(const op_case *c, const char *only) {
    if (c->kind == CASE_SPEED || tpi_ops[c->op].flags & TPI_FLAG_VIEW) return false;
    return !only || strcmp(tpi_ops[c->op].name, only) == 0;
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : NULL;
    verbose = argc > 2 && strcmp(argv[2], "-v") == 0;
    static const tp_dtype floats[] = {TP_F32, TP_BF16, TP_F16};
    tp_context *ctx;
    if (tp_context_create(&ctx, NULL) != TP_OK || tpi_threads_create(&threads, 1) != TP_OK) return 1;
    if (!(gpu = tp_device_cuda(ctx, 0))) {
        printf("skipped: %s\n", tp_error_message());
        tp_context_destroy(ctx);
        tpi_threads_destroy(threads);
        return 77;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* what was found is told even if a kernel never ends */
    printf("%s: %s\n", tp_device_name(gpu), tp_device_description(gpu));
    const char *capability = strstr(tp_device_description(gpu), "capability ");
    hopper = capability && strcmp(capability, "capability 9.0") == 0;
    for (int i = 0; i < op_case_count; i++)
        for (int f = 0; f < 3; f++) {
            case_instance instance;
            if (is_run(&op_cases[i], only) && case_instantiate(&op_cases[i], floats[f], &instance))
                check_case(&instance);
        }
    printf("%d launches, %d faults, %d cases that no kernel takes\n", runs, faults, refused);
    tp_context_destroy(ctx);
    tpi_threads_destroy(threads);
    return faults > 0;
}
