/* The engine on a GPU: what is recorded gives the CPU's numbers, gradients too; runs are replayed, fail
 * without touching state, and are waited for.
 *
 * Ends with 77, saying why, where there is no GPU. A plain program: it runs where only the library does. */
#include "cases_graph.h"
#include "cases_run.h"

#include "core/convert.h"
#include "graph/node.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static tp_context *ctx;
static tp_graph *g;
static tp_device *cpu, *gpu;
static int checks, faults;

#define check(condition, ...)                                                                                \
    do {                                                                                                     \
        checks++;                                                                                            \
        if (!(condition)) {                                                                                  \
            faults++;                                                                                        \
            printf("FAIL %s:%d: ", __func__, __LINE__);                                                      \
            printf(__VA_ARGS__);                                                                             \
            printf("\n");                                                                                    \
        }                                                                                                    \
    } while (0)
#define must(call) check((call) == TP_OK, "%s: %s", #call, tp_error_message())

#define SHAPE(...) ((int64_t[]){__VA_ARGS__})

static float *values_of(const tp_tensor *t) {
    const size_t bytes = (size_t)tp_tensor_count(t) * sizeof(float);
    float *values = calloc(1, bytes + 1);
    if (!values) abort();
    must(tp_tensor_read(t, TP_F32, values, bytes));
    return values;
}

static double largest(const float *x, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, isfinite(x[i]) ? fabs((double)x[i]) : 0);
    return most;
}

/* ---- recordings of the case table on both devices ---- */

typedef struct outcome {
    int n;
    tp_tensor *tensors[CASE_OPERANDS + 1]; /* output 0, then gradients */
} outcome;

static tp_lazy *weighted_sum(tp_lazy *y) {
    tp_device *device = tp_lazy_device(y);
    tp_tensor *r;
    must(tp_tensor_uniform(device, tp_lazy_rank(y), tp_lazy_shape(y), -1, 1, 7, &r));
    tp_lazy *sum =
        tp_lazy_sum(tp_lazy_mul(tp_lazy_cast(y, TP_F32), tp_lazy_from_tensor(g, r)), TP_ALL_DIMS, false);
    tp_tensor_release(r);
    return sum;
}

static tp_status evaluate_case(const case_instance *c, tp_device *device, outcome *out) {
    tp_lazy *leaves[CASE_OPERANDS], *views[CASE_OPERANDS], *wanted[CASE_OPERANDS], *all[CASE_OPERANDS + 1];
    int n = 0;
    tp_graph_reset(g);
    for (int k = 0; k < c->n_in; k++) {
        tp_tensor *tensor;
        void *elements;
        must(case_leaf_create(device, &c->operands[k], k, &tensor, &elements));
        leaves[k] = tp_lazy_from_tensor(g, tensor);
        views[k] = case_leaf_view(leaves[k], &c->operands[k]);
        tp_tensor_release(tensor);
        free(elements);
        if (tpi_is_float((tp_dtype)c->operands[k].operand.dtype) && !c->operands[k].no_grad)
            wanted[n++] = leaves[k];
    }
    all[0] = tpi_record_op(g, NULL, c->from->op, views, c->n_in, c->from->attr, c->from->attr_bytes);
    const bool differentiable = tpi_ops[c->from->op].vjp && tpi_is_float((tp_dtype)all[0]->record.dtype);
    tp_status status = TP_OK;
    if (differentiable && n > 0) status = tp_graph_grad(g, weighted_sum(all[0]), wanted, n, all + 1);
    out->n = differentiable ? 1 + n : 1;
    if (status == TP_OK) status = tp_graph_eval(g, all, out->n, out->tensors);
    tp_graph_reset(g);
    return status;
}

static void compare_case(const case_instance *c) {
    outcome want = {0}, got = {0};
    char label[256];
    case_label(c, label);
    tp_status status = evaluate_case(c, cpu, &want);
    check(status == TP_OK, "%s: cpu: %s", label, tp_error_message());
    tp_status far = evaluate_case(c, gpu, &got);
    check(far == TP_OK, "%s: gpu: %s", label, tp_error_message());
    for (int i = 0; status == TP_OK && far == TP_OK && i < want.n; i++) {
        const int64_t n = tp_tensor_count(want.tensors[i]);
        const tp_dtype dtype = tp_tensor_dtype(want.tensors[i]);
        const bool coarse = c->f != TP_F32;
        float *a = values_of(got.tensors[i]), *b = values_of(want.tensors[i]);
        const double most = largest(b, n), part = !tpi_is_float(dtype) ? 0 : coarse ? 0x1p-5 : 2e-5;
        for (int64_t k = 0; k < n; k++) {
            const double x = (double)a[k], y = (double)b[k];
            const bool same =
                x == y || (x != x && y != y) || fabs(x - y) <= part * (0.2 * fabs(y) + most) + 5e-7;
            check(same, "%s: %s %d: %.9g at %lld, the CPU has %.9g", label, i ? "gradient" : "output", i, x,
                  (long long)k, y);
            if (!same) break;
        }
        free(a), free(b);
    }
    for (int i = 0; i < want.n; i++) tp_tensor_release(want.tensors[i]);
    for (int i = 0; i < got.n; i++) tp_tensor_release(got.tensors[i]);
}

static void recordings(void) {
    static const tp_dtype floats[] = {TP_F32, TP_BF16, TP_F16};
    for (int i = 0; i < op_case_count; i++)
        for (int f = 0; f < 3; f++) {
            case_instance instance;
            if (op_cases[i].kind == CASE_FULL && case_instantiate(&op_cases[i], floats[f], &instance))
                compare_case(&instance);
        }
}

/* ---- a training loop: replayed, and equal to the CPU's ---- */

#define ROWS  64
#define WIDE  96
#define RANK  8
#define STEPS 12

/* Trains A and B of y = x·A·B to give x's own rows; returns the last loss. */
static float train(tp_device *device) {
    tp_tensor *x, *p[2], *m[2], *v[2], *loss = NULL;
    const int64_t shapes[2][2] = {{WIDE, RANK}, {RANK, WIDE}};
    float value = NAN;
    must(tp_tensor_randn(device, 2, SHAPE(ROWS, WIDE), 1, &x));
    for (int i = 0; i < 2; i++) {
        must(tp_tensor_uniform(device, 2, shapes[i], -0.1, 0.1, 2 + (uint64_t)i, &p[i]));
        must(tp_tensor_zeros(device, TP_F32, 2, shapes[i], &m[i]));
        must(tp_tensor_zeros(device, TP_F32, 2, shapes[i], &v[i]));
    }
    for (int step = 1; step <= STEPS; step++) {
        const float rates[3] = {0.01f, 1 - powf(0.9f, (float)step), 1 - powf(0.999f, (float)step)}, one = 1;
        const tp_adamw_options adamw = TP_ADAMW_OPTIONS_INIT;
        tp_lazy *in = tp_lazy_from_tensor(g, x), *w[2], *grads[2];
        for (int i = 0; i < 2; i++) w[i] = tp_lazy_from_tensor(g, p[i]);
        tp_lazy *error = tp_lazy_sub(tp_lazy_lora_fused(in, w[0], w[1], 2.0), in);
        tp_lazy *out = tp_lazy_mean(tp_lazy_mul(error, error), TP_ALL_DIMS, false);
        must(tp_graph_grad(g, out, w, 2, grads));
        tp_lazy *t = tp_lazy_from_slice(g, device, TP_F32, 1, SHAPE(3), rates);
        tp_lazy *scale = tp_lazy_from_slice(g, device, TP_F32, 0, NULL, &one);
        for (int i = 0; i < 2; i++)
            tp_lazy_adamw(w[i], tp_lazy_from_tensor(g, m[i]), tp_lazy_from_tensor(g, v[i]), grads[i], t,
                          scale, &adamw);
        must(tp_lazy_eval(out, &loss));
        must(tp_tensor_read(loss, TP_F32, &value, sizeof value));
        tp_tensor_release(loss);
        tp_graph_reset(g);
    }
    for (int i = 0; i < 2; i++) tp_tensor_release(p[i]), tp_tensor_release(m[i]), tp_tensor_release(v[i]);
    tp_tensor_release(x);
    return value;
}

static void training(void) {
    const float a = train(gpu), b = train(cpu), again = train(gpu);
    check(fabsf(a - b) < 1e-4f * b, "loss %.7g, the CPU's %.7g", (double)a, (double)b);
    check(a == again, "the same run gives %.9g and %.9g", (double)a, (double)again);
    check(a < 0.9f, "the loss did not fall: %.7g", (double)a);
}

/* Two parameters and a row that is asked for behind their updates: since that may fail, no update is in its
 * place, and what one makes may lie over the gradient that another has read. */
#define PARAMETERS 2
#define LONG       512
#define SHORT      64

static void update_before_a_failure(tp_device *device, float *out) {
    const float rates[3] = {0.1f, 0.1f, 0.001f}, one = 1;
    const tp_adamw_options adamw = TP_ADAMW_OPTIONS_INIT;
    tp_tensor *state[PARAMETERS][3], *row;
    tp_lazy *leaf[PARAMETERS][3], *grads[PARAMETERS];
    for (int i = 0; i < PARAMETERS; i++)
        for (int k = 0; k < 3; k++) {
            must(tp_tensor_uniform(device, 2, SHAPE(LONG, SHORT), 0.1, 1, (uint64_t)(3 * i + k),
                                   &state[i][k]));
            leaf[i][k] = tp_lazy_from_tensor(g, state[i][k]);
        }
    for (int i = 0; i < PARAMETERS; i++) grads[i] = tp_lazy_mul(leaf[i][0], leaf[i][1]);
    tp_lazy *t = tp_lazy_from_slice(g, device, TP_F32, 1, SHAPE(3), rates);
    tp_lazy *scale = tp_lazy_from_slice(g, device, TP_F32, 0, NULL, &one);
    for (int i = 0; i < PARAMETERS; i++)
        tp_lazy_adamw(leaf[i][0], leaf[i][1], leaf[i][2], grads[i], t, scale, &adamw);
    tp_lazy *id = tp_lazy_from_slice(g, device, TP_I32, 1, SHAPE(1), (int32_t[]){3});
    must(tp_lazy_eval(tp_lazy_gather(leaf[0][2], id), &row));
    tp_graph_reset(g);
    for (int i = 0; i < PARAMETERS; i++)
        for (int k = 0; k < 3; k++, out += LONG * SHORT) {
            must(tp_tensor_read(state[i][k], TP_F32, out, LONG * SHORT * sizeof *out));
            tp_tensor_release(state[i][k]);
        }
    tp_tensor_release(row);
}

static void updates_lie_apart(void) {
    const int n = 3 * PARAMETERS * LONG * SHORT;
    float *want = calloc((size_t)n, sizeof *want), *got = calloc((size_t)n, sizeof *got);
    if (!want || !got) abort();
    update_before_a_failure(cpu, want);
    for (int round = 0; round < 4; round++) {
        update_before_a_failure(gpu, got);
        for (int i = 0; i < n; i++) {
            const bool close = fabsf(got[i] - want[i]) <= 1e-5f;
            check(close, "round %d: element %d: %.9g, the CPU has %.9g", round, i, (double)got[i],
                  (double)want[i]);
            if (!close) break;
        }
    }
    free(want), free(got);
}

/* ---- failures ---- */

static void faults_leave_state(void) {
    tp_tensor *table, *ids, *state, *out = NULL;
    const int32_t bad[2] = {1, 9};
    float before[4] = {1, 2, 3, 4}, after[4];
    must(tp_tensor_randn(gpu, 2, SHAPE(3, 4), 5, &table));
    must(tp_tensor_from_data(gpu, TP_I32, 1, SHAPE(2), bad, &ids));
    must(tp_tensor_from_data(gpu, TP_F32, 1, SHAPE(4), before, &state));
    for (int round = 0; round < 4; round++) {
        tp_lazy *rows = tp_lazy_gather(tp_lazy_from_tensor(g, table), tp_lazy_from_tensor(g, ids));
        tp_lazy *s = tp_lazy_from_tensor(g, state);
        tp_lazy_assign(s, tp_lazy_add(s, tp_lazy_sum(rows, 0, false)));
        must(tp_lazy_eval(rows, &out)); /* the run is queued: what is wrong is found by who reads */
        float values[8];
        tp_status status = tp_tensor_read(out, TP_F32, values, sizeof values);
        check(status == TP_EINVAL && strstr(tp_error_message(), "gather"), "round %d: %s: %s", round,
              tp_status_name(status), tp_error_message());
        must(tp_tensor_read(state, TP_F32, after, sizeof after));
        check(memcmp(before, after, sizeof before) == 0, "round %d: the failed run wrote state: %g %g %g %g",
              round, (double)after[0], (double)after[1], (double)after[2], (double)after[3]);
        tp_lazy *user = tp_lazy_neg(tp_lazy_from_tensor(g, out));
        check(tp_lazy_eval(user, NULL) == TP_EINVAL, "a lost result was read by another run");
        tp_tensor_release(out);
        tp_graph_reset(g);
    }
    tp_tensor_release(table), tp_tensor_release(ids), tp_tensor_release(state);
}

/* Plans of one step, launched and then captured, in more runs than are under way at once. */
static void short_plans(void) {
    const int32_t positions[2][2] = {{1, 2}, {1, 9}};
    const float zero = 0;
    tp_tensor *count, *table, *ids[2], *out, *lost = NULL;
    float value, rows[8];
    must(tp_tensor_from_data(gpu, TP_F32, 0, NULL, &zero, &count));
    must(tp_tensor_randn(gpu, 2, SHAPE(3, 4), 5, &table));
    for (int i = 0; i < 2; i++) must(tp_tensor_from_data(gpu, TP_I32, 1, SHAPE(2), positions[i], &ids[i]));
    for (int round = 0; round < 100; round++) {
        tp_lazy *c = tp_lazy_from_tensor(g, count);
        tp_lazy_assign(c, tp_lazy_add_scalar(c, 1));
        must(tp_graph_eval(g, NULL, 0, NULL));
        tp_graph_reset(g);
        const int bad = round % 2;
        must(tp_lazy_eval(tp_lazy_gather(tp_lazy_from_tensor(g, table), tp_lazy_from_tensor(g, ids[bad])),
                          &out));
        if (round % 5 == 0)
            check(tp_tensor_read(out, TP_F32, rows, sizeof rows) == (bad ? TP_EINVAL : TP_OK), "round %d",
                  round);
        if (round == 77) lost = tp_tensor_retain(out);
        tp_tensor_release(out);
        tp_graph_reset(g);
    }
    must(tp_tensor_read(count, TP_F32, &value, sizeof value));
    check(value == 100, "counted to %g", (double)value);
    check(tp_tensor_read(lost, TP_F32, rows, sizeof rows) == TP_EINVAL, "a failure was forgotten");
    tp_tensor_release(count), tp_tensor_release(table), tp_tensor_release(lost);
    for (int i = 0; i < 2; i++) tp_tensor_release(ids[i]);
}

static void memory(void) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.memory_limit = 1 << 20;
    tp_context *small;
    tp_tensor *t = NULL;
    must(tp_context_create(&small, &options));
    tp_device *device = tp_device_cuda(small, 0);
    check(tp_tensor_zeros(device, TP_F32, 1, SHAPE(1 << 20), &t) == TP_ELIMIT,
          "4 MiB under a limit of 1 MiB");
    tp_context_destroy(small);
    check(tp_tensor_zeros(gpu, TP_F32, 1, SHAPE((int64_t)1 << 40), &t) == TP_ENOMEM && !t, "4 TiB: %s",
          tp_error_message());
    must(tp_tensor_ones(gpu, TP_F32, 1, SHAPE(8), &t)); /* and it goes on */
    tp_tensor_release(t);
}

static void nonfinite(void) {
    tp_tensor *x;
    must(tp_tensor_full(gpu, TP_F32, 1, SHAPE(4), -1, &x));
    const bool was = tp_context_detect_nonfinite(ctx, true);
    tp_status status = tp_lazy_eval(tp_lazy_log(tp_lazy_from_tensor(g, x)), NULL);
    check(status == TP_ENONFINITE && strstr(tp_error_message(), "log"), "%s", tp_error_message());
    tp_context_detect_nonfinite(ctx, was);
    tp_tensor_release(x);
    tp_graph_reset(g);
}

/* ---- devices and events ---- */

static void crossing(void) {
    tp_tensor *x, *out;
    float back[6];
    const float numbers[6] = {1, -2, 3, -4, 5, -6};
    must(tp_tensor_from_data(cpu, TP_F32, 2, SHAPE(2, 3), numbers, &x));
    tp_lazy *leaf = tp_lazy_from_tensor(g, x), *grad;
    tp_lazy *there = tp_lazy_mul(tp_lazy_to_device(leaf, gpu), tp_lazy_to_device(leaf, gpu));
    tp_lazy *here = tp_lazy_sum(tp_lazy_to_device(there, cpu), TP_ALL_DIMS, false);
    must(tp_graph_grad(g, here, &leaf, 1, &grad));
    must(tp_lazy_eval(grad, &out));
    must(tp_tensor_read(out, TP_F32, back, sizeof back));
    for (int i = 0; i < 6; i++) check(back[i] == 2 * numbers[i], "gradient %d: %g", i, (double)back[i]);
    check(tp_tensor_device(out) == cpu, "the gradient is not where its leaf is");
    tp_tensor_release(out);
    tp_graph_reset(g);
    must(tp_tensor_to_device(x, gpu, &out));
    check(!tp_tensor_data(out), "the host reads a GPU's memory");
    must(tp_tensor_read(out, TP_F32, back, sizeof back));
    check(memcmp(back, numbers, sizeof back) == 0, "a copy differs");
    tp_tensor_release(out), tp_tensor_release(x);
}

/* ---- several contexts on one GPU ---- */

static tp_lazy *numbers(tp_graph *graph, tp_device *device, tp_dtype dtype, int64_t rows, int64_t columns) {
    tp_tensor *t, *as = NULL;
    if (tp_tensor_randn(device, 2, SHAPE(rows, columns), 1, &t) != TP_OK) return NULL;
    if (tp_lazy_eval(tp_lazy_cast(tp_lazy_from_tensor(graph, t), dtype), &as) != TP_OK) return NULL;
    tp_lazy *leaf = tp_lazy_from_tensor(graph, as);
    tp_tensor_release(t), tp_tensor_release(as);
    return leaf;
}

/* Adapted layers whose blocks wait for each other, as many of them as the GPU has room for. */
static tp_status use_layers(tp_graph *graph, tp_device *device) {
    for (int round = 0; round < 200; round++) {
        tp_lazy *x = numbers(graph, device, TP_BF16, 2048, 512), *y = x;
        for (int i = 0; i < 4; i++)
            y = tp_lazy_linear_lora(y, numbers(graph, device, TP_BF16, 512, 512),
                                    numbers(graph, device, TP_F32, 512, 8),
                                    numbers(graph, device, TP_F32, 8, 512), 1e-3, NULL);
        tp_tensor *out;
        tp_status status = tp_lazy_eval(y, &out);
        tp_graph_reset(graph);
        if (status != TP_OK) return status;
        tp_tensor_release(out);
    }
    return tp_device_synchronize(device);
}

static void *use_alone(void *status) {
    tp_context *own;
    tp_graph *graph;
    *(tp_status *)status = TP_ENOMEM;
    if (tp_context_create(&own, NULL) != TP_OK) return NULL;
    tp_device *device = tp_device_cuda(own, 0);
    if (device && tp_graph_create(&graph, own) == TP_OK) {
        *(tp_status *)status = use_layers(graph, device);
        tp_graph_destroy(graph);
    }
    tp_context_destroy(own);
    return NULL;
}

static void contexts_side_by_side(void) {
    pthread_t threads[3];
    tp_status status[3];
    for (int i = 0; i < 3; i++)
        if (pthread_create(&threads[i], NULL, use_alone, &status[i]) != 0) abort();
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        check(status[i] == TP_OK, "context %d: %s", i, tp_status_name(status[i]));
    }
}

static void on_done(void *user, tp_status status) {
    atomic_store((atomic_int *)user, 100 + (int)status);
}

static void events(void) {
    tp_tensor *x, *out;
    tp_event *event;
    atomic_int seen = 0;
    must(tp_tensor_ones(gpu, TP_F32, 2, SHAPE(512, 512), &x));
    tp_lazy *in = tp_lazy_from_tensor(g, x), *y = in;
    for (int i = 0; i < 8; i++) y = tp_lazy_mul_scalar(tp_lazy_matmul(y, in), 1.0 / 512);
    must(tp_lazy_eval_async(y, &out, &event));
    tp_graph_reset(g);
    must(tp_event_on_done(event, on_done, &seen));
    must(tp_event_wait(event));
    float *values = values_of(out);
    check(fabsf(values[12345] - 1) < 1e-4f, "got %g", (double)values[12345]);
    for (int i = 0; i < 1000000 && !atomic_load(&seen); i++) continue;
    check(atomic_load(&seen) == 100, "the callback saw %d", atomic_load(&seen));
    free(values);
    tp_event_release(event);
    tp_tensor_release(out), tp_tensor_release(x);
}

static void warn(void *user, tp_log_level level, const char *line) {
    (void)user, (void)level;
    check(false, "warned: %s", line);
}

int main(void) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.log = warn;
    if (tp_context_create(&ctx, &options) != TP_OK || tp_graph_create(&g, ctx) != TP_OK) return 1;
    cpu = tp_device_cpu(ctx);
    if (!(gpu = tp_device_cuda(ctx, 0))) {
        printf("skipped: %s\n", tp_error_message());
        tp_graph_destroy(g);
        tp_context_destroy(ctx);
        return 77;
    }
    crossing();
    events();
    training();
    updates_lie_apart();
    faults_leave_state();
    short_plans();
    memory();
    contexts_side_by_side();
    nonfinite();
    recordings();
    printf("%d checks, %d faults\n", checks, faults);
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
    return faults > 0;
}
