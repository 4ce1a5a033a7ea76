/* Models against transformers and PEFT (golden files), the cache against the whole pass, gradients,
 * recompute. */
#include "io_helpers.h"
#include "model_helpers.h"

#include "models/model.h"

#define TOLERANCE 1e-4
#define ROUNDED   0.1 /* the same where activations are bf16; the golden ones are f32 */

static tp_context *ctx;
static tp_device *cpu;

static void setup(void) {
    ctx = make_context();
    cpu = tp_device_cpu(ctx);
}

static void teardown(void) {
    tp_context_destroy(ctx);
    cr_assert_eq(tpi_alloc_live(), 0, "%lld allocations left", (long long)tpi_alloc_live());
}

TestSuite(models, .init = setup, .fini = teardown);

typedef struct golden_case {
    const char *model, *adapter;
} golden_case;

static const golden_case CASES[] = {
    {"llama", "adapter-qv"},      {"llama-rope3", "adapter-all"}, {"llama-bias", "adapter-all"},
    {"llama-bf16", "adapter-qv"}, {"mistral", "adapter-pattern"}, {"qwen2", "adapter-qv"},
    {"qwen3", "adapter-all"},
};

#define CASE_COUNT (sizeof CASES / sizeof *CASES)

/* A model with its golden file and, if it has one, its adapter in use. */
typedef struct bench {
    golden golden;
    tp_model *model;
    tp_adapter *adapter;
    tp_adapter_use use;
    const char *prefix; /* of golden names */
    tp_forward forward;
} bench;

static bench open_bench(const golden_case *c, bool adapted) {
    bench b = {.golden = open_golden(c->model), .prefix = ""};
    b.forward = (tp_forward)TP_FORWARD_INIT;
    must(tp_model_load(&b.model, cpu, b.golden.path, NULL));
    if (!adapted) return b;
    char path[600];
    snprintf(path, sizeof path, "%s/%s", b.golden.path, c->adapter);
    must(tp_adapter_load(&b.adapter, b.model, path));
    b.prefix = c->adapter;
    return b;
}

/* After the bench has its final address. */
static void use_adapter(bench *b) {
    b->use = (tp_adapter_use){b->adapter, 1.0};
    b->forward.adapters = b->adapter ? &b->use : NULL;
    b->forward.adapter_count = b->adapter != NULL;
}

static void close_bench(bench *b) {
    tp_adapter_destroy(b->adapter);
    tp_model_destroy(b->model);
    tpi_safetensors_release(b->golden.st);
}

static double tolerance(const tp_model *model) {
    return model->activations == TP_F32 ? TOLERANCE : ROUNDED;
}

/* ---- logits ---- */

static void check_sequence(bench *b, const char *ids, const char *logits) {
    const tpi_st_tensor *wanted = golden_find(&b->golden, b->prefix, logits);
    int64_t length = golden_find(&b->golden, "", ids)->shape[0];
    tp_tensor *tokens = golden_ids(&b->golden, cpu, ids, 2, (int64_t[]){1, length});
    tp_graph *g = make_graph(ctx);
    b->forward.tokens = tp_lazy_from_tensor(g, tokens);
    tp_tensor *out = value_of(tp_model_forward_lazy(b->model, &b->forward), g);
    cr_assert_eq(tp_tensor_rank(out), 3);
    cr_assert_eq(tp_tensor_size(out, 2), wanted->shape[1]);
    float *got = read_f32(out);
    double d = max_difference(got, wanted->data, (size_t)tp_tensor_count(out));
    cr_assert_leq(d, tolerance(b->model), "%s %s %s: differs by %g", b->golden.path, b->prefix, logits, d);
    free(got);
    tp_tensor_release(out), tp_tensor_release(tokens);
    tp_graph_destroy(g);
}

/* Both sequences at once; golden logits are zero behind each length. */
static void check_batch(bench *b, bool with_lengths) {
    const tpi_st_tensor *wanted = golden_find(&b->golden, b->prefix, "batch.logits");
    int64_t n = wanted->shape[0], t = wanted->shape[1], v = wanted->shape[2];
    tp_tensor *tokens = golden_ids(&b->golden, cpu, "batch.ids", 2, (int64_t[]){n, t});
    tp_tensor *lengths = golden_ids(&b->golden, cpu, "batch.lengths", 1, &n);
    tp_graph *g = make_graph(ctx);
    b->forward.tokens = tp_lazy_from_tensor(g, tokens);
    b->forward.lengths = with_lengths ? tp_lazy_from_tensor(g, lengths) : NULL;
    tp_tensor *out = value_of(tp_model_forward_lazy(b->model, &b->forward), g);
    b->forward.lengths = NULL;
    float *got = read_f32(out);
    for (int64_t i = 0; i < n; i++) {
        size_t count = (size_t)(((const int32_t *)tp_tensor_data(lengths))[i] * v), at = (size_t)(i * t * v);
        double d = max_difference(got + at, (const float *)wanted->data + at, count);
        cr_assert_leq(d, tolerance(b->model), "%s %s row %lld: differs by %g", b->golden.path, b->prefix,
                      (long long)i, d);
    }
    free(got);
    tp_tensor_release(out), tp_tensor_release(tokens), tp_tensor_release(lengths);
    tp_graph_destroy(g);
}

static void check_logits(bool adapted) {
    for (size_t i = 0; i < CASE_COUNT; i++) {
        bench b = open_bench(&CASES[i], adapted);
        use_adapter(&b);
        check_sequence(&b, "ids.0", "logits.0");
        check_sequence(&b, "ids.1", "logits.1");
        check_batch(&b, false);
        check_batch(&b, true);
        close_bench(&b);
    }
}

Test(models, logits_are_those_of_transformers) {
    check_logits(false);
}

Test(models, logits_with_adapters_are_those_of_peft) {
    check_logits(true);
}

/* ---- decoding with a cache ---- */

static int32_t argmax(const float *values, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        if (values[i] > values[best]) best = i;
    return (int32_t)best;
}

/* One pass over `length` tokens at `start`; the next token after the last of them. */
static int32_t step(bench *b, tp_graph *g, const int32_t *tokens, int64_t length, int32_t start) {
    int32_t last = (int32_t)length - 1;
    b->forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, length}, tokens);
    b->forward.start = tp_lazy_from_slice(g, cpu, TP_I32, 1, (int64_t[]){1}, &start);
    b->forward.rows = tp_lazy_from_slice(g, cpu, TP_I32, 1, (int64_t[]){1}, &last);
    tp_tensor *out = value_of(tp_model_forward_lazy(b->model, &b->forward), g);
    cr_assert_eq(tp_tensor_rank(out), 2);
    float *logits = read_f32(out);
    int32_t next = argmax(logits, tp_tensor_count(out));
    free(logits);
    tp_tensor_release(out);
    tp_graph_reset(g);
    return next;
}

static void check_greedy(bench *b) {
    const tpi_st_tensor *prompt = golden_find(&b->golden, "", "greedy.prompt");
    const tpi_st_tensor *wanted = golden_find(&b->golden, b->prefix, "greedy.tokens");
    must(tp_kv_cache_create(&b->forward.cache, b->model, 1, prompt->shape[0] + wanted->shape[0]));
    tp_graph *g = make_graph(ctx);
    int32_t start = (int32_t)prompt->shape[0], token = step(b, g, prompt->data, prompt->shape[0], 0);
    for (int64_t i = 0; i < wanted->shape[0]; i++) {
        cr_assert_eq(token, ((const int32_t *)wanted->data)[i], "%s %s: token %lld", b->golden.path,
                     b->prefix, (long long)i);
        if (i + 1 < wanted->shape[0]) token = step(b, g, &token, 1, start++);
    }
    tp_graph_destroy(g);
    tp_kv_cache_destroy(b->forward.cache);
}

Test(models, greedy_tokens_through_the_cache_are_those_of_transformers) {
    for (size_t i = 0; i < 2 * CASE_COUNT; i++) {
        bench b = open_bench(&CASES[i / 2], i % 2);
        use_adapter(&b);
        if (b.model->activations == TP_F32) check_greedy(&b); /* rounding may turn the order of two logits */
        close_bench(&b);
    }
}

/* Two sequences of unlike lengths, prefilled together with padding on the right, then one token each at its
 * own position: the same as each alone. */
Test(models, a_batch_decodes_at_its_own_positions) {
    bench b = open_bench(&CASES[0], false);
    const tpi_st_tensor *wanted = golden_find(&b.golden, "", "batch.logits");
    int64_t n = wanted->shape[0], t = wanted->shape[1], v = wanted->shape[2];
    const int32_t *ids = golden_find(&b.golden, "", "batch.ids")->data;
    const int32_t *lengths = golden_find(&b.golden, "", "batch.lengths")->data;
    int32_t *all_but_last = calloc((size_t)(n * t), sizeof *all_but_last), last[2], start[2];
    cr_assert_eq(n, 2);
    for (int64_t i = 0; i < n; i++) {
        start[i] = lengths[i] - 1;
        last[i] = ids[i * t + start[i]];
        memcpy(all_but_last + i * t, ids + i * t, (size_t)start[i] * sizeof *ids);
    }
    tp_graph *g = make_graph(ctx);
    must(tp_kv_cache_create(&b.forward.cache, b.model, n, t + 3));
    b.forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){n, t}, all_but_last);
    tp_tensor_release(value_of(tp_model_forward_lazy(b.model, &b.forward), g));
    tp_graph_reset(g);
    b.forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){n, 1}, last);
    b.forward.start = tp_lazy_from_slice(g, cpu, TP_I32, 1, &n, start);
    tp_tensor *out = value_of(tp_model_forward_lazy(b.model, &b.forward), g);
    float *got = read_f32(out);
    for (int64_t i = 0; i < n; i++) {
        const float *row = (const float *)wanted->data + (i * t + start[i]) * v;
        cr_assert_leq(max_difference(got + i * v, row, (size_t)v), TOLERANCE);
    }
    free(got), free(all_but_last);
    tp_tensor_release(out);
    tp_graph_destroy(g);
    tp_kv_cache_destroy(b.forward.cache);
    close_bench(&b);
}

/* ---- several adapters ---- */

static tp_tensor *logits_with(bench *b, const tp_adapter_use *uses, int count) {
    int64_t length = golden_find(&b->golden, "", "ids.0")->shape[0];
    tp_tensor *tokens = golden_ids(&b->golden, cpu, "ids.0", 2, (int64_t[]){1, length});
    tp_graph *g = make_graph(ctx);
    b->forward.tokens = tp_lazy_from_tensor(g, tokens);
    b->forward.adapters = uses;
    b->forward.adapter_count = count;
    tp_tensor *out = value_of(tp_model_forward_lazy(b->model, &b->forward), g);
    tp_tensor_release(tokens);
    tp_graph_destroy(g);
    return out;
}

Test(models, adapters_add_up) {
    bench b = open_bench(&CASES[1], true);
    tp_adapter_use whole = {b.adapter, 1.0}, none = {b.adapter, 0.0};
    tp_adapter_use parts[] = {{b.adapter, 0.25}, {b.adapter, 0.5}, {b.adapter, 0.25}};
    tp_tensor *one = logits_with(&b, &whole, 1), *three = logits_with(&b, parts, 3);
    tp_tensor *off = logits_with(&b, &none, 1), *base = logits_with(&b, NULL, 0);
    cr_assert_lt(tensor_difference(one, three), TOLERANCE);
    cr_assert_eq(tensor_difference(off, base), 0);
    cr_assert_gt(tensor_difference(one, base), 0.1);
    tp_tensor_release(one), tp_tensor_release(three), tp_tensor_release(off), tp_tensor_release(base);
    close_bench(&b);
}

/* ---- training ---- */

typedef struct trained {
    tp_tensor *loss;
    tp_tensor *gradients[64];
    int count;
} trained;

/* Loss and gradients of the adapter of a bench on its first sequence. */
static trained train_step(bench *b, bool recompute, int32_t dropout_seed) {
    const tpi_st_tensor *ids = golden_find(&b->golden, "", "ids.0");
    int64_t n = ids->shape[0] - 1;
    trained out;
    tp_lazy *wrt[64], *grads[64];
    tp_tensor *results[65];
    const tp_parameter *parameters = tp_adapter_parameters(b->adapter, &out.count);
    tp_graph *g = make_graph(ctx);
    b->forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, n}, ids->data);
    b->forward.recompute = recompute;
    if (dropout_seed >= 0)
        b->forward.dropout_seed =
            tp_lazy_from_slice(g, cpu, TP_I32, 1, (int64_t[]){2}, (int32_t[]){dropout_seed, 0});
    tp_lazy *labels =
        tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, n}, (const int32_t *)ids->data + 1);
    tp_lazy *loss = tp_lazy_mean(tp_model_loss_lazy(b->model, &b->forward, labels, -100), TP_ALL_DIMS, false);
    for (int i = 0; i < out.count; i++) wrt[i] = tp_lazy_from_tensor(g, parameters[i].tensor);
    must(tp_graph_grad(g, loss, wrt, out.count, grads));
    grads[out.count] = loss;
    must(tp_graph_eval(g, grads, out.count + 1, results));
    for (int i = 0; i < out.count; i++) out.gradients[i] = results[i];
    out.loss = results[out.count];
    tp_graph_destroy(g);
    b->forward.dropout_seed = NULL;
    b->forward.recompute = false;
    return out;
}

static void release_trained(trained *t) {
    for (int i = 0; i < t->count; i++) tp_tensor_release(t->gradients[i]);
    tp_tensor_release(t->loss);
}

static double loss_of(bench *b) {
    trained t = train_step(b, false, -1);
    float value;
    must(tp_tensor_read(t.loss, TP_F32, &value, sizeof value));
    release_trained(&t);
    return (double)value;
}

/* The slope of the loss along the gradient is the gradient's square norm. */
Test(models, adapter_gradients_are_slopes) {
    const size_t cases[] = {1, 2, 6};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        bench b = open_bench(&CASES[cases[c]], true);
        use_adapter(&b);
        trained t = train_step(&b, false, -1);
        int count;
        const tp_parameter *parameters = tp_adapter_parameters(b.adapter, &count);
        for (int i = 0; i < count; i++) {
            size_t n = (size_t)tp_tensor_count(parameters[i].tensor), bytes = n * sizeof(float);
            float *old = read_f32(parameters[i].tensor), *grad = read_f32(t.gradients[i]);
            float *moved = malloc(bytes);
            double square = 0, losses[2];
            for (size_t k = 0; k < n; k++) square += (double)grad[k] * (double)grad[k];
            const double h = 0.002 / sqrt(square);
            for (int side = 0; side < 2; side++) {
                for (size_t k = 0; k < n; k++)
                    moved[k] = (float)((double)old[k] + (side ? -h : h) * (double)grad[k]);
                must(tp_tensor_write(parameters[i].tensor, moved, bytes));
                losses[side] = loss_of(&b);
            }
            must(tp_tensor_write(parameters[i].tensor, old, bytes));
            double slope = (losses[0] - losses[1]) / (2 * h);
            cr_assert_gt(square, 0);
            cr_assert_float_eq(slope, square, 0.02 * square + 1e-3 * sqrt(square),
                               "%s: slope %g, expected %g", parameters[i].name, slope, square);
            free(old), free(grad), free(moved);
        }
        release_trained(&t);
        close_bench(&b);
    }
}

static void check_same(const trained *a, const trained *b, double tolerance) {
    cr_assert_leq(tensor_difference(a->loss, b->loss), tolerance);
    for (int i = 0; i < a->count; i++)
        cr_assert_leq(tensor_difference(a->gradients[i], b->gradients[i]), tolerance, "gradient %d", i);
}

Test(models, recompute_changes_nothing) {
    bench b = open_bench(&CASES[6], true);
    use_adapter(&b);
    trained kept = train_step(&b, false, -1), again = train_step(&b, true, -1);
    check_same(&kept, &again, 1e-6);
    release_trained(&kept);
    release_trained(&again);
    close_bench(&b);
}

Test(models, dropout_acts_in_training_and_survives_recompute) {
    bench b = open_bench(&CASES[6], false);
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    options.dropout = 0.3;
    must(tp_adapter_create(&b.adapter, b.model, &options));
    int count;
    const tp_parameter *parameters = tp_adapter_parameters(b.adapter, &count);
    for (int i = 1; i < count; i += 2) {
        tp_tensor *noise;
        must(tp_tensor_randn(cpu, 2, tp_tensor_shape(parameters[i].tensor), (uint64_t)i, &noise));
        must(tp_tensor_write(parameters[i].tensor, tp_tensor_data(noise),
                             (size_t)tp_tensor_count(noise) * sizeof(float)));
        tp_tensor_release(noise);
    }
    use_adapter(&b);
    trained off = train_step(&b, false, -1), on = train_step(&b, false, 5), same = train_step(&b, true, 5),
            other = train_step(&b, false, 6);
    check_same(&on, &same, 1e-5);
    cr_assert_gt(tensor_difference(on.loss, off.loss), 1e-4);
    cr_assert_gt(tensor_difference(on.loss, other.loss), 1e-4);
    release_trained(&off), release_trained(&on), release_trained(&same), release_trained(&other);
    close_bench(&b);
}

/* ---- losses ---- */

/* A model's losses are the cross entropy of its logits; `fused` says that there are none in the plan. */
static void expect_losses_of_logits(tp_model *model, const tp_adapter_use *use, bool fused) {
    tp_graph *g = make_graph(ctx);
    tp_forward forward = TP_FORWARD_INIT;
    forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 5}, (int32_t[]){1, 2, 3, 4, 5});
    forward.adapters = use;
    forward.adapter_count = use != NULL;
    tp_lazy *labels = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 5}, (int32_t[]){2, -100, 4, 5, 0});
    tp_lazy *losses[] = {tp_model_loss_lazy(model, &forward, labels, -100),
                         tp_lazy_cross_entropy(tp_model_forward_lazy(model, &forward), labels, -100)};
    char *plan;
    must(tp_graph_explain(g, losses, 1, &plan));
    cr_expect_eq(strstr(plan, "linear_cross_entropy") != NULL, fused, "%s", plan);
    tp_free(plan);
    tp_tensor *results[2];
    must(tp_graph_eval(g, losses, 2, results));
    cr_expect_lt(tensor_difference(results[0], results[1]), tolerance(model));
    tp_tensor_release(results[0]), tp_tensor_release(results[1]);
    tp_graph_destroy(g);
}

Test(models, losses_are_those_of_the_logits) {
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    const char *targets[] = {"lm_head"};
    options.targets = targets;
    options.target_count = 1;
    for (size_t c = 0; c < CASE_COUNT; c++) {
        bench b = open_bench(&CASES[c], false);
        tp_model *trainable;
        const tp_model_options train = {sizeof train, true, TP_BASE_AUTO};
        must(tp_model_load(&trainable, cpu, b.golden.path, &train));
        must(tp_adapter_create(&b.adapter, b.model, &options));
        expect_losses_of_logits(b.model, NULL, true);
        expect_losses_of_logits(b.model, &(tp_adapter_use){b.adapter, 1.0}, false);
        expect_losses_of_logits(trainable, NULL, false);
        tp_model_destroy(trainable);
        close_bench(&b);
    }
}

/* ---- random models ---- */

Test(models, random_models_start_near_uniform) {
    tp_model *model, *again;
    must(tp_model_create_random(&model, cpu, GOLDEN "qwen3", 5));
    must(tp_model_create_random(&again, cpu, GOLDEN "qwen3", 5));
    int count, same;
    const tp_parameter *p = tp_model_parameters(model, &count), *q = tp_model_parameters(again, &same);
    cr_assert_eq(count, same);
    for (int i = 0; i < count; i++) {
        cr_assert_eq(tensor_difference(p[i].tensor, q[i].tensor), 0);
        cr_assert_eq(tp_tensor_dtype(p[i].tensor), TP_F32);
    }
    tp_forward forward = TP_FORWARD_INIT;
    tp_graph *g = make_graph(ctx);
    forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 4}, (int32_t[]){1, 2, 3, 4});
    tp_lazy *labels = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 4}, (int32_t[]){5, 6, 7, 8});
    tp_lazy *losses = tp_lazy_cross_entropy(tp_model_forward_lazy(model, &forward), labels, -100);
    tp_tensor *loss = value_of(tp_lazy_mean(losses, TP_ALL_DIMS, false), g);
    float *value = read_f32(loss);
    cr_assert_float_eq((double)*value, log(107.0), 0.1);
    free(value);
    tp_tensor_release(loss);
    tp_graph_destroy(g);
    tp_model_destroy(model);
    tp_model_destroy(again);
}

/* Every weight of a trainable model gets a gradient, and a step along it lowers the loss. */
Test(models, all_weights_can_be_trained) {
    tp_model *model;
    const tp_model_options options = {sizeof options, true, TP_BASE_AUTO};
    must(tp_model_load(&model, cpu, GOLDEN "qwen2", &options));
    int count;
    const tp_parameter *p = tp_model_parameters(model, &count);
    tp_lazy *wrt[64], *grads[64];
    tp_tensor *results[64];
    cr_assert_leq(count, 64);
    tp_forward forward = TP_FORWARD_INIT;
    tp_graph *g = make_graph(ctx);
    forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 5}, (int32_t[]){9, 8, 7, 6, 5});
    tp_lazy *labels = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 5}, (int32_t[]){8, 7, 6, 5, 4});
    tp_lazy *loss = tp_lazy_mean(tp_lazy_cross_entropy(tp_model_forward_lazy(model, &forward), labels, -100),
                                 TP_ALL_DIMS, false);
    for (int i = 0; i < count; i++) wrt[i] = tp_lazy_from_tensor(g, p[i].tensor);
    must(tp_graph_grad(g, loss, wrt, count, grads));
    must(tp_graph_eval(g, grads, count, results));
    for (int i = 0; i < count; i++) {
        float *values = read_f32(results[i]);
        double square = 0;
        for (int64_t k = 0; k < tp_tensor_count(results[i]); k++)
            square += (double)values[k] * (double)values[k];
        cr_assert(isfinite(square));
        /* Softmax ignores what a key bias adds alike to all scores of a query, but rotation makes it differ.
         */
        cr_assert_gt(square, 0, "%s", p[i].name);
        free(values);
        tp_tensor_release(results[i]);
    }
    tp_graph_destroy(g);
    tp_model_destroy(model);
}

/* ---- windows ---- */

/* Two layers that each see the last three positions: a token reaches four positions on, and no further. */
Test(models, windows_bound_what_a_token_reaches) {
    const char *config =
        "{\"architectures\": [\"MistralForCausalLM\"], \"vocab_size\": 32, \"hidden_size\": 16, "
        "\"intermediate_size\": 24, \"num_hidden_layers\": 2, \"num_attention_heads\": 2, "
        "\"num_key_value_heads\": 1, \"sliding_window\": 3, \"initializer_range\": 0.3}";
    enum { LENGTH = 9, VOCAB = 32, REACH = 4 };
    tp_model *model;
    float *logits[2];
    make_directory();
    put_file(in_directory("config.json"), config, strlen(config));
    must(tp_model_create_random(&model, cpu, directory, 1));
    for (int32_t side = 0; side < 2; side++) {
        const int32_t tokens[LENGTH] = {9, 7, 5 + side, 3, 1, 2, 4, 6, 8};
        tp_graph *g = make_graph(ctx);
        tp_forward forward = TP_FORWARD_INIT;
        forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, LENGTH}, tokens);
        tp_tensor *out = value_of(tp_model_forward_lazy(model, &forward), g);
        logits[side] = read_f32(out);
        tp_tensor_release(out);
        tp_graph_destroy(g);
    }
    for (int t = 0; t < LENGTH; t++) {
        double d = max_difference(logits[0] + t * VOCAB, logits[1] + t * VOCAB, VOCAB);
        cr_assert_eq(d > 1e-6, t >= 2 && t <= 2 + REACH, "position %d differs by %g", t, d);
    }
    free(logits[0]), free(logits[1]);
    tp_model_destroy(model);
    remove_directory();
}

/* ---- questions ---- */

Test(models, tell_what_they_are) {
    tp_model *model;
    must(tp_model_load(&model, cpu, GOLDEN "llama", NULL));
    tp_model_info info;
    tp_model_get_info(model, &info);
    cr_assert_str_eq(info.architecture, "LlamaForCausalLM");
    cr_assert_eq(info.layers, 2);
    cr_assert_eq(info.heads, 6);
    cr_assert_eq(info.kv_heads, 2);
    cr_assert_eq(info.head_dim, 6);
    cr_assert(info.tied);
    const uint64_t layer = 2 * 28 + 28 * 36 * 2 + 28 * 12 * 2 + 3 * 28 * 38;
    cr_assert_eq(info.parameters, 97 * 28 + 2 * layer + 28);
    cr_assert_eq(info.bytes, 4 * info.parameters);
    int count;
    const tp_linear *linears = tp_model_linears(model, &count);
    cr_assert_eq(count, 15);
    cr_assert_str_eq(linears[0].path, "model.layers.0.self_attn.q_proj");
    cr_assert_eq(linears[0].in_features, 28);
    cr_assert_eq(linears[0].out_features, 36);
    cr_assert_str_eq(linears[13].path, "model.layers.1.mlp.down_proj");
    cr_assert_eq(linears[13].layer, 1);
    cr_assert_str_eq(linears[14].path, "lm_head");
    cr_assert_eq(linears[14].layer, -1);
    const int32_t *stops = tp_model_stop_ids(model, &count);
    cr_assert_eq(count, 1);
    cr_assert_eq(stops[0], 2);
    tp_model_destroy(model);
    must(tp_model_load(&model, cpu, GOLDEN "llama-bf16", NULL));
    const tp_parameter *p = tp_model_parameters(model, &count);
    cr_assert_eq(tp_tensor_dtype(p[0].tensor), TP_BF16, "matrices keep their dtype");
    tp_model_destroy(model);
}

/* ---- refusals of the forward pass ---- */

Test(models, forward_refuses_what_does_not_belong) {
    tp_model *model, *other;
    must(tp_model_load(&model, cpu, GOLDEN "llama", NULL));
    must(tp_model_load(&other, cpu, GOLDEN "qwen3", NULL));
    tp_adapter *adapter;
    tp_kv_cache *cache;
    must(tp_adapter_create(&adapter, other, NULL));
    must(tp_kv_cache_create(&cache, other, 1, 8));
    tp_adapter_use use = {adapter, 1.0};
    const struct {
        tp_forward forward;
        bool flat;
        tp_status status;
        const char *part;
    } bad[] = {
        {{sizeof(tp_forward), .adapters = &use, .adapter_count = 1}, false, TP_EINVAL, "another model"},
        {{sizeof(tp_forward), .adapters = &use, .adapter_count = 99}, false, TP_EINVAL, "at most"},
        {{sizeof(tp_forward), .cache = cache}, false, TP_EINVAL, "another model"},
        {{1, .cache = NULL}, false, TP_EINVAL, "size"},
        {{sizeof(tp_forward), .cache = NULL}, true, TP_ESHAPE, "dimensions"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tp_graph *g = make_graph(ctx);
        tp_forward forward = bad[i].forward;
        forward.tokens = bad[i].flat
                             ? tp_lazy_from_slice(g, cpu, TP_I32, 1, (int64_t[]){1}, (int32_t[]){1})
                             : tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 1}, (int32_t[]){1});
        cr_assert_null(tp_model_forward_lazy(model, &forward));
        must_fail(tp_graph_status(g), bad[i].status, bad[i].part);
        tp_graph_destroy(g);
    }
    tp_forward forward = TP_FORWARD_INIT;
    cr_assert_null(tp_model_forward_lazy(model, &forward), "no tokens, no logits");
    tp_kv_cache_destroy(cache);
    tp_adapter_destroy(adapter);
    tp_model_destroy(model);
    tp_model_destroy(other);
}

Test(models, a_token_outside_the_vocabulary_is_an_error) {
    tp_model *model;
    must(tp_model_load(&model, cpu, GOLDEN "llama", NULL));
    tp_graph *g = make_graph(ctx);
    tp_forward forward = TP_FORWARD_INIT;
    forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 2}, (int32_t[]){3, 97});
    tp_tensor *out;
    must_fail(tp_lazy_eval(tp_model_forward_lazy(model, &forward), &out), TP_EINVAL, "97");
    cr_assert_null(out);
    tp_graph_destroy(g);
    tp_model_destroy(model);
}
