/* Adapters: which layers they choose, PEFT directories in both directions, merging, and what is refused. */
#include "io_helpers.h"
#include "model_helpers.h"

#include "io/json.h"

static tp_context *ctx;
static tp_device *cpu;
static tp_model *model;
static char log_line[512];

static void keep_line(void *user, tp_log_level level, const char *line) {
    (void)user;
    if (level == TP_LOG_WARN) snprintf(log_line, sizeof log_line, "%s", line);
}

static void setup(void) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = 2;
    options.log = keep_line;
    must(tp_context_create(&ctx, &options));
    cpu = tp_device_cpu(ctx);
    must(tp_model_load(&model, cpu, GOLDEN "mistral", NULL));
    make_directory();
}

static void teardown(void) {
    remove_directory();
    tp_model_destroy(model);
    tp_context_destroy(ctx);
    cr_assert_eq(tpi_alloc_live(), 0, "%lld allocations left", (long long)tpi_alloc_live());
}

TestSuite(adapters, .init = setup, .fini = teardown);

/* ---- choosing layers ---- */

static tp_status create(tp_adapter **out, const char *const *targets, int count, const char *const *exclude,
                        int exclude_count) {
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    options.targets = targets;
    options.target_count = count;
    options.exclude = exclude;
    options.exclude_count = exclude_count;
    return tp_adapter_create(out, model, &options);
}

/* The number of layers that one target chooses. */
static int chosen(const char *target) {
    tp_adapter *adapter;
    tp_adapter_info info;
    must(create(&adapter, &target, 1, NULL, 0));
    tp_adapter_get_info(adapter, &info);
    tp_adapter_destroy(adapter);
    return info.modules;
}

Test(adapters, targets) {
    cr_expect_eq(chosen("all-linear"), 14);
    cr_expect_eq(chosen("attn"), 8);
    cr_expect_eq(chosen("mlp"), 6);
    cr_expect_eq(chosen("q_proj"), 2);
    cr_expect_eq(chosen("lm_head"), 1);
    cr_expect_eq(chosen("self_attn.q_proj"), 2);
    cr_expect_eq(chosen("1.mlp.up_proj"), 1);
    cr_expect_eq(chosen("model.layers.0.self_attn.o_proj"), 1);
    cr_expect_eq(chosen("re:.*\\.(q|v)_proj"), 4);
    cr_expect_eq(chosen("re:model\\.layers\\.1\\..*"), 7);
    tp_adapter *adapter;
    tp_adapter_info info;
    must(create(&adapter, (const char *[]){"attn", "down_proj", "q_proj"}, 3, (const char *[]){"k_proj"}, 1));
    tp_adapter_get_info(adapter, &info);
    cr_expect_eq(info.modules, 8);
    tp_adapter_destroy(adapter);
}

Test(adapters, targets_that_match_nothing_suggest) {
    tp_adapter *adapter;
    must_fail(create(&adapter, (const char *[]){"q_prj"}, 1, NULL, 0), TP_EINVAL, "nearest are q_proj");
    must_fail(create(&adapter, (const char *[]){"q_proj", "roj"}, 2, NULL, 0), TP_EINVAL, "\"roj\"");
    must_fail(create(&adapter, (const char *[]){"re:q_proj"}, 1, NULL, 0), TP_EINVAL, "matches no");
    must_fail(create(&adapter, (const char *[]){"attn"}, 1, (const char *[]){"dwn_proj"}, 1), TP_EINVAL,
              "exclusion \"dwn_proj\"");
    must_fail(create(&adapter, (const char *[]){"attn"}, 1, (const char *[]){"attn"}, 1), TP_EINVAL,
              "leave no");
    must_fail(create(&adapter, (const char *[]){""}, 1, NULL, 0), TP_EINVAL, "matches no");
    must_fail(create(&adapter, (const char *[]){"re:(q"}, 1, NULL, 0), TP_EINVAL, "offset");
    must_fail(create(&adapter, (const char *[]){"re:(([a-z_.0-9]+)+)+[!?]"}, 1, NULL, 0), TP_EINVAL, "steps");
    cr_assert_null(adapter);
}

Test(adapters, layers_patterns_and_scalings) {
    const tp_adapter_pattern ranks[] = {{"layers.1.self_attn.q_proj", 2}, {"q_proj", 3}};
    const tp_adapter_pattern alphas[] = {{".*k_proj", 9}};
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    options.rank = 4;
    options.alpha = 6;
    options.rank_pattern = ranks;
    options.rank_pattern_count = 2;
    options.alpha_pattern = alphas;
    options.alpha_pattern_count = 1;
    tp_adapter *adapter;
    tp_adapter_module q, k;
    must(tp_adapter_create(&adapter, model, &options));
    must(tp_adapter_get_module(adapter, 0, &q));
    must(tp_adapter_get_module(adapter, 1, &k));
    cr_expect_str_eq(q.path, "model.layers.0.self_attn.q_proj");
    cr_expect_eq(tp_tensor_size(q.a, 0), 3);
    cr_expect_float_eq(q.scaling, 2.0, 1e-12);
    cr_expect_eq(tp_tensor_size(k.a, 0), 4);
    cr_expect_float_eq(k.scaling, 9.0 / 4, 1e-12);
    must(tp_adapter_get_module(adapter, 7, &q));
    cr_expect_str_eq(q.path, "model.layers.1.self_attn.q_proj");
    cr_expect_eq(tp_tensor_size(q.a, 0), 2);
    must_fail(tp_adapter_get_module(adapter, 14, &q), TP_EINVAL, "14");
    tp_adapter_destroy(adapter);

    options.rslora = true;
    options.first_layer = 1;
    options.end_layer = 2;
    must(tp_adapter_create(&adapter, model, &options));
    tp_adapter_info info;
    tp_adapter_get_info(adapter, &info);
    cr_expect_eq(info.modules, 7);
    must(tp_adapter_get_module(adapter, 2, &k));
    cr_expect_str_eq(k.path, "model.layers.1.self_attn.v_proj");
    cr_expect_float_eq(k.scaling, 3.0, 1e-12);
    tp_adapter_destroy(adapter);
}

Test(adapters, values_out_of_range) {
    tp_adapter *adapter;
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    options.rank = 0;
    must_fail(tp_adapter_create(&adapter, model, &options), TP_EINVAL, "rank 0");
    options = (tp_adapter_options)TP_ADAPTER_OPTIONS_INIT;
    options.dropout = 1;
    must_fail(tp_adapter_create(&adapter, model, &options), TP_EINVAL, "dropout");
    options = (tp_adapter_options)TP_ADAPTER_OPTIONS_INIT;
    options.alpha = (double)NAN;
    must_fail(tp_adapter_create(&adapter, model, &options), TP_EINVAL, "alpha");
    options = (tp_adapter_options)TP_ADAPTER_OPTIONS_INIT;
    options.end_layer = 3;
    must_fail(tp_adapter_create(&adapter, model, &options), TP_EINVAL, "layers 0 to 3");
    options = (tp_adapter_options)TP_ADAPTER_OPTIONS_INIT;
    options.rank_pattern = &(tp_adapter_pattern){"q_proj", 2.5};
    options.rank_pattern_count = 1;
    must_fail(tp_adapter_create(&adapter, model, &options), TP_EINVAL, "2.5");
    options.rank_pattern = &(tp_adapter_pattern){"q_porj", 2};
    must_fail(tp_adapter_create(&adapter, model, &options), TP_EINVAL, "rank pattern \"q_porj\"");
    options.size = 0;
    must_fail(tp_adapter_create(&adapter, model, &options), TP_EINVAL, "size");
}

/* ---- saving and loading ---- */

static tp_tensor *logits(const tp_model *m, const tp_adapter_use *uses, int count) {
    tp_forward forward = TP_FORWARD_INIT;
    tp_graph *g = make_graph(ctx);
    forward.tokens = tp_lazy_from_slice(g, cpu, TP_I32, 2, (int64_t[]){1, 6}, (int32_t[]){3, 1, 4, 1, 5, 9});
    forward.adapters = uses;
    forward.adapter_count = count;
    tp_tensor *out = value_of(tp_model_forward_lazy(m, &forward), g);
    tp_graph_destroy(g);
    return out;
}

static void check_same_adapter(const tp_adapter *a, const tp_adapter *b) {
    tp_adapter_info x, y;
    tp_adapter_get_info(a, &x);
    tp_adapter_get_info(b, &y);
    cr_assert_eq(x.modules, y.modules);
    cr_assert(x.rank == y.rank && x.alpha == y.alpha && x.rslora == y.rslora && x.dropout == y.dropout);
    cr_assert_str_eq(x.base_model, y.base_model);
    for (int i = 0; i < x.modules; i++) {
        tp_adapter_module m, n;
        must(tp_adapter_get_module(a, i, &m));
        must(tp_adapter_get_module(b, i, &n));
        cr_assert_str_eq(m.path, n.path);
        cr_assert_eq(m.scaling, n.scaling, "%s: %g and %g", m.path, m.scaling, n.scaling);
        cr_assert_eq(tensor_difference(m.a, n.a), 0);
        cr_assert_eq(tensor_difference(m.b, n.b), 0);
    }
}

static void check_round_trip(tp_adapter *adapter) {
    tp_adapter *again;
    must(tp_adapter_save(adapter, in_directory("adapter")));
    must(tp_adapter_load(&again, model, in_directory("adapter")));
    check_same_adapter(adapter, again);
    tp_adapter_destroy(again);
}

Test(adapters, what_is_saved_loads_as_it_was) {
    tp_adapter *adapter;
    must(tp_adapter_load(&adapter, model, GOLDEN "mistral/adapter-pattern"));
    check_round_trip(adapter);
    tp_adapter_destroy(adapter);
    must(create(&adapter, (const char *[]){"attn", "lm_head"}, 2, (const char *[]){"1.self_attn.v_proj"}, 1));
    check_round_trip(adapter);
    tp_adapter_destroy(adapter);
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    options.first_layer = 1;
    options.dropout = 0.125;
    options.base_model = "some/model";
    options.alpha = 0.3;
    must(tp_adapter_create(&adapter, model, &options));
    check_round_trip(adapter);
    tp_adapter_destroy(adapter);
}

/* What PEFT, vLLM and llama.cpp need to find. */
Test(adapters, the_configuration_is_one_of_peft) {
    tp_adapter *adapter;
    tpi_json_doc *doc;
    const char *text;
    int64_t number;
    must(create(&adapter, (const char *[]){"q_proj", "v_proj"}, 2, NULL, 0));
    must(tp_adapter_save(adapter, in_directory("a")));
    tp_adapter_destroy(adapter);
    must(tpi_json_load(in_directory("a/adapter_config.json"), &doc));
    tpi_json root = tpi_json_root(doc), list;
    must(tpi_json_get_string(root, "peft_type", &text));
    cr_expect_str_eq(text, "LORA");
    must(tpi_json_get_string(root, "task_type", &text));
    cr_expect_str_eq(text, "CAUSAL_LM");
    must(tpi_json_get_string(root, "base_model_name_or_path", &text));
    cr_expect_str_eq(text, GOLDEN "mistral");
    must(tpi_json_get_int(root, "r", 1, 100, &number));
    cr_expect_eq(number, 8);
    must(tpi_json_get_int(root, "lora_alpha", 1, 100, &number));
    cr_expect_eq(number, 16);
    must(tpi_json_get_array(root, "target_modules", &list));
    cr_expect_eq(tpi_json_count(list), 2);
    must(tpi_json_as_string(tpi_json_first(list), &text));
    cr_expect_str_eq(text, "q_proj");
    tpi_json_destroy(doc);
    tpi_safetensors *st;
    must(tpi_safetensors_open(in_directory("a/adapter_model.safetensors"), &st));
    cr_expect_str_eq(tpi_safetensors_metadata(st, "format"), "pt");
    cr_expect_eq(tpi_safetensors_count(st), 8);
    cr_expect(tpi_safetensors_find(st, "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"));
    tpi_safetensors_release(st);
}

/* ---- hostile directories ---- */

#define NAME(layer, part) "base_model.model.model.layers." layer ".self_attn.q_proj.lora_" part ".weight"

/* A directory with this configuration and the first `count` of five small tensors, the last a stranger. */
static const char *put_adapter(const char *config, size_t count) {
    static const float zeros[64 * 64];
    const tpi_st_tensor tensors[] = {
        {.name = NAME("0", "A"), .dtype = TPI_ST_F32, .rank = 2, .shape = {2, 24}, .data = zeros},
        {.name = NAME("0", "B"), .dtype = TPI_ST_F32, .rank = 2, .shape = {40, 2}, .data = zeros},
        {.name = NAME("1", "A"), .dtype = TPI_ST_F32, .rank = 2, .shape = {2, 24}, .data = zeros},
        {.name = NAME("1", "B"), .dtype = TPI_ST_F32, .rank = 2, .shape = {40, 2}, .data = zeros},
        {.name = NAME("2", "B"), .dtype = TPI_ST_F32, .rank = 2, .shape = {40, 2}, .data = zeros},
    };
    const char *path = in_directory("hostile");
    must(tpi_dir_create(path));
    put_file(in_directory("hostile/adapter_config.json"), config, strlen(config));
    must(tpi_safetensors_write(in_directory("hostile/adapter_model.safetensors"), tensors, count, NULL, 0));
    return path;
}

#define LORA "{\"peft_type\": \"LORA\", \"r\": 2"
#define Q    LORA ", \"target_modules\": [\"q_proj\"]"

Test(adapters, defaults_and_unknown_keys) {
    tp_adapter *adapter;
    tp_adapter_info info;
    must(tp_adapter_load(&adapter, model, put_adapter(Q "}", 4)));
    tp_adapter_get_info(adapter, &info);
    cr_expect_eq(info.modules, 2);
    cr_expect_eq(info.alpha, 8.0);
    cr_expect_eq(info.dropout, 0.0);
    cr_expect_str_empty(log_line);
    tp_adapter_destroy(adapter);
    must(tp_adapter_load(&adapter, model, put_adapter(Q ", \"shiny_new_key\": 3}", 4)));
    cr_expect(strstr(log_line, "shiny_new_key"), "warned: %s", log_line);
    tp_adapter_destroy(adapter);
    must(tp_adapter_load(&adapter, model, put_adapter(Q ", \"layers_to_transform\": [0]}", 2)));
    tp_adapter_get_info(adapter, &info);
    cr_expect_eq(info.modules, 1);
    tp_adapter_destroy(adapter);
    must(tp_adapter_load(&adapter, model, put_adapter(LORA ", \"target_modules\": \".*q_proj\"}", 4)));
    tp_adapter_destroy(adapter);
    must(tp_adapter_load(&adapter, model,
                         put_adapter(Q ", \"exclude_modules\": [\"1.self_attn.q_proj\"]}", 2)));
    tp_adapter_destroy(adapter);
}

Test(adapters, refuses_by_name) {
    const struct {
        const char *config;
        size_t tensors;
        tp_status status;
        const char *part;
    } bad[] = {
        {Q "}", 3, TP_EFORMAT, NAME("1", "B")},
        {Q "}", 5, TP_EFORMAT, NAME("2", "B")},
        {Q ", \"layers_to_transform\": 0}", 4, TP_EFORMAT, "2 tensors that no target"},
        {"{\"peft_type\": \"LORA\", \"r\": 3, \"target_modules\": [\"q_proj\"]}", 4, TP_EFORMAT,
         "got [2, 24]"},
        {LORA ", \"target_modules\": [\"v_proj\"]}", 4, TP_EFORMAT, "no target"},
        {LORA ", \"target_modules\": [\"query\"]}", 4, TP_EFORMAT, "query"},
        {LORA ", \"target_modules\": null}", 4, TP_EFORMAT, "target_modules"},
        {LORA ", \"target_modules\": [1]}", 4, TP_EFORMAT, "target_modules"},
        {LORA ", \"target_modules\": \"(\"}", 4, TP_EFORMAT, "adapter_config.json"},
        {"{\"peft_type\": \"IA3\", \"target_modules\": [\"q_proj\"]}", 4, TP_EUNSUPPORTED, "IA3"},
        {"{\"r\": 2, \"target_modules\": [\"q_proj\"]}", 4, TP_EFORMAT, "peft_type"},
        {"[]", 4, TP_EFORMAT, "object"},
        {Q ", \"r\": 4}", 4, TP_EFORMAT, "'r'"},
        {Q ", \"use_dora\": true}", 4, TP_EUNSUPPORTED, "use_dora"},
        {Q ", \"bias\": \"all\"}", 4, TP_EUNSUPPORTED, "bias"},
        {Q ", \"lora_bias\": true}", 4, TP_EUNSUPPORTED, "lora_bias"},
        {Q ", \"fan_in_fan_out\": true}", 4, TP_EUNSUPPORTED, "fan_in_fan_out"},
        {Q ", \"modules_to_save\": [\"lm_head\"]}", 4, TP_EUNSUPPORTED, "lm_head"},
        {Q ", \"layer_replication\": [[0, 1]]}", 4, TP_EUNSUPPORTED, "layer_replication"},
        {Q ", \"alora_invocation_tokens\": [1]}", 4, TP_EUNSUPPORTED, "alora"},
        {Q ", \"init_lora_weights\": \"pissa\"}", 4, TP_EUNSUPPORTED, "pissa"},
        {Q ", \"layers_to_transform\": [2]}", 4, TP_EFORMAT, "layers_to_transform"},
        {Q ", \"layers_to_transform\": [0], \"layers_pattern\": \"blocks\"}", 4, TP_EUNSUPPORTED,
         "layers_pattern"},
        {Q ", \"lora_alpha\": \"16\"}", 4, TP_EFORMAT, "lora_alpha"},
        {Q ", \"lora_dropout\": 1.5}", 4, TP_EFORMAT, "dropout"},
        {Q ", \"rank_pattern\": {\"q_proj\": 0}}", 4, TP_EFORMAT, "rank 0"},
        {Q ", \"rank_pattern\": {\"(q\": 2}}", 4, TP_EFORMAT, "(q"},
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        tp_adapter *adapter;
        const char *path = put_adapter(bad[i].config, bad[i].tensors);
        tp_status status = tp_adapter_load(&adapter, model, path);
        cr_expect_eq(status, bad[i].status, "%s: got %s: %s", bad[i].config, tp_status_name(status),
                     tp_error_message());
        cr_expect(strstr(tp_error_message(), bad[i].part), "%s: no \"%s\" in: %s", bad[i].config, bad[i].part,
                  tp_error_message());
        cr_expect(strstr(tp_error_message(), "/hostile/"), "no file in: %s", tp_error_message());
        cr_expect_null(adapter);
    }
    tp_adapter *adapter;
    must_fail(tp_adapter_load(&adapter, model, in_directory("nowhere")), TP_EIO, "adapter_config.json");
}

Test(adapters, an_adapter_of_another_model) {
    tp_adapter *adapter;
    must_fail(tp_adapter_load(&adapter, model, GOLDEN "llama/adapter-qv"), TP_EFORMAT, "made for \"llama\"");
}

/* ---- merging ---- */

static void check_merge(const char *name, const char *adapter_name, double tolerance) {
    char path[512];
    tp_model *base, *merged;
    tp_adapter *adapter;
    snprintf(path, sizeof path, GOLDEN "%s", name);
    must(tp_model_load(&base, cpu, path, NULL));
    snprintf(path, sizeof path, GOLDEN "%s/%s", name, adapter_name);
    must(tp_adapter_load(&adapter, base, path));
    const tp_adapter_use uses[] = {{adapter, 0.75}, {adapter, 0.5}};
    tp_model_save_options options = TP_MODEL_SAVE_OPTIONS_INIT;
    options.adapters = uses;
    options.adapter_count = 2;
    must(tp_model_save(base, in_directory("merged"), &options));
    must(tp_model_load(&merged, cpu, in_directory("merged"), NULL));
    tp_tensor *wanted = logits(base, uses, 2), *got = logits(merged, NULL, 0), *plain = logits(base, NULL, 0);
    cr_assert_leq(tensor_difference(wanted, got), tolerance, "%s", name);
    cr_assert_gt(tensor_difference(wanted, plain), 0.1);
    cr_assert(tpi_path_exists(in_directory("merged/generation_config.json")));
    tp_tensor_release(wanted), tp_tensor_release(got), tp_tensor_release(plain);
    tp_adapter_destroy(adapter);
    tp_model_destroy(base);
    tp_model_destroy(merged);
}

Test(adapters, merged_weights_give_the_adapter_s_logits) {
    check_merge("mistral", "adapter-pattern", 1e-4);
}

Test(adapters, merging_tied_and_biased_models) {
    check_merge("llama-rope3", "adapter-all", 1e-4);
}

Test(adapters, merging_with_biases) {
    check_merge("llama-bias", "adapter-all", 1e-4);
}

/* bf16: one rounding of W + ΔW, by definition. */
Test(adapters, merging_rounds_once) {
    tp_model *base, *merged;
    tp_adapter *adapter;
    must(tp_model_load(&base, cpu, GOLDEN "llama-bf16", NULL));
    must(tp_adapter_load(&adapter, base, GOLDEN "llama-bf16/adapter-qv"));
    const tp_adapter_use use = {adapter, 1.0};
    const tp_model_save_options options = {sizeof options, false, TP_F32, &use, 1};
    must(tp_model_save(base, in_directory("merged"), &options));
    must(tp_model_load(&merged, cpu, in_directory("merged"), NULL));
    tp_adapter_module q;
    must(tp_adapter_get_module(adapter, 0, &q));
    int count;
    const tp_parameter *old = tp_model_parameters(base, &count), *new = tp_model_parameters(merged, &count);
    int changed = 0;
    for (int i = 0; i < count; i++) {
        cr_assert_eq(tp_tensor_dtype(old[i].tensor), tp_tensor_dtype(new[i].tensor), "%s", old[i].name);
        bool adapted = strstr(old[i].name, "q_proj") || strstr(old[i].name, "v_proj");
        cr_assert_eq(tensor_difference(old[i].tensor, new[i].tensor) > 0, adapted, "%s", old[i].name);
        changed += adapted;
        if (strncmp(old[i].name, q.path, strlen(q.path)) != 0) continue;
        float *w = read_f32(old[i].tensor), *sum = read_f32(new[i].tensor), *a = read_f32(q.a),
              *b = read_f32(q.b);
        int64_t rows = tp_tensor_size(q.b, 0), columns = tp_tensor_size(q.a, 1),
                rank = tp_tensor_size(q.a, 0);
        for (int64_t k = 0; k < rows * columns; k++) {
            double value = (double)w[k];
            for (int64_t r = 0; r < rank; r++)
                value += q.scaling * (double)b[k / columns * rank + r] * (double)a[r * columns + k % columns];
            cr_assert_float_eq((double)sum[k], value, fabs(value) / 256 + 1e-6,
                               "half a unit in the last place");
        }
        free(w), free(sum), free(a), free(b);
    }
    cr_assert_eq(changed, 4);
    tp_adapter_destroy(adapter);
    tp_model_destroy(base);
    tp_model_destroy(merged);
}

Test(adapters, saving_refuses) {
    tp_model *tied;
    tp_adapter *adapter;
    tp_adapter_options on_head = TP_ADAPTER_OPTIONS_INIT;
    const char *head = "lm_head";
    on_head.targets = &head;
    on_head.target_count = 1;
    must(tp_model_load(&tied, cpu, GOLDEN "llama", NULL));
    must(tp_adapter_create(&adapter, tied, &on_head));
    const tp_adapter_use use = {adapter, 1.0};
    tp_model_save_options options = {sizeof options, false, TP_F32, &use, 1};
    must_fail(tp_model_save(tied, in_directory("m"), &options), TP_EUNSUPPORTED, "lm_head");
    must_fail(tp_model_save(model, in_directory("m"), &options), TP_EINVAL, "another model");
    cr_assert_not(tpi_path_exists(in_directory("m")), "nothing was begun");
    must_fail(tp_model_save(tied, GOLDEN "llama", NULL), TP_EINVAL, "own directory");
    options = (tp_model_save_options){sizeof options, true, TP_I32, NULL, 0};
    must_fail(tp_model_save(tied, in_directory("m"), &options), TP_EDTYPE, "i32");
    must(tpi_dir_create(in_directory("m")));
    put_file(in_directory("m/model.safetensors.index.json"), "{}", 2);
    must_fail(tp_model_save(tied, in_directory("m"), NULL), TP_EINVAL, "sharded");
    tp_adapter_destroy(adapter);
    tp_model_destroy(tied);
}

Test(adapters, merging_gives_finite_weights) {
    tp_adapter *adapter;
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    tp_adapter_module module;
    must(tp_adapter_create(&adapter, model, &options));
    must(tp_adapter_get_module(adapter, 0, &module));
    const size_t count = (size_t)tp_tensor_count(module.b);
    float *ones = malloc(count * sizeof *ones);
    for (size_t i = 0; i < count; i++) ones[i] = 1;
    must(tp_tensor_write(module.b, ones, count * sizeof *ones));
    free(ones);
    const tp_adapter_use use = {adapter, 1e12};
    tp_model_save_options half = {sizeof half, true, TP_F16, &use, 1};
    must_fail(tp_model_save(model, in_directory("m"), &half), TP_ENONFINITE, "as f16");
    cr_expect_not(tpi_path_exists(in_directory("m/model.safetensors")));
    half.dtype = TP_F32;
    must(tp_model_save(model, in_directory("m"), &half));
    tp_adapter_destroy(adapter);
}

Test(adapters, saving_converts) {
    tp_model *narrow;
    const tp_model_save_options options = {sizeof options, true, TP_BF16, NULL, 0};
    must(tp_model_save(model, in_directory("m"), &options));
    must(tp_model_load(&narrow, cpu, in_directory("m"), NULL));
    int count;
    const tp_parameter *p = tp_model_parameters(narrow, &count);
    cr_assert_eq(tp_tensor_dtype(p[0].tensor), TP_BF16);
    tp_tensor *a = logits(model, NULL, 0), *b = logits(narrow, NULL, 0);
    cr_assert_lt(tensor_difference(a, b), 0.1);
    tp_tensor_release(a), tp_tensor_release(b);
    tpi_json_doc *doc;
    const char *text;
    must(tpi_json_load(in_directory("m/config.json"), &doc));
    must(tpi_json_get_string(tpi_json_root(doc), "dtype", &text));
    cr_assert_str_eq(text, "bfloat16");
    tpi_json_destroy(doc);
    tp_model_destroy(narrow);
}

/* ---- hostile models ---- */

/* A copy of the bias-free golden Mistral's tensors but for one, and perhaps a stranger. */
static const char *put_model(const char *leave_out, const tpi_st_tensor *stranger) {
    tpi_safetensors *st;
    must(tpi_safetensors_open(GOLDEN "mistral/model.safetensors", &st));
    tpi_st_tensor tensors[64];
    size_t count = 0;
    for (size_t i = 0; i < tpi_safetensors_count(st); i++) {
        const tpi_st_tensor *t = tpi_safetensors_at(st, i);
        if (!leave_out || strcmp(t->name, leave_out) != 0) tensors[count++] = *t;
    }
    if (stranger) tensors[count++] = *stranger;
    char *config;
    size_t size;
    must(tpi_file_read(GOLDEN "mistral/config.json", 1 << 20, &config, &size));
    must(tpi_dir_create(in_directory("model")));
    put_file(in_directory("model/config.json"), config, size);
    must(tpi_safetensors_write(in_directory("model/model.safetensors"), tensors, count, NULL, 0));
    tpi_free(config);
    tpi_safetensors_release(st);
    return in_directory("model");
}

Test(adapters, models_are_checked_against_their_configuration) {
    static const float zeros[24 * 24];
    static const int64_t wide[8];
    const char *norm = "model.norm.weight";
    tpi_st_tensor t = {.name = norm, .dtype = TPI_ST_F32, .rank = 1, .shape = {23}, .data = zeros};
    tp_model *bad;
    must_fail(tp_model_load(&bad, cpu, put_model(norm, NULL), NULL), TP_EFORMAT,
              "missing: model.norm.weight");
    must_fail(tp_model_load(&bad, cpu, put_model(norm, &t), NULL), TP_EFORMAT,
              "expected shape [24], got [23]");
    t.rank = 2;
    t.shape[0] = 1, t.shape[1] = 24;
    must_fail(tp_model_load(&bad, cpu, put_model(norm, &t), NULL), TP_EFORMAT, "got [1, 24]");
    t = (tpi_st_tensor){.name = "extra", .dtype = TPI_ST_F32, .rank = 1, .shape = {3}, .data = zeros};
    must_fail(tp_model_load(&bad, cpu, put_model(NULL, &t), NULL), TP_EFORMAT, "does not have: extra");
    t = (tpi_st_tensor){.name = "extra", .dtype = TPI_ST_I64, .rank = 1, .shape = {8}, .data = wide};
    t.name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    must(tp_model_load(&bad, cpu, put_model(NULL, &t), NULL));
    tp_model_destroy(bad);
    t = (tpi_st_tensor){.name = norm, .dtype = TPI_ST_F64, .rank = 1, .shape = {24}, .data = zeros};
    must_fail(tp_model_load(&bad, cpu, put_model(norm, &t), NULL), TP_EUNSUPPORTED, "F64");
    cr_assert_null(bad);
    must_fail(tp_model_load(&bad, cpu, in_directory("nowhere"), NULL), TP_EIO, "config.json");
}

/* One more space behind the header moves all data off its alignment. */
Test(adapters, unaligned_files_load_as_copies) {
    char *old;
    size_t size;
    uint64_t header;
    put_model(NULL, NULL);
    must(tpi_file_read(in_directory("model/model.safetensors"), 1 << 20, &old, &size));
    memcpy(&header, old, sizeof header);
    char *moved = malloc(size + 1);
    const uint64_t longer = header + 1;
    const size_t data = sizeof header + header;
    memcpy(moved, &longer, sizeof longer);
    memcpy(moved + sizeof header, old + sizeof header, header);
    moved[data] = ' ';
    memcpy(moved + data + 1, old + data, size - data);
    put_file(in_directory("model/model.safetensors"), moved, size + 1);
    tp_model *copied;
    must(tp_model_load(&copied, cpu, in_directory("model"), NULL));
    tp_tensor *a = logits(model, NULL, 0), *b = logits(copied, NULL, 0);
    cr_assert_eq(tensor_difference(a, b), 0);
    tp_tensor_release(a), tp_tensor_release(b);
    tp_model_destroy(copied);
    free(moved);
    tpi_free(old);
}

/* ---- faults ---- */

static tp_status load_make_save(void) {
    tp_model *m = NULL;
    tp_adapter *adapter = NULL, *fresh = NULL;
    tp_kv_cache *cache = NULL;
    tp_status status = tp_model_load(&m, cpu, GOLDEN "mistral", NULL);
    if (status == TP_OK) status = tp_adapter_load(&adapter, m, GOLDEN "mistral/adapter-pattern");
    if (status == TP_OK) status = tp_adapter_create(&fresh, m, NULL);
    if (status == TP_OK) status = tp_kv_cache_create(&cache, m, 1, 8);
    if (status == TP_OK) status = tp_adapter_save(adapter, in_directory("a"));
    tp_kv_cache_destroy(cache);
    tp_adapter_destroy(fresh);
    tp_adapter_destroy(adapter);
    tp_model_destroy(m);
    tp_context_trim(ctx);
    return status;
}

Test(adapters, every_allocation_may_fail) {
    sweep(load_make_save);
}

static tp_status merge_and_save(void) {
    tp_adapter *adapter;
    tp_status status = tp_adapter_load(&adapter, model, GOLDEN "mistral/adapter-pattern");
    if (status != TP_OK) return status;
    const tp_adapter_use use = {adapter, 1.0};
    const tp_model_save_options options = {sizeof options, false, TP_F32, &use, 1};
    status = tp_model_save(model, in_directory("merged"), &options);
    tp_adapter_destroy(adapter);
    tp_context_trim(ctx);
    return status;
}

Test(adapters, every_allocation_of_merging_may_fail) {
    sweep(merge_and_save);
    cr_assert_eq(entries(in_directory("merged")), 3, "weights, config.json, generation_config.json");
}
