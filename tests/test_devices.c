/* Devices whose memory the host does not read, without a GPU: one that is made of the CPU's kernels and its
 * own blocks, and finds failures only when it is waited for, as a GPU does. */
#include "engine_helpers.h"

#include "backend/backend.h"
#include "core/device.h"
#include "graph/plan.h"

#include <stdatomic.h>

#define RUNS 4096

/* Work is done at once, and told late. */
typedef struct fake {
    uint64_t marks;
    tp_status failed[RUNS]; /* of run m */
    char why[256];
    int runs, prepared, released;
    int others; /* runs of other threads that follow each */
    int n_ops;
    uint16_t ops[64]; /* of the last run's steps */
    int clashes;      /* products that write what one right before them reads */
    int overwritten;  /* updates that do */
} fake;

static fake *f;

static tp_status fake_allocate(void *state, size_t bytes, void **out) {
    (void)state;
    return (*out = tpi_aligned_alloc(bytes)) ? TP_OK : TP_ENOMEM;
}
static void fake_release(void *state, void *block) {
    (void)state;
    tpi_free(block);
}
static tp_status fake_write(void *state, void *to, const tpi_piece *pieces, int n) {
    (void)state;
    for (int i = 0; i < n; i++) memcpy((char *)to + pieces[i].at, pieces[i].from, pieces[i].bytes);
    return TP_OK;
}
static tp_status fake_clear(void *state, void *to, size_t bytes) {
    (void)state;
    memset(to, 0, bytes);
    return TP_OK;
}
static tp_status fake_copy(void *state, void *to, const void *from, size_t bytes) {
    (void)state;
    memcpy(to, from, bytes);
    return TP_OK;
}
static tp_status fake_read(void *state, void *to, const void *from, size_t bytes, uint64_t mark) {
    const fake *device = state;
    cr_assert_leq(mark, device->marks, "waits for what was never queued");
    memcpy(to, from, bytes);
    return TP_OK;
}
static uint64_t fake_mark(void *state) {
    return ((fake *)state)->marks;
}
static tp_status fake_wait(void *state, uint64_t mark) {
    const fake *device = state;
    return device->failed[mark] == TP_OK ? TP_OK : tpi_fail(device->failed[mark], "%s", device->why);
}
static void fake_memory(void *state, uint64_t *free_bytes, uint64_t *total) {
    (void)state;
    *free_bytes = 1;
    *total = 2;
}
static void fake_close(void *state) {
    tpi_free(state);
}

static const tpi_device_calls fake_calls = {fake_allocate, fake_release, fake_write, fake_clear,  fake_copy,
                                            fake_read,     fake_mark,    fake_wait,  fake_memory, fake_close};

static void release_prepared(void *data) {
    ++*(int *)data;
}

/* Whether `later` writes what `step` reads. */
static bool clash(const tpi_bound *bound, const tpi_step *step, const tpi_step *later) {
    for (int i = 0; i < later->n_out; i++) {
        const char *out = bound->slots[later->slots[later->n_in + i]];
        const char *end = out + tpi_out_operand(later, i)->count * (int64_t)sizeof(float);
        for (int k = 0; k < step->n_in; k++) {
            const char *in = bound->slots[step->slots[k]];
            if (in < end && out < in + tpi_in_operand(step, k)->count * (int64_t)sizeof(float)) return true;
        }
    }
    return false;
}

/* Of the pairs of steps of `op` with nothing else between them. */
static int clashes_of(const tpi_bound *bound, tpi_op op) {
    int clashes = 0;
    for (uint32_t i = 0; i < bound->n_steps; i++)
        for (uint32_t j = i + 1; j < bound->n_steps && bound->steps[i].op == op; j++) {
            if (bound->steps[j].op != op) break;
            clashes += clash(bound, &bound->steps[i], &bound->steps[j]);
        }
    return clashes;
}

/* Behind a step that failed nothing runs, and so nothing writes state. */
static tp_status fake_run(void *state, const tpi_bound *bound, uint64_t *end) {
    fake *device = state;
    tpi_launch launch = {NULL, bound->slots, bound->threads, NULL};
    const uint64_t mark = *end = ++device->marks;
    if (bound->prepared && !bound->prepared->data) {
        *bound->prepared = (tpi_prepared){&device->released, release_prepared};
        device->prepared++;
    }
    device->runs++;
    device->n_ops = 0;
    device->clashes = clashes_of(bound, TPI_MATMUL);
    device->overwritten = clashes_of(bound, TPI_ADAMW);
    for (uint32_t i = 0; i < bound->n_steps && i < 64; i++) device->ops[device->n_ops++] = bound->steps[i].op;
    for (uint32_t i = 0; i < bound->n_steps && device->failed[mark] == TP_OK; i++) {
        launch.step = &bound->steps[i];
        device->failed[mark] = launch.step->kernel->run(&launch);
        if (device->failed[mark] != TP_OK) {
            cr_assert(bound->can_fail);
            snprintf(device->why, sizeof device->why, "%s", tp_error_message());
        }
    }
    device->marks += (uint64_t)device->others;
    return TP_OK;
}

static const tpi_kernel *fake_kernels(tpi_op op) {
    return tpi_backend_cpu()->kernels(op);
}
static bool fake_guards(tpi_op op) {
    return op == TPI_ADAMW || op == TPI_COPY || op == TPI_CACHE_WRITE;
}
static void fake_describe(char *text, size_t bytes) {
    snprintf(text, bytes, "fake");
}

static tp_device *open_fake(tp_context *context) {
    static const tpi_backend backend = {"fake", fake_kernels, fake_describe, fake_run, fake_guards, 8, NULL};
    tp_device *device = tpi_calloc(1, sizeof *device);
    fake *state = tpi_calloc(1, sizeof *state);
    cr_assert(device && state);
    const tpi_memory_source source = {state, fake_allocate, fake_release};
    *device = (tp_device){
        .context = context, .backend = &backend, .calls = &fake_calls, .state = state, .index = 0};
    snprintf(device->name, sizeof device->name, "cuda:0");
    must(tpi_memory_create(&device->memory, context->memory_limit, &source));
    context->gpus[0] = device;
    f = state;
    return device;
}

static tp_device *gpu;

static void setup(void) {
    engine_setup();
    gpu = open_fake(ctx);
}

TestSuite(devices, .init = setup, .fini = engine_teardown);

static tp_tensor *on_gpu(int rank, const int64_t *shape, const float *values) {
    tp_tensor *t;
    must(tp_tensor_from_data(gpu, TP_F32, rank, shape, values, &t));
    return t;
}

static void expect_read(const tp_tensor *t, const float *values, int n) {
    float got[64];
    must(tp_tensor_read(t, TP_F32, got, (size_t)n * sizeof *got));
    for (int i = 0; i < n; i++) cr_expect_eq(got[i], values[i], "element %d: %g", i, (double)got[i]);
}

Test(devices, an_evaluation_runs_where_its_leaves_are) {
    const float values[] = {1, -2, 3, -4};
    tp_tensor *x = on_gpu(1, SHAPE(4), values), *y;
    must(tp_lazy_eval(tp_lazy_add_scalar(tp_lazy_neg(tp_lazy_from_tensor(g, x)), 1), &y));
    cr_assert_eq(tp_tensor_device(y), gpu);
    cr_assert_eq(f->runs, 1);
    cr_assert_null(tp_tensor_data(y));
    expect_read(y, (float[]){0, 3, -2, 5}, 4);
    uint16_t half[4];
    must(tp_tensor_read(y, TP_BF16, half, sizeof half));
    cr_assert_eq(half[1], 0x4040);
    tp_context_stats stats;
    tp_context_get_stats(ctx, &stats);
    cr_assert_eq(stats.tensors, 2);
    uint64_t free_bytes, total;
    cr_assert(tp_device_memory(gpu, &free_bytes, &total) && total == 2);
    cr_assert(!tp_device_memory(tp_device_cpu(ctx), &free_bytes, &total));
    must(tp_device_synchronize(gpu));
    tp_tensor_release(x), tp_tensor_release(y);
}

Test(devices, tensors_are_made_there) {
    tp_tensor *t[4], *here;
    float a[6], b[6];
    must(tp_tensor_randn(gpu, 2, SHAPE(2, 3), 9, &t[0]));
    must(tp_tensor_randn(tp_device_cpu(ctx), 2, SHAPE(2, 3), 9, &t[1]));
    must(tp_tensor_full(gpu, TP_F16, 1, SHAPE(3), 1.5, &t[2]));
    must(tp_tensor_zeros(gpu, TP_I32, 1, SHAPE(3), &t[3]));
    must(tp_tensor_read(t[0], TP_F32, a, sizeof a));
    must(tp_tensor_read(t[1], TP_F32, b, sizeof b));
    cr_assert_eq(memcmp(a, b, sizeof a), 0);
    expect_read(t[2], (float[]){1.5f, 1.5f, 1.5f}, 3);
    must(tp_tensor_to_device(t[0], tp_device_cpu(ctx), &here));
    cr_assert_eq(memcmp(tp_tensor_data(here), a, sizeof a), 0);
    tp_tensor_release(here);
    must(tp_tensor_to_device(t[0], gpu, &here));
    cr_assert_eq(here, t[0], "a tensor that is there already is not copied");
    tp_tensor_release(here);
    must(tp_tensor_write(t[3], (int32_t[]){7, 8, 9}, 12));
    expect_read(t[3], (float[]){7, 8, 9}, 3);
    must_fail(tp_tensor_from_memory(gpu, TP_F32, 1, SHAPE(2), a, NULL, NULL, &here), TP_EINVAL,
              "expected the CPU");
    for (int i = 0; i < 4; i++) tp_tensor_release(t[i]);
}

Test(devices, values_and_gradients_cross) {
    const float values[] = {1, -2, 3};
    tp_tensor *x = tensor_of(1, SHAPE(3), values), *grad;
    tp_lazy *leaf = tp_lazy_from_tensor(g, x), *recorded;
    tp_lazy *there = tp_lazy_to_device(leaf, gpu);
    cr_assert_eq(tp_lazy_device(there), gpu);
    cr_assert_eq(tp_lazy_to_device(there, gpu), there);
    tp_lazy *square = tp_lazy_mul(there, there);
    tp_lazy *sum = tp_lazy_sum(tp_lazy_to_device(square, tp_device_cpu(ctx)), TP_ALL_DIMS, false);
    must(tp_graph_grad(g, sum, &leaf, 1, &recorded));
    must(tp_lazy_eval(recorded, &grad));
    cr_assert_eq(tp_tensor_device(grad), tp_device_cpu(ctx));
    expect_read(grad, (float[]){2, -4, 6}, 3);
    tp_tensor_release(grad), tp_tensor_release(x);
}

Test(devices, operands_and_outputs_are_on_one_device) {
    tp_tensor *here = tensor_of(1, SHAPE(2), (float[]){1, 2}), *there = on_gpu(1, SHAPE(2), (float[]){3, 4});
    tp_lazy *a = tp_lazy_from_tensor(g, here), *b = tp_lazy_from_tensor(g, there);
    tp_lazy *both[] = {tp_lazy_neg(a), tp_lazy_neg(b)};
    tp_tensor *results[2];
    must_fail(tp_graph_eval(g, both, 2, results), TP_EINVAL, "on one device");
    cr_assert_null(tp_lazy_add(a, b));
    must_fail(tp_graph_status(g), TP_EINVAL, "operand 1 is on cuda:0");
    tp_tensor_release(here), tp_tensor_release(there);
}

/* Memory and plan are asked for without running anything, so a recording that crosses has neither. */
Test(devices, asking_for_a_plan_runs_nothing) {
    tp_tensor *x = on_gpu(1, SHAPE(2), (float[]){1, 2});
    tp_lazy *leaf = tp_lazy_from_tensor(g, x);
    tp_lazy *y = tp_lazy_neg(tp_lazy_to_device(tp_lazy_neg(leaf), tp_device_cpu(ctx)));
    uint64_t bytes;
    char *text;
    const int before = f->runs;
    must_fail(tp_graph_memory(g, &y, 1, &bytes), TP_EUNSUPPORTED, "copies between devices");
    must_fail(tp_graph_explain(g, &y, 1, &text), TP_EUNSUPPORTED, "copies between devices");
    cr_expect_eq(f->runs, before);
    tp_tensor_release(x);
}

/* What an assignment gives goes to another device as the value that is assigned. */
Test(devices, an_assigned_value_crosses) {
    tp_tensor *state = tensor_of(1, SHAPE(2), (float[]){1, 2}), *out;
    tp_lazy *s = tp_lazy_from_tensor(g, state);
    tp_lazy *next = tp_lazy_assign(s, tp_lazy_add_scalar(s, 1));
    tp_lazy *back = tp_lazy_to_device(tp_lazy_neg(tp_lazy_to_device(next, gpu)), tp_device_cpu(ctx));
    must(tp_lazy_eval(back, &out));
    expect_read(out, (float[]){-2, -3}, 2);
    expect_read(state, (float[]){2, 3}, 2);
    tp_tensor_release(state), tp_tensor_release(out);
}

/* Rows 1 and `id` of a table, and state that becomes their sum. */
static tp_status gather_into(tp_tensor *state, int32_t id, tp_tensor **rows) {
    tp_tensor *table, *ids;
    must(tp_tensor_randn(gpu, 2, SHAPE(3, 2), 1, &table));
    must(tp_tensor_from_data(gpu, TP_I32, 1, SHAPE(2), (int32_t[]){1, id}, &ids));
    tp_lazy *gathered = tp_lazy_gather(tp_lazy_from_tensor(g, table), tp_lazy_from_tensor(g, ids));
    tp_lazy *s = tp_lazy_from_tensor(g, state);
    tp_lazy_assign(s, tp_lazy_add(s, tp_lazy_sum(gathered, 0, false)));
    tp_status status = tp_lazy_eval(gathered, rows);
    tp_graph_reset(g);
    tp_tensor_release(table), tp_tensor_release(ids);
    return status;
}

static void fail_and_go_on(void) {
    const float before[] = {1, 2};
    float values[4];
    tp_tensor *state = on_gpu(1, SHAPE(2), before), *lost, *good;
    must(gather_into(state, 7, &lost)); /* queued: nobody knows yet */
    must_fail(tp_tensor_read(lost, TP_F32, values, sizeof values), TP_EINVAL, "gather");
    expect_read(state, before, 2);
    must_fail(tp_lazy_eval(tp_lazy_neg(tp_lazy_from_tensor(g, lost)), NULL), TP_EINVAL, "gather");
    tp_graph_reset(g);
    must(gather_into(state, 2, &good)); /* and the device goes on */
    must(tp_tensor_read(good, TP_F32, values, sizeof values));
    float after[2];
    must(tp_tensor_read(state, TP_F32, after, sizeof after));
    for (int i = 0; i < 2; i++) cr_expect_float_eq(after[i], before[i] + values[i] + values[2 + i], 1e-6f);
    tp_tensor_release(state), tp_tensor_release(lost), tp_tensor_release(good);
}

/* ... also where another thread queues something behind it. */
Test(devices, a_late_failure_is_found_by_who_reads) {
    for (f->others = 0; f->others < 2; f->others++) fail_and_go_on();
}

/* Three steps of AdamW on x·w. */
static void train(tp_device *device, float out[4]) {
    const tp_adamw_options options = TP_ADAMW_OPTIONS_INIT;
    tp_tensor *x, *w, *m, *v;
    must(tp_tensor_randn(device, 2, SHAPE(8, 2), 3, &x));
    must(tp_tensor_randn(device, 2, SHAPE(2, 2), 4, &w));
    must(tp_tensor_zeros(device, TP_F32, 2, SHAPE(2, 2), &m));
    must(tp_tensor_zeros(device, TP_F32, 2, SHAPE(2, 2), &v));
    for (int t = 1; t <= 3; t++) {
        const float rates[] = {0.1f, 1 - powf(0.9f, (float)t), 1 - powf(0.999f, (float)t)}, one = 1;
        tp_lazy *p = tp_lazy_from_tensor(g, w), *grad;
        tp_lazy *y = tp_lazy_matmul(tp_lazy_from_tensor(g, x), p);
        must(tp_graph_grad(g, tp_lazy_mean(tp_lazy_mul(y, y), TP_ALL_DIMS, false), &p, 1, &grad));
        tp_lazy_adamw(p, tp_lazy_from_tensor(g, m), tp_lazy_from_tensor(g, v), grad,
                      tp_lazy_from_slice(g, device, TP_F32, 1, SHAPE(3), rates),
                      tp_lazy_from_slice(g, device, TP_F32, 0, NULL, &one), &options);
        must(tp_graph_eval(g, NULL, 0, NULL));
        tp_graph_reset(g);
    }
    must(tp_tensor_read(w, TP_F32, out, 4 * sizeof *out));
    tp_tensor_release(x), tp_tensor_release(w), tp_tensor_release(m), tp_tensor_release(v);
}

Test(devices, training_there_is_training_here) {
    float here[4], there[4];
    train(tp_device_cpu(ctx), here);
    train(gpu, there);
    cr_assert_eq(memcmp(here, there, sizeof here), 0);
    cr_assert_eq(f->runs, 3);
    cr_assert_eq(f->prepared, 1, "one plan serves all steps: %d", f->prepared);
}

/* ---- steps of one launch ---- */

#define WIDE   8
#define WANTED 7

static tp_lazy *leaf_on(tp_device *device, int64_t rows, int64_t columns, uint64_t seed) {
    tp_tensor *t;
    must(tp_tensor_randn(device, 2, SHAPE(rows, columns), seed, &t));
    tp_lazy *leaf = tp_lazy_from_tensor(g, t);
    tp_tensor_release(t);
    return leaf;
}

static tp_lazy *adapted(tp_device *device, tp_lazy *x, uint64_t seed, tp_lazy **ab) {
    ab[0] = leaf_on(device, WIDE, 2, seed + 1), ab[1] = leaf_on(device, 2, WIDE, seed + 2);
    return tp_lazy_linear_lora(x, leaf_on(device, WIDE, WIDE, seed), ab[0], ab[1], 2.0, NULL);
}

/* The gradients of an MLP with its norm and residual sum. */
static void mlp_gradients(tp_device *device, float out[WANTED][WIDE * WIDE]) {
    tp_lazy *x = leaf_on(device, WIDE, WIDE, 1), *wanted[WANTED] = {x}, *grads[WANTED];
    tp_tensor *got[WANTED];
    tp_lazy *n = tp_lazy_rms_norm(x, NULL, 1e-6);
    tp_lazy *gate = adapted(device, n, 10, wanted + 1), *up = adapted(device, n, 20, wanted + 3);
    tp_lazy *y = tp_lazy_silu_mul(gate, up);
    y = tp_lazy_add(x, adapted(device, y, 30, wanted + 5));
    must(tp_graph_grad(g, tp_lazy_sum(tp_lazy_mul(y, y), TP_ALL_DIMS, false), wanted, WANTED, grads));
    must(tp_graph_eval(g, grads, WANTED, got));
    for (int i = 0; i < WANTED; i++) {
        must(tp_tensor_read(got[i], TP_F32, out[i], (size_t)tp_tensor_count(got[i]) * sizeof(float)));
        tp_tensor_release(got[i]);
    }
    tp_graph_reset(g);
}

/* Whether the last run had these steps one behind the other. */
static bool ran(const uint16_t *ops, int n) {
    for (int i = 0; i + n <= f->n_ops; i++)
        if (memcmp(f->ops + i, ops, (size_t)n * sizeof *ops) == 0) return true;
    return false;
}
#define RAN(...) ran((uint16_t[]){__VA_ARGS__}, (int)(sizeof((uint16_t[]){__VA_ARGS__}) / sizeof(uint16_t)))

Test(devices, steps_of_one_launch_are_brought_together) {
    float here[WANTED][WIDE * WIDE] = {0}, there[WANTED][WIDE * WIDE] = {0};
    mlp_gradients(tp_device_cpu(ctx), here);
    mlp_gradients(gpu, there);
    cr_expect_eq(memcmp(here, there, sizeof here), 0);
    cr_expect(RAN(TPI_LINEAR_LORA, TPI_LINEAR_LORA, TPI_SILU_MUL));
    cr_expect(RAN(TPI_LINEAR_LORA, TPI_SILU_MUL, TPI_SILU_MUL_GRAD));
    cr_expect(RAN(TPI_LINEAR_LORA, TPI_LINEAR_LORA, TPI_ADD));
    cr_expect(RAN(TPI_RMS_NORM_GRAD, TPI_ADD));
}

#define ROWS 4096 /* so many that what they take would be given back at once */

/* A gradient of an adapter is small, and what it read is not written over by those behind it. */
Test(devices, what_steps_of_one_launch_read_is_kept) {
    tp_lazy *grads[2];
    tp_tensor *sum;
    for (uint64_t i = 0; i < 2; i++) {
        tp_lazy *x = leaf_on(gpu, ROWS, WIDE, 10 * i);
        if (i == 0)
            x = tp_lazy_mul(x, x); /* memory of the plan, read for the last time by the first product */
        grads[i] = tp_lazy_matmul(tp_lazy_transpose(x, 0, 1), leaf_on(gpu, ROWS, 2, 10 * i + 1));
    }
    must(tp_lazy_eval(tp_lazy_add(grads[0], grads[1]), &sum));
    cr_expect(RAN(TPI_MATMUL, TPI_MATMUL));
    cr_expect_eq(f->clashes, 0);
    tp_tensor_release(sum);
}

/* Two updates; with a row that is asked for behind them, state is not written before that has not failed. */
static void update_two(bool may_fail) {
    const tp_adamw_options options = TP_ADAMW_OPTIONS_INIT;
    tp_lazy *leaf[2][3], *grads[2];
    for (uint64_t i = 0; i < 6; i++) leaf[i / 3][i % 3] = leaf_on(gpu, 512, 64, i);
    for (int i = 0; i < 2; i++) grads[i] = tp_lazy_mul(leaf[i][0], leaf[i][1]);
    tp_lazy *t = tp_lazy_from_slice(g, gpu, TP_F32, 1, SHAPE(3), (float[]){0.1f, 0.1f, 0.1f});
    tp_lazy *scale = tp_lazy_from_slice(g, gpu, TP_F32, 0, NULL, (float[]){1});
    for (int i = 0; i < 2; i++)
        tp_lazy_adamw(leaf[i][0], leaf[i][1], leaf[i][2], grads[i], t, scale, &options);
    tp_lazy *row = tp_lazy_gather(t, tp_lazy_from_slice(g, gpu, TP_I32, 1, SHAPE(1), (int32_t[]){1}));
    must(tp_graph_eval(g, &row, may_fail ? 1 : 0, NULL));
    tp_graph_reset(g);
}

/* Updates in the place of their state lie apart; others may not, and who launches them together has to look.
 */
Test(devices, updates_lie_apart_where_they_are_in_place) {
    update_two(false);
    cr_expect(RAN(TPI_ADAMW, TPI_ADAMW));
    cr_expect_eq(f->overwritten, 0);
    update_two(true);
    cr_expect(RAN(TPI_ADAMW, TPI_ADAMW));
    cr_expect_gt(f->overwritten, 0);
}

Test(devices, plans_give_back_what_is_prepared_with_them) {
    int released = 0;
    float w[4];
    train(gpu, w);
    f->released = 0;
    tpi_plan_cache_destroy(ctx->cache);
    must(tpi_plan_cache_create(&ctx->cache, 1 << 20));
    tp_graph_destroy(g);
    g = NULL;
    released = f->released;
    cr_assert_eq(released, 1);
}

static void on_done(void *user, tp_status status) {
    atomic_store((atomic_int *)user, 100 + (int)status);
}

Test(devices, events_end_when_the_device_does) {
    tp_tensor *x = on_gpu(1, SHAPE(2), (float[]){1, 2}), *y, *bad, *ids;
    tp_event *event;
    atomic_int seen = 0;
    must(tp_lazy_eval_async(tp_lazy_neg(tp_lazy_from_tensor(g, x)), &y, &event));
    tp_graph_reset(g);
    must(tp_event_on_done(event, on_done, &seen));
    must(tp_event_wait(event));
    expect_read(y, (float[]){-1, -2}, 2);
    tp_event_release(event);
    must(tp_tensor_from_data(gpu, TP_I32, 1, SHAPE(1), (int32_t[]){5}, &ids));
    must(tp_lazy_eval_async(tp_lazy_gather(tp_lazy_from_tensor(g, x), tp_lazy_from_tensor(g, ids)), &bad,
                            &event));
    must_fail(tp_event_wait(event), TP_EINVAL, "gather");
    tp_event_release(event);
    tp_tensor_release(x), tp_tensor_release(y), tp_tensor_release(bad), tp_tensor_release(ids);
}

Test(devices, numbers_that_are_not_finite_are_found_there) {
    const float before[] = {1, 1};
    tp_tensor *x = on_gpu(1, SHAPE(2), (float[]){4, -1}), *state = on_gpu(1, SHAPE(2), before);
    tp_context_detect_nonfinite(ctx, true);
    tp_lazy *root = tp_lazy_sqrt(tp_lazy_from_tensor(g, x));
    tp_lazy_assign(tp_lazy_from_tensor(g, state), root);
    must_fail(tp_lazy_eval(root, NULL), TP_ENONFINITE, "element [1]");
    expect_read(state, before, 2);
    tp_tensor_release(x), tp_tensor_release(state);
}

Test(devices_limited, holds_on_each_device) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.memory_limit = 1 << 20;
    open_context(&options);
    gpu = open_fake(ctx);
    tp_tensor *x, *y;
    must(tp_tensor_zeros(gpu, TP_F32, 1, SHAPE(150000), &x));
    must_fail(tp_lazy_eval(tp_lazy_neg(tp_lazy_from_tensor(g, x)), &y), TP_ELIMIT, "limit 0.001 GiB");
    must_fail(tp_tensor_zeros(gpu, TP_F32, 1, SHAPE(150000), &y), TP_ELIMIT, "limit 1.0 MiB");
    must(tp_tensor_zeros(tp_device_cpu(ctx), TP_F32, 1, SHAPE(150000), &y));
    tp_tensor_release(x), tp_tensor_release(y);
    close_context();
    cr_assert_eq(tpi_alloc_live(), 0);
}

ENGINE_SUITE(devices_missing);

Test(devices_missing, are_explained) {
    int count;
    cr_assert_null(tp_device_cuda(ctx, -1));
    cr_assert(strstr(tp_error_message(), "expected a number"));
    if (tp_device_cuda_count(&count) == TP_OK) return; /* there is one: tests/cuda has more */
    cr_assert_eq(count, 0);
    cr_assert(strstr(tp_error_message(), "cuda: "), "%s", tp_error_message());
    cr_assert_null(tp_device_cuda(ctx, 0));
    cr_assert(strstr(tp_error_message(), "cuda"), "%s", tp_error_message());
    cr_assert_eq(tp_device_cuda_if_available(ctx, 0), tp_device_cpu(ctx));
}
