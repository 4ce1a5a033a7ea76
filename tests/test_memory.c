/* Memory: what is planned is what is used, long chains live in a handful of buffers, limits fail before
 * anything runs, and rounds of record, evaluate, reset leave nothing behind. */
#include "engine_helpers.h"

#include <unistd.h>

ENGINE_SUITE(memory);

/* Without the blocks that fast kernels pack into: what is left is the plan's own doing. */
static void planned_setup(void) {
    setenv("TP_ISA", "baseline", 1); /* read once; each test is a process */
    engine_setup();
}

TestSuite(planned_memory, .init = planned_setup, .fini = engine_teardown);

#define SIDE  1024
#define BYTES ((uint64_t)SIDE * SIDE * sizeof(float))

static tp_lazy *chain_of(tp_lazy *x, int length) {
    for (int i = 0; i < length; i++) /* softmax keeps the chain from becoming one step */
        x = i % 100 == 99 ? tp_lazy_softmax(x, 1) : tp_lazy_add_scalar(tp_lazy_mul_scalar(x, 0.5), 1);
    return x;
}

static void run_chain(const char *fuse) {
    close_context();
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.fuse = fuse;
    open_context(&options);
    tp_tensor *out = evaluate(chain_of(random_leaf(2, SHAPE(SIDE, SIDE), 1), 1000));
    cr_assert_leq(stats().memory_peak, 4 * BYTES, "%llu", (unsigned long long)stats().memory_peak);
    tp_tensor_release(out);
}

Test(memory, a_chain_of_1000_peaks_at_a_handful_of_buffers, .timeout = 120) {
    run_chain(NULL);
    run_chain("-pointwise");
}

Test(planned_memory, a_training_step_reuses_its_memory) {
    tp_tensor *x = random_tensor(2, SHAPE(64, 256), 1), *w = random_tensor(2, SHAPE(256, 256), 2);
    tp_lazy *first = random_leaf(2, SHAPE(256, 256), 3), *weight = tp_lazy_from_tensor(g, w), *grad;
    tp_lazy *h = tp_lazy_matmul(tp_lazy_from_tensor(g, x), first);
    for (int layer = 0; layer < 12; layer++) h = tp_lazy_tanh(tp_lazy_matmul(h, weight));
    tp_lazy *loss = tp_lazy_mean(tp_lazy_mul(h, h), TP_ALL_DIMS, false);
    uint64_t forward, both;
    must(tp_graph_memory(g, &loss, 1, &forward));
    must(tp_graph_grad(g, loss, &first, 1, &grad));
    must(tp_graph_memory(g, (tp_lazy *[]){loss, grad}, 2, &both));
    uint64_t activation = 64 * 256 * sizeof(float), parameter = 256 * 256 * sizeof(float);
    cr_assert_leq(forward, 4 * activation, "%llu", (unsigned long long)forward);
    cr_assert_leq(both, 18 * activation + 2 * parameter, "%llu", (unsigned long long)both);
    cr_assert_not(tp_lazy_is_evaluated(loss), "nothing ran");
    tp_tensor_release(x), tp_tensor_release(w);
}

/* The peak of an evaluation is what the plan said, to the byte. */
Test(memory, what_is_predicted_happens) {
    static const int64_t sides[] = {16, 100, 333, 1000};
    for (int i = 0; i < 4; i++) {
        tp_lazy *x = random_leaf(2, SHAPE(sides[i], sides[i]), 1);
        tp_lazy *y = tp_lazy_matmul(tp_lazy_softmax(x, 0), tp_lazy_transpose(tp_lazy_softmax(x, 1), 0, 1));
        tp_lazy *outputs[] = {tp_lazy_sum(y, 0, false), y};
        tp_tensor *r[2];
        uint64_t predicted, before = stats().memory_now;
        must(tp_graph_memory(g, outputs, 2, &predicted));
        cr_assert_eq(stats().memory_now, before);
        close_context();
        open_context(NULL); /* a peak of its own */
        x = random_leaf(2, SHAPE(sides[i], sides[i]), 1);
        y = tp_lazy_matmul(tp_lazy_softmax(x, 0), tp_lazy_transpose(tp_lazy_softmax(x, 1), 0, 1));
        outputs[0] = tp_lazy_sum(y, 0, false), outputs[1] = y;
        must(tp_graph_memory(g, outputs, 2, &predicted));
        before = stats().memory_now;
        must(tp_graph_eval(g, outputs, 2, r));
        cr_assert_eq(stats().memory_peak, before + predicted, "%lld: %llu, predicted %llu",
                     (long long)sides[i], (unsigned long long)(stats().memory_peak - before),
                     (unsigned long long)predicted);
        tp_tensor_release(r[0]), tp_tensor_release(r[1]);
        tp_graph_reset(g);
    }
}

Test(memory, limit_fails_before_anything_runs) {
    close_context();
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.memory_limit = 3 * BYTES;
    open_context(&options);
    tp_tensor *s = tensor_of(1, SHAPE(4), (float[]){1, 2, 3, 4}), *out;
    tp_lazy *state = tp_lazy_from_tensor(g, s);
    tp_lazy_assign(state, tp_lazy_neg(state));
    tp_lazy *x = random_leaf(2, SHAPE(SIDE, SIDE), 1), *big = tp_lazy_matmul(tp_lazy_softmax(x, 0), x);
    tp_lazy *wide = tp_lazy_concat((tp_lazy *[]){big, big, x}, 3, 0);
    must_fail(tp_lazy_eval(wide, &out), TP_ELIMIT, "needs 0.02");
    must_fail(tp_lazy_eval(wide, &out), TP_ELIMIT, "limit 0.012 GiB");
    must_fail(tp_lazy_eval(wide, &out), TP_ELIMIT, "raise the limit");
    cr_assert_null(out);
    expect4(s, 1, 2, 3, 4);
    must_fail(tp_lazy_eval_async(wide, &out, NULL), TP_ELIMIT, "limit");
    must(tp_lazy_eval(tp_lazy_sum(x, 0, false), &out)); /* what fits still runs */
    expect4(s, -1, -2, -3, -4);
    tp_tensor *large;
    must_fail(tp_tensor_zeros(tp_device_cpu(ctx), TP_F32, 2, SHAPE(4 * SIDE, SIDE), &large), TP_ELIMIT,
              "limit");
    tp_tensor_release(out), tp_tensor_release(s);
}

static long resident_pages(void) {
    long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    cr_assert_not_null(file);
    cr_assert_eq(fscanf(file, "%ld %ld", &total, &resident), 2);
    fclose(file);
    return resident;
}

#ifdef __SANITIZE_ADDRESS__
#define ROUNDS 100000
#else
#define ROUNDS 1000000
#endif

Test(memory, rounds_leave_nothing_behind, .timeout = 600) {
    const long rounds = ROUNDS;
    long start = 0;
    int64_t live = 0;
    tp_tensor *x = random_tensor(2, SHAPE(4, 8), 1), *w = random_tensor(2, SHAPE(8, 8), 2);
    for (long i = 0; i < rounds; i++) {
        int64_t rows = 1 + i % 4; /* a few plans */
        tp_lazy *part = tp_lazy_slice(tp_lazy_from_tensor(g, x), 0, 0, rows);
        tp_tensor *out = evaluate(tp_lazy_softmax(tp_lazy_matmul(part, tp_lazy_from_tensor(g, w)), -1));
        tp_tensor_release(out);
        tp_graph_reset(g);
        if (i == rounds / 10) start = resident_pages(), live = tpi_alloc_live();
    }
    cr_assert_eq(tpi_alloc_live(), live);
    cr_assert_gt(start, 0);
#ifndef __SANITIZE_ADDRESS__ /* it keeps freed memory back */
    long grown = (resident_pages() - start) * sysconf(_SC_PAGESIZE);
    cr_assert_leq(grown, 1 << 20, "%ld bytes more after %ld rounds", grown, rounds);
#endif
    cr_assert_eq(stats().plans, 4);
    tp_tensor_release(x), tp_tensor_release(w);
}

Test(memory, a_large_recording_gives_its_tables_back) {
    tp_lazy *y = vector4(1, 2, 3, 4);
    for (int i = 0; i < 600000; i++) y = tp_lazy_neg(y);
    must(tp_lazy_eval(y, NULL));
    tp_graph_reset(g);
    cr_assert_leq(g->tape.arena.bytes + g->quarantine.arena.bytes, (size_t)64 << 20);
    cr_assert_eq(g->tape.capacity + g->quarantine.capacity, 0);
    must(tp_lazy_eval(tp_lazy_neg(vector4(1, 2, 3, 4)), NULL));
}

/* A loop that takes and gives back the same sizes meets the same addresses again, whatever else is kept. */
Test(memory, small_blocks_are_kept_beside_a_large_one) {
    tpi_memory *memory = tp_device_cpu(ctx)->memory;
    void *large, *first[3], *second[3];
    must(tpi_memory_take(memory, (size_t)300 << 20, &large)); /* more than is kept of one class */
    tpi_memory_give(memory, large, (size_t)300 << 20);
    for (int i = 0; i < 3; i++) must(tpi_memory_take(memory, 1000, &first[i]));
    for (int i = 0; i < 3; i++) tpi_memory_give(memory, first[i], 1000);
    const uint64_t kept = tpi_memory_get_stats(memory).kept;
    for (int i = 2; i >= 0; i--) must(tpi_memory_take(memory, 1000, &second[i]));
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(first[i], second[i]);
        tpi_memory_give(memory, second[i], 1000);
    }
    cr_assert_eq(tpi_memory_get_stats(memory).kept, kept);
    tpi_memory_trim(memory);
    cr_assert_eq(tpi_memory_get_stats(memory).kept, 0);
}
