/* Deterministic contexts: training and generation give the same bits on one, two and three threads. The
 * model is the one that ships, wide enough that its products fall into several parts. */
#include "io/file.h"
#include "model_helpers.h"
#include "taper/generate.h"
#include "taper/train.h"

#include <unistd.h>

#define WICK   TAPER_TEST_DATA "/../models/taper-wick"
#define VERSES TAPER_TEST_DATA "/../data/verses"
#define STEPS  3
#define MOST   3 /* threads */
#define TOKENS 24

static tp_context *deterministic(int threads) {
    tp_context *ctx;
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = threads;
    options.deterministic = true;
    must(tp_context_create(&ctx, &options));
    cr_assert_eq(tp_context_threads(ctx), threads);
    return ctx;
}

/* ---- training ---- */

static void hear(void *user, const tp_train_record *record) {
    double *losses = user;
    if (record->event == TP_TRAIN_STEP) losses[record->iter - 1] = record->loss;
}

static void train(int threads, const char *out, double losses[STEPS]) {
    tp_context *ctx = deterministic(threads);
    tp_trainer *trainer;
    tp_train_options options = TP_TRAIN_OPTIONS_INIT;
    options.model = WICK;
    options.data = VERSES;
    options.out = out;
    options.dropout = 0.1;
    options.iters = STEPS;
    options.eval_every = 0;
    options.val_batches = 1;
    options.lr = 1e-2;
    options.on_event = hear;
    options.user = losses;
    must(tp_trainer_create(&trainer, tp_device_cpu(ctx), &options));
    must(tp_trainer_run(trainer));
    tp_trainer_destroy(trainer);
    tp_context_destroy(ctx);
}

static void read_adapter(const char *out, char **data, size_t *size) {
    char path[256];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", out);
    must(tpi_file_read(path, (size_t)1 << 26, data, size));
}

Test(deterministic, training_on_any_number_of_threads, .timeout = 300) {
    char *data[MOST + 1], root[] = "/tmp/taper-bits-XXXXXX", out[64];
    double losses[MOST + 1][STEPS];
    size_t size[MOST + 1];
    cr_assert(mkdtemp(root));
    for (int threads = 1; threads <= MOST; threads++) {
        snprintf(out, sizeof out, "%s/%d", root, threads);
        train(threads, out, losses[threads]);
        read_adapter(out, &data[threads], &size[threads]);
    }
    for (int threads = 2; threads <= MOST; threads++) {
        for (int i = 0; i < STEPS; i++)
            cr_expect(losses[threads][i] == losses[1][i], "%d threads: step %d: %.17g, on one %.17g", threads,
                      i + 1, losses[threads][i], losses[1][i]);
        cr_expect(size[threads] == size[1] && memcmp(data[threads], data[1], size[1]) == 0,
                  "%d threads: another adapter", threads);
    }
    for (int threads = 1; threads <= MOST; threads++) tpi_free(data[threads]);
    snprintf(out, sizeof out, "rm -r %s", root);
    cr_assert_eq(system(out), 0);
}

/* ---- generation ---- */

typedef struct drawn {
    int32_t ids[TOKENS];
    int count;
} drawn;

static bool keep(void *user, int32_t id, const char *text, size_t length) {
    drawn *d = user;
    (void)text, (void)length;
    d->ids[d->count++] = id;
    return true;
}

static drawn generate(tp_model *model) {
    static const int32_t prompt[] = {70, 120, 330, 12, 900, 41, 7, 260, 77};
    drawn d = {.count = 0};
    tp_generator *generator;
    tp_generate_options options = TP_GENERATE_OPTIONS_INIT;
    options.max_tokens = TOKENS;
    options.temperature = 1.5;
    options.ignore_stop_ids = true;
    must(tp_generator_create(&generator, model, NULL, NULL, 0));
    must(tp_generate_ids(generator, prompt, sizeof prompt / sizeof *prompt, &options, keep, &d, NULL));
    tp_generator_destroy(generator);
    return d;
}

static float *logits_of(tp_context *ctx, const tp_model *model) {
    int32_t ids[96];
    const int64_t grid[] = {2, 48};
    for (int i = 0; i < 96; i++) ids[i] = i * 37 % 4000;
    tp_graph *g = make_graph(ctx);
    tp_forward f = TP_FORWARD_INIT;
    f.tokens = tp_lazy_from_slice(g, tp_device_cpu(ctx), TP_I32, 2, grid, ids);
    tp_tensor *out = value_of(tp_model_forward_lazy(model, &f), g);
    cr_assert_eq(tp_tensor_count(out), 96 * 4096);
    float *values = read_f32(out);
    tp_tensor_release(out);
    tp_graph_destroy(g);
    return values;
}

Test(deterministic, generation_on_any_number_of_threads, .timeout = 300) {
    drawn first = {.count = 0};
    float *expected = NULL;
    for (int threads = 1; threads <= MOST; threads++) {
        tp_context *ctx = deterministic(threads);
        tp_model *model;
        must(tp_model_load(&model, tp_device_cpu(ctx), WICK, NULL));
        drawn d = generate(model);
        float *logits = logits_of(ctx, model);
        if (threads == 1) {
            first = d;
            expected = logits;
            cr_assert_eq(d.count, TOKENS);
        } else {
            cr_expect(memcmp(&d, &first, sizeof d) == 0, "%d threads: another text", threads);
            cr_expect(memcmp(logits, expected, sizeof(float) * 96 * 4096) == 0, "%d threads: other logits",
                      threads);
            free(logits);
        }
        tp_model_destroy(model);
        tp_context_destroy(ctx);
    }
    free(expected);
}
