/* Recording again what the recording before had: nodes are taken over as long as they are the same, and
 * whatever changes (an operation, an operand, an attribute, a shape, what is wanted) is seen. */
#include "engine_helpers.h"

#include "core/hash.h"
#include "core/tensor.h"

ENGINE_SUITE(repeat);

/* Debug builds let two recordings take turns, so a node is repeated in the next but one. */
static void reset_both(void) {
    tp_graph_reset(g);
    tp_graph_reset(g);
}

static size_t standing(void) {
    return g->tape.standing;
}

Test(repeat, takes_over_nodes_and_leaves_the_walk_out) {
    tp_tensor *x = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4});
    tp_tensor *other = tensor_of(1, SHAPE(4), (float[]){5, 6, 7, 8});
    for (int round = 0; round < 4; round++) {
        tp_tensor *in = round % 2 ? other : x;
        tp_lazy *leaf = tp_lazy_from_tensor(g, in), *y = tp_lazy_mul_scalar(tp_lazy_add(leaf, leaf), 3);
        tp_tensor *out = evaluate(y);
        if (round % 2)
            expect4(out, 30, 36, 42, 48);
        else
            expect4(out, 6, 12, 18, 24);
        tp_tensor_release(out);
        reset_both();
        cr_assert_eq(g->tape.standing, 3);
        cr_assert_eq(g->tape.planned, 3, "the order stands too");
    }
    cr_assert_eq(stats().plan_misses, 1);
    cr_assert_eq(stats().plan_hits, 3);
    tp_tensor_release(x), tp_tensor_release(other);
}

static tp_lazy *three(tp_tensor *t, double s) {
    return tp_lazy_exp(tp_lazy_add_scalar(tp_lazy_from_tensor(g, t), s));
}

Test(repeat, sees_what_differs) {
    tp_tensor *x = tensor_of(1, SHAPE(4), (float[]){0, 0, 0, 0}), *wide = random_tensor(2, SHAPE(2, 2), 1),
              *out;
    tp_lazy *y = three(x, 0);
    expect4(out = evaluate(y), 1, 1, 1, 1);
    tp_tensor_release(out), reset_both();
    y = three(x, 1); /* an attribute */
    expect4(out = evaluate(y), 2.7182818f, 2.7182818f, 2.7182818f, 2.7182818f);
    tp_tensor_release(out), reset_both();
    y = three(wide, 1); /* a shape */
    cr_assert_eq(tp_lazy_rank(y), 2);
    tp_tensor_release(evaluate(y)), reset_both();
    tp_lazy *leaf = tp_lazy_from_tensor(g, x), *first = tp_lazy_add_scalar(leaf, 1);
    expect4(out = evaluate(tp_lazy_add(leaf, first)), 1, 1, 1, 1);
    tp_tensor_release(out), reset_both();
    leaf = tp_lazy_from_tensor(g, x), first = tp_lazy_add_scalar(leaf, 1);
    expect4(out = evaluate(tp_lazy_add(first, first)), 2, 2, 2, 2); /* an operand */
    tp_tensor_release(out), reset_both();
    leaf = tp_lazy_from_tensor(g, x), first = tp_lazy_add_scalar(leaf, 1), tp_lazy_add(first, first);
    expect4(out = evaluate(first), 1, 1, 1, 1); /* what is wanted */
    tp_tensor_release(out), tp_tensor_release(x), tp_tensor_release(wide);
}

Test(repeat, an_error_ends_it_and_is_not_remembered) {
    tp_tensor *x = random_tensor(1, SHAPE(4), 1);
    for (int round = 0; round < 3; round++) {
        tp_lazy *y = three(x, 1);
        if (round == 1) {
            cr_assert_null(tp_lazy_from_tensor(g, NULL));
            cr_assert_null(tp_lazy_neg(y));
            must_fail(tp_lazy_eval(y, NULL), TP_EINVAL, "tensor is NULL");
        } else {
            must(tp_lazy_eval(y, NULL));
        }
        reset_both();
        cr_assert_eq(standing(), 3);
    }
    tp_tensor_release(x);
}

Test(repeat, checks_what_the_standing_node_passed) {
    const float ones[] = {1, 1};
    must(tp_lazy_eval(tp_lazy_ones(g, tp_device_cpu(ctx), TP_F32, 1, SHAPE(2)), NULL));
    reset_both();
    cr_assert_null(tp_lazy_ones(g, NULL, TP_F32, 1, SHAPE(2)));
    must_fail(tp_graph_status(g), TP_EINVAL, "device is NULL");
    reset_both();
    tp_tensor *out = evaluate(tp_lazy_ones(g, tp_device_cpu(ctx), TP_F32, 1, SHAPE(2)));
    expect_values(out, ones, 0);
    tp_tensor_release(out);
}

/* ---- random programs, each like the one before up to some place ---- */

enum { LENGTH = 24 };

/* One step of a program: what to do with earlier nodes, from a random number. */
static tp_lazy *step(tp_graph *graph, tp_lazy *const *nodes, int n, tp_tensor *const *inputs,
                     uint32_t choice) {
    tp_lazy *a = nodes[(choice >> 8) % (uint32_t)n], *b = nodes[(choice >> 16) % (uint32_t)n];
    switch (choice % 8) {
    case 0:
        return tp_lazy_from_tensor(graph, inputs[(choice >> 8) % 3]);
    case 1:
        return tp_lazy_add(a, b);
    case 2:
        return tp_lazy_mul_scalar(a, 0.5 * (double)((choice >> 16) % 3));
    case 3:
        return tp_lazy_rms_norm(a, NULL, 1e-5);
    case 4:
        return tp_lazy_reshape(tp_lazy_reshape(a, 1, SHAPE(12)), 2, SHAPE(3, 4));
    case 5:
        return tp_lazy_softmax(a, -1);
    case 6:
        return tp_lazy_mul(a, b);
    default:
        return tp_lazy_sub(b, a);
    }
}

/* Records the program, evaluates a part of it first where its last choice says so; returns the result. */
static tp_tensor *run_program(tp_graph *graph, const uint32_t *choices, tp_tensor *const *inputs,
                              tp_tensor *state) {
    tp_lazy *nodes[LENGTH + 1] = {tp_lazy_from_tensor(graph, inputs[0])};
    const uint32_t how = choices[LENGTH - 1] >> 24;
    for (int i = 0; i < LENGTH; i++) {
        nodes[i + 1] = step(graph, nodes, i + 1, inputs, choices[i]);
        cr_assert_not_null(nodes[i + 1], "%s", tp_error_message());
        if (i == LENGTH / 2 && how % 4 == 1) must(tp_lazy_eval(nodes[i], NULL));
    }
    if (how % 4 == 2) tp_lazy_assign(tp_lazy_from_tensor(graph, state), nodes[LENGTH / 2]);
    tp_tensor *out;
    must(tp_lazy_eval(nodes[how % 3 ? LENGTH : LENGTH - 1], &out));
    return out;
}

static void expect_same_bits(const tp_tensor *a, const tp_tensor *b) {
    cr_assert_eq(tp_tensor_count(a), tp_tensor_count(b));
    cr_assert_eq(memcmp(tp_tensor_data(a), tp_tensor_data(b), (size_t)tp_tensor_count(a) * sizeof(float)), 0);
}

Test(repeat, random_programs_give_what_a_new_graph_gives, .timeout = 120) {
    close_context();
    setenv("TP_PLAN_CHECK", "1", 1); /* a plan that is found is compared with one made anew */
    engine_setup();
    tp_tensor *inputs[3], *state = random_tensor(2, SHAPE(3, 4), 9), *same = random_tensor(2, SHAPE(3, 4), 9);
    for (uint64_t i = 0; i < 3; i++) inputs[i] = random_tensor(2, SHAPE(3, 4), i);
    uint32_t choices[LENGTH] = {0};
    for (uint32_t round = 0; round < 2000; round++) {
        uint64_t words = tpi_hash_mix(1, round);
        for (uint32_t i = (uint32_t)words % (2 * LENGTH); i < LENGTH;
             i++) /* in half of the rounds nothing new */
            choices[i] = (uint32_t)(words = tpi_hash_mix(words, i));
        tp_graph *fresh;
        must(tp_graph_create(&fresh, ctx));
        tp_tensor *got = run_program(g, choices, inputs, state);
        tp_tensor *wanted = run_program(fresh, choices, inputs, same);
        expect_same_bits(got, wanted);
        expect_same_bits(state, same);
        tp_tensor_release(got), tp_tensor_release(wanted);
        tp_graph_destroy(fresh);
        tp_graph_reset(g);
    }
    for (int i = 0; i < 3; i++) tp_tensor_release(inputs[i]);
    tp_tensor_release(state), tp_tensor_release(same);
    unsetenv("TP_PLAN_CHECK");
}
