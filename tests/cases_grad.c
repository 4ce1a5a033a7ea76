/* The case table through the graph: values against the reference kernel, and tp_graph_grad against central
 * differences. The loss is Σ y·r with fixed numbers r; the differences evaluate y in f32 and sum in double,
 * so that only y's own rounding is in them. */
#include "cases_graph.h"
#include "cases_run.h"

#include "core/convert.h"
#include "graph/node.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEP      0x1p-9
#define TOLERANCE 4e-3 /* of gradients of about 1: f32 rounding / STEP, and the third derivative · STEP² */

typedef struct leaf {
    tp_tensor *tensor;
    float *values; /* of the block; NULL for integers */
} leaf;

static leaf leaf_create(tp_device *device, const case_operand *c, int seed) {
    leaf l = {0};
    void *data;
    cr_assert_eq(case_leaf_create(device, c, seed, &l.tensor, &data), TP_OK);
    if (c->operand.dtype == TP_F32)
        l.values = data;
    else
        free(data);
    return l;
}

typedef struct subject {
    const case_instance *instance;
    tp_context *context;
    tp_graph *graph;
    leaf leaves[CASE_OPERANDS];
    float *y, *weights; /* values of output 0, and r */
    int64_t count;
} subject;

static tp_lazy *record(subject *s, tp_lazy *inputs[]) {
    const op_case *from = s->instance->from;
    tp_lazy *views[CASE_OPERANDS];
    tp_graph_reset(s->graph);
    for (int k = 0; k < s->instance->n_in; k++) {
        inputs[k] = tp_lazy_from_tensor(s->graph, s->leaves[k].tensor);
        views[k] = case_leaf_view(inputs[k], &s->instance->operands[k]);
    }
    return tpi_record_op(s->graph, NULL, from->op, views, s->instance->n_in, from->attr, from->attr_bytes);
}

/* Evaluates output 0 into s->y. */
static void evaluate(subject *s) {
    tp_lazy *inputs[CASE_OPERANDS];
    tp_tensor *result;
    char label[256];
    tp_status status = tp_lazy_eval(record(s, inputs), &result);
    cr_assert_eq(status, TP_OK, "%s: %s", case_label(s->instance, label), tp_error_message());
    cr_assert_eq(tp_tensor_read(result, TP_F32, s->y, (size_t)s->count * 4), TP_OK);
    tp_tensor_release(result);
}

static double loss(subject *s) {
    double sum = 0;
    evaluate(s);
    for (int64_t i = 0; i < s->count; i++) sum += (double)s->y[i] * (double)s->weights[i];
    return sum;
}

static double difference(subject *s, int k, int64_t i) {
    leaf *l = &s->leaves[k];
    size_t bytes = (size_t)s->instance->operands[k].elements * sizeof(float);
    float kept = l->values[i];
    l->values[i] = kept + (float)STEP;
    double width = (double)l->values[i];
    cr_assert_eq(tp_tensor_write(l->tensor, l->values, bytes), TP_OK);
    double above = loss(s);
    l->values[i] = kept - (float)STEP;
    width -= (double)l->values[i];
    cr_assert_eq(tp_tensor_write(l->tensor, l->values, bytes), TP_OK);
    double below = loss(s);
    l->values[i] = kept;
    cr_assert_eq(tp_tensor_write(l->tensor, l->values, bytes), TP_OK);
    return (above - below) / width;
}

/* The recorded gradients of Σ y·r by the float inputs; grads[k] is NULL for the others. */
static void gradients(subject *s, tp_tensor *grads[]) {
    const case_operand *y = &s->instance->operands[s->instance->n_in];
    tp_lazy *inputs[CASE_OPERANDS], *wanted[CASE_OPERANDS], *recorded[CASE_OPERANDS];
    tp_tensor *results[CASE_OPERANDS];
    char label[256];
    int n = 0;
    tp_lazy *out = record(s, inputs);
    tp_lazy *r = tp_lazy_from_slice(s->graph, tp_lazy_device(out), TP_F32, y->operand.rank, y->operand.shape,
                                    s->weights);
    tp_lazy *total = tp_lazy_sum(tp_lazy_mul(out, r), TP_ALL_DIMS, false);
    for (int k = 0; k < s->instance->n_in; k++)
        if (s->leaves[k].values && !s->instance->operands[k].no_grad) wanted[n++] = inputs[k];
    tp_status status = tp_graph_grad(s->graph, total, wanted, n, recorded);
    if (status == TP_OK) status = tp_graph_eval(s->graph, recorded, n, results);
    cr_assert_eq(status, TP_OK, "%s: %s", case_label(s->instance, label), tp_error_message());
    n = 0;
    for (int k = 0; k < s->instance->n_in; k++)
        grads[k] = s->leaves[k].values && !s->instance->operands[k].no_grad ? results[n++] : NULL;
}

static void expect_gradients(subject *s) {
    tp_tensor *grads[CASE_OPERANDS];
    char label[256];
    gradients(s, grads);
    for (int k = 0; k < s->instance->n_in; k++) {
        if (!grads[k]) continue;
        const float *g = tp_tensor_data(grads[k]);
        cr_assert(g, "%s: %s", case_label(s->instance, label), tp_error_message());
        for (int64_t i = 0; i < s->instance->operands[k].elements; i++) {
            double want = difference(s, k, i), got = (double)g[i];
            bool same = fabs(got - want) <= TOLERANCE * (1 + fabs(want));
            cr_expect(same, "%s: the gradient by input %d is %.6g at %lld, the difference quotient %.6g",
                      case_label(s->instance, label), k, got, (long long)i, want);
            if (!same) break;
        }
        tp_tensor_release(grads[k]);
    }
}

/* What the graph gives for the case is what the reference kernel gives. */
static void expect_values(subject *s) {
    const tpi_kernel *kernels = tpi_backend_cpu()->kernels(s->instance->from->op);
    case_run want;
    tpi_threads *threads;
    tp_status status;
    char label[256];
    if (!kernels) return; /* a view */
    cr_assert_eq(tpi_threads_create(&threads, 1), TP_OK);
    case_run_init(&want, s->instance);
    case_run_kernel(&want, &kernels[case_kernel_count(s->instance->from->op) - 1], threads, &status);
    evaluate(s);
    for (int64_t i = 0; i < s->count; i++) {
        double a = (double)s->y[i], b = case_run_result(&want, 0, i);
        bool same = fabs(a - b) <= 1e-5 * (1 + fabs(b));
        cr_expect(same, "%s: the graph gives %.9g at %lld, the reference %.9g",
                  case_label(s->instance, label), a, (long long)i, b);
        if (!same) break;
    }
    case_run_clear(&want);
    tpi_threads_destroy(threads);
}

static void check_case(tp_context *context, const case_instance *instance) {
    const case_operand *y = &instance->operands[instance->n_in];
    subject s = {.instance = instance, .context = context, .count = y->operand.count};
    cr_assert_eq(tp_graph_create(&s.graph, context), TP_OK);
    for (int k = 0; k < instance->n_in; k++)
        s.leaves[k] = leaf_create(tp_device_cpu(context), &instance->operands[k], k);
    s.y = malloc((size_t)s.count * sizeof(float));
    s.weights = malloc((size_t)s.count * sizeof(float));
    cr_assert(s.y && s.weights);
    for (int64_t i = 0; i < s.count; i++) s.weights[i] = (float)((i * 29 + 7) % 31 - 15) / 16;
    expect_values(&s);
    expect_gradients(&s);
    tp_graph_destroy(s.graph);
    for (int k = 0; k < instance->n_in; k++) {
        tp_tensor_release(s.leaves[k].tensor);
        free(s.leaves[k].values);
    }
    free(s.y);
    free(s.weights);
}

Test(ops, gradients_equal_differences, .timeout = 120) {
    tp_context *context;
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 2;
    cr_assert_eq(tp_context_create(&context, &options), TP_OK);
    for (int i = 0; i < op_case_count; i++) {
        case_instance instance;
        if (op_cases[i].kind != CASE_FULL) continue;
        cr_assert(tpi_ops[op_cases[i].op].vjp, "%s has a gradient case but no vjp",
                  tpi_ops[op_cases[i].op].name);
        if (case_instantiate(&op_cases[i], TP_F32, &instance)) check_case(context, &instance);
    }
    tp_context_destroy(context);
}

/* Every differentiable operation has a case for its gradient. */
Test(ops, each_vjp_has_a_case) {
    for (int op = 0; op < TPI_OP_COUNT; op++) {
        bool found = false;
        for (int i = 0; i < op_case_count; i++)
            found |= (int)op_cases[i].op == op && op_cases[i].kind == CASE_FULL;
        if (tpi_ops[op].vjp && op != TPI_TO_DEVICE)
            cr_expect(found, "%s has a vjp but no gradient case", tpi_ops[op].name);
    }
}
