/* Recording and evaluating: errors that stick, questions without evaluation, partial evaluation, very deep
 * and very wide graphs, state and its assignments, and all or nothing. */
#include "engine_helpers.h"

#include <sys/resource.h>
#include <time.h>

ENGINE_SUITE(graph);
ENGINE_SUITE(state);

/* ---- errors stick ---- */

Test(graph, first_error_sticks_with_operation_shapes_and_ordinal) {
    tp_lazy *a = random_leaf(2, SHAPE(2, 3), 1), *b = random_leaf(2, SHAPE(4, 5), 2);
    tp_lazy *bad = tp_lazy_matmul(a, b);
    cr_assert_null(bad);
    must_fail(tp_graph_status(g), TP_ESHAPE, "matmul (call 2)");
    must_fail(tp_graph_status(g), TP_ESHAPE, "[2, 3]");
    must_fail(tp_graph_status(g), TP_ESHAPE, "[4, 5]");
    cr_assert_null(tp_lazy_add(bad, a), "NULL in, NULL out");
    cr_assert_null(tp_lazy_add(a, random_leaf(1, SHAPE(7), 3)), "nothing is recorded after an error");
    cr_assert_eq(tp_graph_size(g), 2);
    tp_tensor *out = (tp_tensor *)&out;
    must_fail(tp_graph_eval(g, &a, 1, &out), TP_ESHAPE, "matmul (call 2)");
    cr_assert_null(out);
    must_fail(tp_lazy_eval(bad, &out), TP_EINVAL, "NULL");
    tp_graph_reset(g);
    must(tp_graph_status(g));
    tp_tensor_release(evaluate(tp_lazy_neg(random_leaf(1, SHAPE(3), 1))));
}

static void remember_line(void *user, tp_log_level level, const char *line) {
    if (level == TP_LOG_WARN) snprintf(user, 256, "%s", line);
}

Test(graph, strict_reports_at_the_recording_line) {
    char line[256] = "";
    close_context();
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.strict = true;
    options.log = remember_line;
    options.log_user = line;
    open_context(&options);
    tp_lazy_add(random_leaf(1, SHAPE(3), 1), random_leaf(1, SHAPE(4), 2));
    cr_assert(strstr(line, "add (call 2)"), "%s", line);
}

Test(graph, operands_of_two_graphs) {
    tp_graph *other;
    must(tp_graph_create(&other, ctx));
    tp_tensor *t = random_tensor(1, SHAPE(3), 1);
    tp_lazy *here = tp_lazy_from_tensor(g, t), *there = tp_lazy_from_tensor(other, t);
    cr_assert_null(tp_lazy_add(here, there));
    must_fail(tp_graph_status(g), TP_EGRAPH, "another graph");
    tp_graph_reset(g);
    tp_tensor *results[2];
    tp_lazy *mixed[] = {tp_lazy_from_tensor(g, t), there};
    must_fail(tp_graph_eval(g, mixed, 2, results), TP_EGRAPH, "output 1 belongs to another graph");
    cr_assert(!results[0] && !results[1]);
    tp_tensor_release(t);
    tp_graph_destroy(other);
}

Test(graph, tensor_of_another_context) {
    tp_context *other;
    tp_tensor *t;
    must(tp_context_create(&other, NULL));
    must(tp_tensor_randn(tp_device_cpu(other), 1, SHAPE(3), 1, &t));
    cr_assert_null(tp_lazy_from_tensor(g, t));
    must_fail(tp_graph_status(g), TP_EGRAPH, "another context");
    tp_tensor_release(t);
    tp_context_destroy(other);
}

Test(graph, malformed_recordings) {
    const tpi_attr_scalar scale = {2.0};
    tp_lazy *in[] = {random_leaf(2, SHAPE(4, 8), 1), random_leaf(2, SHAPE(8, 2), 2)};
    cr_assert_null(tpi_record_op(g, NULL, TPI_LORA, in, 2, &scale, sizeof scale));
    must_fail(tp_graph_status(g), TP_EINVAL, "lora (call 2): takes 3 inputs (x, a, b), got 2");
    tp_graph_reset(g);
    in[0] = random_leaf(2, SHAPE(4, 8), 1);
    cr_assert_null(tpi_record_op(g, NULL, TPI_LINEAR, in, 1, NULL, 0));
    must_fail(tp_graph_status(g), TP_EINVAL, "takes 2 to 3 inputs (x, w, bias), got 1");
    tp_graph_reset(g);
    cr_assert_null(tpi_record_op(g, NULL, TPI_FILL, NULL, 0, NULL, 0));
    must_fail(tp_graph_status(g), TP_EINVAL, "device is NULL");
    tp_graph_reset(g);
    cr_assert_null(tpi_record_part(random_leaf(1, SHAPE(3), 1), 1));
    must_fail(tp_graph_status(g), TP_EINVAL, "evaluated already");
    tp_graph_reset(g);
    cr_assert_null(tpi_record_part(tp_lazy_neg(random_leaf(1, SHAPE(3), 1)), 1));
    must_fail(tp_graph_status(g), TP_EINVAL, "neg has no output 1");
    tp_graph_reset(g);
    cr_assert_null(tp_lazy_from_tensor(g, NULL));
    must_fail(tp_graph_status(g), TP_EINVAL, "tensor is NULL");
    tp_graph_reset(g);
    cr_assert_null(tp_lazy_from_slice(g, tp_device_cpu(ctx), TP_F32, 1, SHAPE(3), NULL));
    must_fail(tp_graph_status(g), TP_EINVAL, "data is NULL");
}

Test(graph, handles_of_before_the_reset) {
#ifdef NDEBUG
    cr_skip_test("stale handles are seen where assertions are on");
#else
    tp_lazy *old = random_leaf(1, SHAPE(3), 1);
    tp_graph_reset(g);
    tp_lazy *fresh = random_leaf(1, SHAPE(3), 1);
    cr_assert_null(tp_lazy_add(fresh, old));
    must_fail(tp_graph_status(g), TP_EGRAPH, "before the graph was reset");
    tp_graph_reset(g);
    random_leaf(1, SHAPE(3), 1);
    must_fail(tp_lazy_eval(fresh, NULL), TP_EGRAPH, "before the graph was reset");
#endif
}

/* ---- questions ---- */

Test(graph, questions_compute_nothing) {
    tp_lazy *x = random_leaf(3, SHAPE(2, 3, 4), 1), *w = random_leaf(2, SHAPE(4, 5), 2);
    uint64_t misses = stats().plan_misses;
    tp_lazy *y = tp_lazy_cast(tp_lazy_matmul(x, w), TP_BF16);
    cr_assert_eq(tp_lazy_rank(y), 3);
    cr_assert_eq(memcmp(tp_lazy_shape(y), SHAPE(2, 3, 5), 3 * sizeof(int64_t)), 0);
    cr_assert_eq(tp_lazy_size(y, -1), 5);
    cr_assert_eq(tp_lazy_size(y, 7), 0);
    cr_assert_eq(tp_lazy_dtype(y), TP_BF16);
    cr_assert_eq(tp_lazy_device(y), tp_device_cpu(ctx));
    cr_assert_eq(tp_lazy_graph(y), g);
    cr_assert_eq(tp_lazy_id(y), 3);
    cr_assert_eq(tp_graph_size(g), 4);
    cr_assert(tp_lazy_is_evaluated(x));
    cr_assert_not(tp_lazy_is_evaluated(y));
    cr_assert_eq(tp_lazy_rank(NULL), 0);
    cr_assert_null(tp_lazy_shape(NULL));
    cr_assert_not(tp_lazy_is_evaluated(NULL));
    cr_assert_eq(tp_graph_size(NULL), 0);
    cr_assert_null(tp_graph_context(NULL));
    must_fail(tp_graph_status(NULL), TP_EINVAL, "graph is NULL");
    char *text;
    must_fail(tp_graph_trace(NULL, TP_TRACE_TEXT, &text), TP_EINVAL, "graph is NULL");
    cr_assert_eq(stats().plan_misses, misses);
    must(tp_lazy_eval(y, NULL));
    cr_assert(tp_lazy_is_evaluated(y));
}

Test(graph, one_tensor_is_one_leaf) {
    tp_tensor *t = random_tensor(1, SHAPE(3), 1);
    cr_assert_eq(tp_lazy_from_tensor(g, t), tp_lazy_from_tensor(g, t));
    cr_assert_eq(tp_graph_size(g), 1);
    for (uint64_t i = 0; i < 300; i++) random_leaf(1, SHAPE(3), i); /* the map grows */
    cr_assert_eq(tp_lazy_id(tp_lazy_from_tensor(g, t)), 0);
    tp_tensor_release(t);
}

/* ---- evaluating in parts ---- */

Test(graph, same_node_twice_and_eval_twice) {
    tp_lazy *x = vector4(1, 2, 3, 4), *y = tp_lazy_mul(x, x);
    tp_lazy *twice[] = {y, y, x};
    tp_tensor *results[3];
    must(tp_graph_eval(g, twice, 3, results));
    expect4(results[0], 1, 4, 9, 16);
    expect4(results[1], 1, 4, 9, 16);
    expect4(results[2], 1, 2, 3, 4);
    tp_tensor *again = evaluate(y);
    cr_assert_eq(tp_tensor_data(again), tp_tensor_data(results[0]), "a computed node is a leaf");
    for (int i = 0; i < 3; i++) tp_tensor_release(results[i]);
    tp_tensor_release(again);
}

Test(graph, partial_eval_then_more_recording) {
    tp_lazy *x = vector4(1, 2, 3, 4), *y = tp_lazy_add_scalar(x, 1), *z = tp_lazy_mul(y, x);
    tp_tensor *a = evaluate(y);
    tp_lazy *w = tp_lazy_add(z, y);
    tp_tensor *b = evaluate(w);
    expect4(a, 2, 3, 4, 5);
    expect4(b, 4, 9, 16, 25);
    tp_tensor *c = evaluate(tp_lazy_sub(w, z));
    expect4(c, 2, 3, 4, 5);
    tp_tensor_release(a), tp_tensor_release(b), tp_tensor_release(c);
}

Test(graph, outputs_that_are_views_share_nothing_with_leaves) {
    tp_lazy *x = leaf_of(tensor_of(2, SHAPE(2, 2), (float[]){1, 2, 3, 4}));
    tp_lazy *outputs[] = {tp_lazy_transpose(x, 0, 1), tp_lazy_reshape(x, 1, SHAPE(4)),
                          tp_lazy_slice(tp_lazy_neg(x), 0, 1, 2), tp_lazy_broadcast(x, 3, SHAPE(2, 2, 2))};
    tp_tensor *r[4], *leaf;
    must(tp_graph_eval(g, outputs, 4, r));
    must(tp_lazy_eval(x, &leaf));
    expect4(r[0], 1, 3, 2, 4);
    expect4(r[1], 1, 2, 3, 4);
    expect_values(r[2], (float[]){-3, -4}, 0);
    expect_values(r[3], (float[]){1, 2, 3, 4, 1, 2, 3, 4}, 0);
    cr_assert_neq(tp_tensor_data(r[1]), tp_tensor_data(leaf));
    for (int i = 0; i < 4; i++) tp_tensor_release(r[i]);
    tp_tensor_release(leaf);
}

/* A loss is evaluated to be printed, the gradients that were recorded from it after that: they read a further
 * output of the loss's operation. */
Test(graph, gradients_after_the_loss_was_evaluated) {
    tp_tensor *labels;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 1, SHAPE(2), (int32_t[]){2, 0}, &labels));
    tp_lazy *logits = random_leaf(2, SHAPE(2, 3), 1),
            *rows = tp_lazy_cross_entropy(logits, leaf_of(labels), -1);
    tp_lazy *loss = tp_lazy_sum(rows, TP_ALL_DIMS, false), *grad, *first[] = {loss, rows};
    must(tp_graph_grad(g, loss, &logits, 1, &grad));
    tp_tensor *together[3], *apart[3];
    tp_tensor *kept = evaluate(logits);
    must(tp_graph_eval(g, first, 2, together));
    must(tp_lazy_eval(grad, &apart[0]));
    float *l = values_of(kept), *d = values_of(apart[0]);
    for (int i = 0; i < 2; i++) {
        double total = 0;
        for (int j = 0; j < 3; j++) total += exp((double)l[3 * i + j]);
        for (int j = 0; j < 3; j++) {
            double expected = exp((double)l[3 * i + j]) / total - (j == (i ? 0 : 2));
            cr_assert_float_eq((double)d[3 * i + j], expected, 1e-5);
        }
    }
    free(l), free(d);
    tp_tensor_release(kept), tp_tensor_release(together[0]), tp_tensor_release(together[1]);
    tp_tensor_release(apart[0]);
}

Test(graph, nothing_to_evaluate) {
    must(tp_graph_eval(g, NULL, 0, NULL));
    must_fail(tp_graph_eval(g, NULL, 1, NULL), TP_EINVAL, "outputs is NULL");
    must_fail(tp_graph_eval(NULL, NULL, 0, NULL), TP_EINVAL, "graph is NULL");
    tp_lazy *missing = NULL;
    must_fail(tp_graph_eval(g, &missing, 1, NULL), TP_EINVAL, "output 0 is NULL");
    tp_tensor_release(evaluate(random_leaf(2, SHAPE(0, 3), 1)));
    tp_tensor_release(evaluate(tp_lazy_neg(random_leaf(2, SHAPE(0, 3), 1))));
}

/* ---- depth and width ---- */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define MILLION 1000000

static void run_million(const char *fuse) {
    close_context();
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 1;
    options.fuse = fuse;
    open_context(&options);
    double start = seconds();
    tp_lazy *x = vector4(0, 1, 2, 3), *step = vector4(1, 1, 1, 1), *y = x;
    for (int i = 0; i < MILLION; i++) y = tp_lazy_add(y, step);
    cr_assert_eq(tp_graph_size(g), MILLION + 2);
    tp_tensor *out = evaluate(y);
    expect4(out, 1000000, 1000001, 1000002, 1000003);
    tp_tensor_release(out);
    double taken = seconds() - start;
    cr_assert_lt(taken, 60.0, "%g s", taken);
}

Test(graph, one_million_nodes_fused, .timeout = 300) {
    struct rlimit small = {512 << 10, 512 << 10}; /* recursion would not fit */
    setrlimit(RLIMIT_STACK, &small);
    run_million(NULL);
}

Test(graph, one_million_nodes_unfused, .timeout = 300) {
    run_million("-pointwise");
}

Test(graph, gradient_through_many_nodes, .timeout = 300) {
    tp_lazy *x = vector4(0, 1, 2, 3), *y = x, *grad;
    for (int i = 0; i < MILLION / 4; i++) y = i & 1 ? tp_lazy_neg(y) : tp_lazy_add(y, x);
    tp_lazy *loss = tp_lazy_sum(y, TP_ALL_DIMS, false);
    must(tp_graph_grad(g, loss, &x, 1, &grad));
    tp_tensor *out = evaluate(grad);
    expect4(out, 1, 1, 1, 1); /* y = -(y + x) twice leaves y, and the count is even */
    tp_tensor_release(out);
}

Test(graph, ten_thousand_branches, .timeout = 120) {
    enum { WIDTH = 10000 };
    tp_lazy *x = vector4(1, 2, 3, 4), **level = malloc(WIDTH * sizeof *level);
    for (int i = 0; i < WIDTH; i++) level[i] = tp_lazy_softmax(tp_lazy_mul_scalar(x, i), 0);
    tp_lazy *kept[] = {level[0], level[7], NULL};
    for (int n = WIDTH; n > 1; n = (n + 1) / 2)
        for (int i = 0; i < n / 2; i++) level[i] = tp_lazy_add(level[i], level[n - 1 - i]);
    kept[2] = level[0];
    tp_tensor *r[3];
    must(tp_graph_eval(g, kept, 3, r));
    expect4(r[0], 0.25f, 0.25f, 0.25f, 0.25f);
    float *sums = values_of(r[2]);
    cr_assert_float_eq((double)(sums[0] + sums[1] + sums[2] + sums[3]), (double)WIDTH, 0.1);
    free(sums);
    for (int i = 0; i < 3; i++) tp_tensor_release(r[i]);
    free(level);
}

Test(graph, warns_once_when_it_only_grows) {
    char line[256] = "";
    close_context();
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.log = remember_line;
    options.log_user = line;
    open_context(&options);
    tp_lazy *y = vector4(0, 1, 2, 3);
    for (int i = 0; i < MILLION && !line[0]; i++) y = tp_lazy_neg(y);
    cr_assert(strstr(line, "nodes in") && strstr(line, "without an evaluation"), "%s", line);
    line[0] = 0;
    for (int i = 0; i < 1000; i++) y = tp_lazy_neg(y);
    cr_assert_eq(line[0], 0, "once");
}

/* ---- looking at it ---- */

Test(graph, trace_as_text_dot_and_json) {
    tp_lazy *x = random_leaf(2, SHAPE(2, 3), 1);
    tp_lazy_matmul(x, tp_lazy_transpose(x, 0, 1));
    static const char *const parts[3][2] = {
        {"%2 = matmul(%0, %1) : f32[2, 2]", "%1 = permute(%0)"},
        {"digraph", "n1 -> n2;"},
        {"{\"id\": 2, \"op\": \"matmul\", \"dtype\": \"f32\", \"shape\": [2, 2], \"inputs\": [0, 1]}",
         "\"op\": \"leaf\""},
    };
    for (int format = 0; format < 3; format++) {
        char *text;
        must(tp_graph_trace(g, (tp_trace_format)format, &text));
        for (int i = 0; i < 2; i++) cr_assert(strstr(text, parts[format][i]), "%s", text);
        tp_free(text);
    }
    char *text;
    must_fail(tp_graph_trace(g, (tp_trace_format)3, &text), TP_EINVAL, "format 3");
    cr_assert_null(text);
}

/* ---- state ---- */

Test(state, assignment_in_place) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    const void *memory = tp_tensor_data(s);
    tp_lazy *state = tp_lazy_from_tensor(g, s), *next = tp_lazy_assign(state, tp_lazy_mul_scalar(state, 2));
    cr_assert_eq(steps_with(NULL, 0, "copy"), 0, "written in place");
    cr_assert_eq(steps_with(NULL, 0, "mul_scalar"), 1);
    must(tp_graph_eval(g, NULL, 0, NULL));
    expect4(s, 2, 4, 6, 8);
    cr_assert_eq(tp_tensor_data(s), memory);
    tp_tensor *out = evaluate(next);
    cr_assert_eq(tp_tensor_data(out), memory, "the new value is the state's own tensor");
    tp_tensor_release(out), tp_tensor_release(s);
}

Test(state, copied_where_it_is_read_later) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy *next = tp_lazy_assign(state, tp_lazy_softmax(tp_lazy_mul_scalar(state, 0), 0));
    tp_lazy *old = tp_lazy_mul(state, next); /* reads the old state after the new value is there */
    cr_assert_eq(steps_with(&old, 1, "copy"), 1);
    tp_tensor *out = evaluate(old);
    expect4(out, 0.25f, 0.5f, 0.75f, 1);
    expect4(s, 0.25f, 0.25f, 0.25f, 0.25f);
    tp_tensor_release(out), tp_tensor_release(s);
}

Test(state, two_states_swap) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4}),
              *t = tensor_of(1, SHAPE(4), (float[]){5, 6, 7, 8});
    tp_lazy *a = tp_lazy_from_tensor(g, s), *b = tp_lazy_from_tensor(g, t);
    tp_lazy_assign(a, b);
    tp_lazy_assign(b, a);
    must(tp_graph_eval(g, NULL, 0, NULL));
    expect4(s, 5, 6, 7, 8);
    expect4(t, 1, 2, 3, 4);
    tp_tensor_release(s), tp_tensor_release(t);
}

Test(state, three_states_rotate_through_operations) {
    tp_tensor *s[3];
    tp_lazy *l[3];
    for (int i = 0; i < 3; i++) {
        s[i] = tensor_of(1, SHAPE(4), (float[]){(float)i, 1, 2, 3});
        l[i] = tp_lazy_from_tensor(g, s[i]);
    }
    for (int i = 0; i < 3; i++) tp_lazy_assign(l[i], tp_lazy_add(l[(i + 1) % 3], l[i]));
    must(tp_graph_eval(g, NULL, 0, NULL));
    expect4(s[0], 1, 2, 4, 6);
    expect4(s[1], 3, 2, 4, 6);
    expect4(s[2], 2, 2, 4, 6);
    for (int i = 0; i < 3; i++) tp_tensor_release(s[i]);
}

Test(state, assigned_to_itself_and_to_a_view_of_itself) {
    tp_tensor *s = tensor_of(2, SHAPE(2, 2), (float[]){1, 2, 3, 4});
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, state);
    must(tp_graph_eval(g, NULL, 0, NULL));
    expect4(s, 1, 2, 3, 4);
    state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, tp_lazy_transpose(state, 0, 1));
    must(tp_graph_eval(g, NULL, 0, NULL));
    expect4(s, 1, 3, 2, 4);
    tp_tensor_release(s);
}

Test(state, assigned_twice_the_last_wins) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy *first = tp_lazy_assign(state, tp_lazy_add_scalar(state, 10));
    tp_lazy *second = tp_lazy_assign(state, tp_lazy_add_scalar(state, 20));
    must(tp_graph_eval(g, NULL, 0, NULL));
    expect4(s, 21, 22, 23, 24);
    tp_tensor *out = evaluate(second);
    expect4(out, 21, 22, 23, 24);
    must_fail(tp_lazy_eval(first, NULL), TP_ESTALE, "assigned after");
    tp_tensor_release(out), tp_tensor_release(s);
}

Test(state, new_value_is_used_and_kept_as_result) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    tp_lazy *state = tp_lazy_from_tensor(g, s), *value = tp_lazy_add_scalar(state, 1);
    tp_lazy *next = tp_lazy_assign(state, value);
    tp_lazy *outputs[] = {tp_lazy_mul_scalar(next, 10), value, next};
    tp_tensor *r[3];
    must(tp_graph_eval(g, outputs, 3, r));
    expect4(r[0], 20, 30, 40, 50);
    expect4(r[1], 2, 3, 4, 5);
    cr_assert_neq(tp_tensor_data(r[1]), tp_tensor_data(s), "a result is not the state");
    cr_assert_eq(r[2], s);
    expect4(s, 2, 3, 4, 5);
    for (int i = 0; i < 3; i++) tp_tensor_release(r[i]);
    tp_tensor_release(s);
}

Test(state, stale_reads) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    tp_lazy *state = tp_lazy_from_tensor(g, s), *late = tp_lazy_neg(state);
    tp_lazy *next = tp_lazy_assign(state, tp_lazy_add_scalar(state, 1));
    must(tp_graph_eval(g, NULL, 0, NULL));
    must_fail(tp_lazy_eval(late, NULL), TP_ESTALE, "assigned after it was recorded");
    tp_tensor *out = evaluate(tp_lazy_neg(next));
    expect4(out, -2, -3, -4, -5);
    tp_tensor_release(out);
    out = evaluate(tp_lazy_neg(tp_lazy_from_tensor(g, s)));
    expect4(out, -2, -3, -4, -5);
    tp_tensor_release(out), tp_tensor_release(s);
}

/* The value of an evaluated node is a leaf under two handles; what is written through one must not be seen
 * through the other. */
Test(state, evaluated_nodes_and_leaves_of_their_tensors) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy *next = tp_lazy_assign(state, tp_lazy_add_scalar(state, 1));
    must(tp_graph_eval(g, NULL, 0, NULL));
    tp_lazy *again = tp_lazy_from_tensor(g, s);
    tp_lazy *value = tp_lazy_assign(again, tp_lazy_softmax(tp_lazy_mul_scalar(next, 0), 0));
    tp_lazy *sum = tp_lazy_add(value, next); /* the value of before the second assignment */
    tp_tensor *out = evaluate(sum);
    expect4(out, 2.25f, 3.25f, 4.25f, 5.25f);
    tp_tensor_release(out);

    tp_lazy *y = tp_lazy_add_scalar(tp_lazy_from_tensor(g, s), 1),
            *both[] = {y, tp_lazy_reshape(y, 2, SHAPE(2, 2))};
    tp_tensor *r[2];
    must(tp_graph_eval(g, both, 2, r));
    tp_lazy *flat = tp_lazy_from_tensor(g, r[0]);
    value = tp_lazy_assign(flat, tp_lazy_softmax(tp_lazy_mul_scalar(flat, 0), 0));
    sum = tp_lazy_add(tp_lazy_reshape(value, 2, SHAPE(2, 2)), both[1]);
    out = evaluate(sum);
    expect4(out, 1.5f, 1.5f, 1.5f, 1.5f);
    expect4(r[1], 1.25f, 1.25f, 1.25f, 1.25f);
    tp_tensor_release(out), tp_tensor_release(r[0]), tp_tensor_release(r[1]), tp_tensor_release(s);
}

/* A device's number is all that a plan knows of it. */
Test(graph, a_device_of_another_context_is_refused) {
    tp_context *other;
    must(tp_context_create(&other, NULL));
    cr_assert_null(tp_lazy_zeros(g, tp_device_cpu(other), TP_F32, 1, SHAPE(2)));
    must_fail(tp_graph_status(g), TP_EGRAPH, "the device belongs to another context");
    tp_context_destroy(other);
}

/* An update that got no value must not be left out silently. */
Test(graph, an_operand_that_is_null_sticks) {
    tp_lazy *x = random_leaf(1, SHAPE(2), 1);
    cr_assert_null(tp_lazy_assign(x, NULL));
    must_fail(tp_graph_status(g), TP_EINVAL, "assign (call 1): operand 1 is NULL");
    tp_graph_reset(g);
    x = random_leaf(1, SHAPE(2), 1);
    cr_assert_null(tp_lazy_add(NULL, x));
    must_fail(tp_graph_status(g), TP_EINVAL, "add (call 1): operand 0 is NULL");
}

Test(state, what_cannot_be_assigned) {
    static const float memory[4] = {1, 2, 3, 4};
    tp_tensor *foreign;
    must(tp_tensor_from_memory(tp_device_cpu(ctx), TP_F32, 1, SHAPE(4), memory, NULL, NULL, &foreign));
    tp_lazy *leaf = leaf_of(foreign);
    cr_assert_null(tp_lazy_assign(leaf, tp_lazy_neg(leaf)));
    must_fail(tp_graph_status(g), TP_EINVAL, "assign (call 2)");
    tp_graph_reset(g);
    leaf = vector4(1, 2, 3, 4);
    cr_assert_null(tp_lazy_assign(tp_lazy_neg(leaf), leaf));
    must_fail(tp_graph_status(g), TP_EINVAL, "state must be a leaf");
    tp_graph_reset(g);
    leaf = vector4(1, 2, 3, 4);
    cr_assert_null(tp_lazy_assign(leaf, random_leaf(1, SHAPE(5), 1)));
    must_fail(tp_graph_status(g), TP_ESHAPE, "assign");
}

/* ---- all or nothing ---- */

static tp_lazy *ids_of(int32_t a, int32_t b) {
    tp_tensor *ids;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 1, SHAPE(2), (int32_t[]){a, b}, &ids));
    return leaf_of(ids);
}

Test(state, a_failing_kernel_changes_nothing) {
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4}),
              *t = tensor_of(2, SHAPE(2, 2), (float[]){1, 2, 3, 4});
    tp_lazy *a = tp_lazy_from_tensor(g, s), *b = tp_lazy_from_tensor(g, t);
    tp_lazy *table = random_leaf(2, SHAPE(3, 2), 5);
    tp_lazy_assign(a, tp_lazy_mul_scalar(a, 2));
    tp_lazy *rows = tp_lazy_gather(table, ids_of(1, 9));
    tp_lazy_assign(b, rows); /* the gather itself must not write the state */
    tp_lazy *outputs[] = {tp_lazy_neg(rows), tp_lazy_neg(a)};
    tp_tensor *r[2] = {s, s};
    for (int round = 0; round < 2; round++) {
        must_fail(tp_graph_eval(g, outputs, 2, r), TP_EINVAL, "id 9");
        cr_assert(!r[0] && !r[1]);
        cr_assert_eq(memcmp(tp_tensor_data(s), (float[]){1, 2, 3, 4}, 16), 0);
        cr_assert_eq(memcmp(tp_tensor_data(t), (float[]){1, 2, 3, 4}, 16), 0);
        cr_assert_not(tp_lazy_is_evaluated(outputs[0]));
    }
    tp_graph_reset(g);
    tp_lazy_assign(tp_lazy_from_tensor(g, s), vector4(9, 9, 9, 9));
    must(tp_graph_eval(g, NULL, 0, NULL));
    expect4(s, 9, 9, 9, 9);
    tp_tensor_release(s), tp_tensor_release(t);
}

/* An operation that can fail may write state in place where it reads that state, as a cache does, since it
 * checks before it writes; where it does not read it, nothing promises that. */
Test(state, operations_that_can_fail_write_state_safely) {
    tp_tensor *s = tensor_of(2, SHAPE(2, 2), (float[]){1, 2, 3, 4});
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, tp_lazy_gather(random_leaf(2, SHAPE(3, 2), 5), ids_of(0, 1)));
    cr_assert_eq(steps_with(NULL, 0, "copy"), 1);
    tp_graph_reset(g);
    state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, tp_lazy_scatter_add(state, ids_of(1, 1), random_leaf(2, SHAPE(2, 2), 3)));
    cr_assert_eq(steps_with(NULL, 0, "copy"), 0);
    tp_graph_reset(g);
    state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, tp_lazy_scatter_add(state, ids_of(0, 7), random_leaf(2, SHAPE(2, 2), 3)));
    must_fail(tp_graph_eval(g, NULL, 0, NULL), TP_EINVAL, "id 7");
    expect4(s, 1, 2, 3, 4);
    tp_tensor_release(s);
}
