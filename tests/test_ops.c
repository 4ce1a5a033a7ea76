/* The table of operations against the case table: every kernel against the reference, gradients against
 * finite differences. The table's speed mode is a program of its own, case_speed. */
#include "cases_run.h"

#include <criterion/criterion.h>
#include <string.h>

/* ---- the walk: the table is whole ---- */

/* Copies between devices have tests of their own, where there are two. */
static bool reaches_backend(tpi_op op) {
    return !(tpi_ops[op].flags & TPI_FLAG_VIEW) && op != TPI_LEAF && op != TPI_ASSIGN;
}

static bool has_case(tpi_op op) {
    for (int i = 0; i < op_case_count; i++)
        if (op_cases[i].op == op) return true;
    return false;
}

Test(ops, table_is_whole) {
    for (int i = 0; i < TPI_OP_COUNT; i++) {
        tpi_op op = (tpi_op)i;
        const tpi_op_desc *desc = &tpi_ops[op];
        bool planned = desc->flags & TPI_FLAG_PLANNED, no_grad = desc->flags & TPI_FLAG_NO_GRAD;
        if (op != TPI_LEAF && op != TPI_PART && !planned)
            cr_expect(desc->infer, "%s has no shape inference", desc->name);
        if (!planned) cr_expect((desc->vjp != NULL) != no_grad, "%s: a vjp or NO_GRAD, not both", desc->name);
        if (op != TPI_LEAF && op != TPI_ASSIGN && op != TPI_PART && op != TPI_TO_DEVICE)
            cr_expect(has_case(op), "%s has no case", desc->name);
        if (!reaches_backend(op)) continue;
        int n = case_kernel_count(op);
        cr_assert(n > 0, "%s has no kernel", desc->name);
        const tpi_kernel *last = &tpi_backend_cpu()->kernels(op)[n - 1];
        cr_expect(strcmp(last->name, "reference") == 0 && !last->accepts,
                  "%s: the last kernel is no reference", desc->name);
    }
}

/* ---- kernels against the reference ---- */

/* Of the largest value: kernels that multiply bf16 round exponentials to it on the way, and of attention's
 * gradient the scores' gradients, too. */
static double slack_of(const case_run *want, const tpi_kernel *kernel) {
    const bool multiplies = strcmp(kernel->name, "amx") == 0 || strcmp(kernel->name, "avx512_bf16") == 0;
    if (!multiplies || want->operands[0].dtype != TP_BF16 || want->operands[1].dtype != TP_BF16) return 0;
    switch (want->instance->from->op) {
    case TPI_LINEAR_CROSS_ENTROPY:
        return 0x1p-9;
    case TPI_ATTENTION:
    case TPI_ATTENTION_GRAD:
        return 0x1p-8;
    default:
        return 0;
    }
}

static void check_kernel(const case_run *want, const tpi_kernel *kernel, tpi_threads *threads,
                         const case_variation *v) {
    case_run got;
    char label[256], difference[160];
    tp_status status;
    const bool shares = v->share[0] >= 0 || v->share[1] >= 0 || v->share[2] >= 0;
    case_label(want->instance, label);
    case_run_init(&got, want->instance);
    case_run_vary(&got, v);
    if (case_run_kernel(&got, kernel, threads, &status)) {
        cr_assert_eq(status, TP_OK, "%s: %s failed: %s", label, kernel->name, tp_error_message());
        cr_expect(case_run_equal(&got, want, slack_of(want, kernel), difference), "%s: %s %s", label,
                  kernel->name, difference);
        cr_expect(case_run_guards_hold(&got), "%s: %s wrote outside of its outputs", label, kernel->name);
        if (!shares)
            cr_expect(case_run_changed_input(&got, want) < 0, "%s: %s wrote into an input", label,
                      kernel->name);
    }
    case_run_clear(&got);
}

/* The same bits on one thread as on three, where both divide their work alike. */
static void check_parts(const case_instance *instance, const tpi_kernel *kernel,
                        tpi_threads *const split[2]) {
    case_run got[2];
    char label[256];
    tp_status status[2];
    bool taken = true;
    for (int i = 0; i < 2; i++) {
        case_run_init(&got[i], instance);
        taken &= case_run_kernel(&got[i], kernel, split[i], &status[i]);
    }
    for (int k = instance->n_in; taken && k < instance->n_in + instance->n_out; k++)
        cr_expect(memcmp(got[0].blocks[k].data, got[1].blocks[k].data, got[0].blocks[k].bytes) == 0,
                  "%s: %s: output %d depends on the number of threads", case_label(instance, label),
                  kernel->name, k - instance->n_in);
    for (int i = 0; i < 2; i++) case_run_clear(&got[i]);
}

static void check_parts_of(tp_dtype f) {
    tpi_threads *split[2];
    for (int i = 0; i < 2; i++) cr_assert_eq(tpi_threads_create_split(&split[i], 1 + 2 * i, 16), TP_OK);
    for (int i = 0; i < op_case_count; i++) {
        case_instance instance;
        if (op_cases[i].kind == CASE_SPEED || !reaches_backend(op_cases[i].op)) continue;
        if (!case_instantiate(&op_cases[i], f, &instance)) continue;
        const tpi_kernel *kernels = tpi_backend_cpu()->kernels(op_cases[i].op);
        for (int k = 0; k < case_kernel_count(op_cases[i].op); k++)
            check_parts(&instance, &kernels[k], split);
    }
    for (int i = 0; i < 2; i++) tpi_threads_destroy(split[i]);
}

static void check_case(const case_instance *instance, tpi_threads *one, tpi_threads *several) {
    const tpi_kernel *kernels = tpi_backend_cpu()->kernels(instance->from->op);
    int n = case_kernel_count(instance->from->op);
    case_variation variations[CASE_VARIATIONS];
    const int n_variations = case_variations(instance, variations);
    case_run want;
    tp_status status;
    case_run_init(&want, instance);
    case_run_kernel(&want, &kernels[n - 1], one, &status);
    char label[256];
    cr_assert_eq(status, TP_OK, "%s: the reference failed: %s", case_label(instance, label),
                 tp_error_message());
    cr_expect(case_run_guards_hold(&want), "%s: the reference wrote outside of its outputs", label);
    for (int k = 0; k < n; k++)
        for (int v = 0; v < n_variations; v++) {
            check_kernel(&want, &kernels[k], one, &variations[v]);
            check_kernel(&want, &kernels[k], several, &variations[v]);
        }
    case_run_clear(&want);
}

static void check_cases_of(tp_dtype f) {
    tpi_threads *one, *several;
    cr_assert_eq(tpi_threads_create(&one, 1), TP_OK);
    cr_assert_eq(tpi_threads_create(&several, 3), TP_OK);
    for (int i = 0; i < op_case_count; i++) {
        case_instance instance;
        if (op_cases[i].kind == CASE_SPEED || !reaches_backend(op_cases[i].op)) continue;
        if (case_instantiate(&op_cases[i], f, &instance)) check_case(&instance, one, several);
    }
    tpi_threads_destroy(one);
    tpi_threads_destroy(several);
}

Test(ops, kernels_equal_reference_f32, .timeout = 120) {
    check_cases_of(TP_F32);
}
Test(ops, kernels_equal_reference_bf16, .timeout = 120) {
    check_cases_of(TP_BF16);
}
Test(ops, kernels_equal_reference_f16, .timeout = 120) {
    check_cases_of(TP_F16);
}

Test(ops, kernels_depend_on_parts_alone, .timeout = 120) {
    check_parts_of(TP_F32);
    check_parts_of(TP_BF16);
}
