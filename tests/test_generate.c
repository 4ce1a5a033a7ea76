/* Generation: sampling against a plain transcription of its definition, streaming, greedy continuations of
 * the golden models, the cache against the model without one, and every failing allocation. */
#include "core/alloc.h"
#include "generate/sampling.h"
#include "generate/stream.h"
#include "graph/context.h"
#include "io/safetensors.h"
#include "io/utf8.h"
#include "taper/adapter.h"
#include "taper/generate.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODELS       TAPER_TEST_DATA "/golden/models"
#define WICK         TAPER_TEST_DATA "/../models/taper-wick"
#define COUNT(array) (sizeof(array) / sizeof *(array))

#define OK(call) cr_assert_eq((call), TP_OK, "%s", tp_error_message())

/* --- Sampling --- */

#define VOCAB 12

/* Which tokens top-k, top-p and min-p leave, by their definitions: sort, cut, sum, cut. */
static void expected_support(const tp_generate_options *o, const float *logits, bool *kept) {
    int order[VOCAB];
    for (int i = 0; i < VOCAB; i++) {
        int at = i;
        while (at > 0 && logits[order[at - 1]] < logits[i]) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = i;
    }
    double p[VOCAB], total = 0, sum = 0;
    for (int n = 0; n < VOCAB; n++) {
        const bool in = o->top_k == 0 || n < o->top_k || logits[order[n]] == logits[order[o->top_k - 1]];
        p[n] = in ? exp((double)logits[order[n]] / o->temperature) : 0;
        total += p[n];
    }
    for (int n = 0; n < VOCAB; n++) {
        kept[order[n]] = p[n] > 0 && (n == 0 || (sum / total < o->top_p && p[n] >= o->min_p * p[0]));
        sum += p[n];
    }
}

static void check_support(const tp_generate_options *o, const float *logits) {
    bool kept[VOCAB], seen[VOCAB] = {false};
    expected_support(o, logits, kept);
    tpi_sampler sampler;
    OK(tpi_sampler_init(&sampler, o, VOCAB));
    for (int draw = 0; draw < 4000; draw++) {
        int32_t id;
        OK(tpi_sampler_next(&sampler, logits, &id));
        seen[id] = true;
    }
    tpi_sampler_clear(&sampler);
    for (int i = 0; i < VOCAB; i++)
        cr_expect_eq(seen[i], kept[i], "token %d: k %lld, p %g, min-p %g", i, (long long)o->top_k, o->top_p,
                     o->min_p);
}

Test(sampling, keeps_what_top_k_top_p_and_min_p_define) {
    static const float plain[VOCAB] = {1, -1, 2, 0.5f, 0, 1.5f, -0.5f, 0.25f, 1.75f, -0.25f, 0.75f, 1.25f};
    static const float ties[VOCAB] = {1, 1, 2, 0, 0, 1, 2, 0, 0, 1, 0, 1};
    static const struct {
        int64_t top_k;
        double top_p, min_p, temperature;
    } cases[] = {
        {0, 1, 0, 1},   {1, 1, 0, 1},       {3, 1, 0, 0.7},    {12, 1, 0, 1},     {50, 1, 0, 2},
        {0, 0.5, 0, 1}, {0, 0.01, 0, 1},    {0, 0.95, 0, 1.5}, {0, 1, 0.4, 1},    {0, 1, 1, 1},
        {5, 0.6, 0, 1}, {7, 0.9, 0.3, 0.8}, {4, 1, 0.5, 1},    {0, 0.8, 0.35, 1},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
        o.top_k = cases[i].top_k;
        o.top_p = cases[i].top_p;
        o.min_p = cases[i].min_p;
        o.temperature = cases[i].temperature;
        check_support(&o, plain);
        if (o.top_p == 1) check_support(&o, ties); /* where top-p cuts among equals is not defined */
    }
}

Test(sampling, draws_with_the_softmax_probabilities) {
    const float logits[] = {0, 1, 2};
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    o.temperature = 0.5;
    int counts[3] = {0};
    tpi_sampler sampler;
    OK(tpi_sampler_init(&sampler, &o, 3));
    for (int draw = 0; draw < 20000; draw++) {
        int32_t id;
        OK(tpi_sampler_next(&sampler, logits, &id));
        counts[id]++;
    }
    tpi_sampler_clear(&sampler);
    const double total = 1 + exp(2) + exp(4);
    for (int i = 0; i < 3; i++) cr_expect_float_eq(counts[i] / 20000.0, exp(2.0 * i) / total, 0.01);
}

static int32_t first_choice(const tp_generate_options *o, const float *logits, int32_t seen) {
    tpi_sampler sampler;
    int32_t id;
    OK(tpi_sampler_init(&sampler, o, VOCAB));
    if (seen >= 0) tpi_sampler_see(&sampler, seen);
    OK(tpi_sampler_next(&sampler, logits, &id));
    tpi_sampler_clear(&sampler);
    return id;
}

Test(sampling, greedy_takes_the_first_of_equals_and_penalises_what_was_seen) {
    const float logits[VOCAB] = {-4, -3, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0};
    const float negative[VOCAB] = {-4, -3, -9, -9, -9, -9, -9, -9, -9, -9, -9, -9};
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    cr_expect_eq(first_choice(&o, logits, -1), 3);
    cr_expect_eq(first_choice(&o, logits, 3), 3, "a penalty of 1 is none");
    o.repetition_penalty = 1.25;
    cr_expect_eq(first_choice(&o, logits, 3), 4, "3 / 1.25 < 3");
    cr_expect_eq(first_choice(&o, negative, 1), 1, "-3 * 1.25 > -4");
    o.repetition_penalty = 1.5;
    cr_expect_eq(first_choice(&o, negative, 1), 0, "-3 * 1.5 < -4");
}

Test(sampling, refuses_logits_that_are_no_numbers) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    for (size_t i = 0; i < COUNT(bad); i++) {
        tpi_sampler sampler;
        int32_t id;
        OK(tpi_sampler_init(&sampler, &o, 1));
        cr_expect_eq(tpi_sampler_next(&sampler, &bad[i], &id), TP_ENONFINITE);
        tpi_sampler_clear(&sampler);
    }
}

Test(sampling, names_the_option_out_of_range) {
#define REFUSES(field, value)                                                                                \
    do {                                                                                                     \
        tp_generate_options o = TP_GENERATE_OPTIONS_INIT;                                                    \
        o.field = (value);                                                                                   \
        cr_expect_eq(tpi_sampling_check(&o), TP_EINVAL, #field " " #value);                                  \
        cr_expect(strstr(tp_error_message(), #field " is"), "%s", tp_error_message());                       \
    } while (0)
    REFUSES(max_tokens, 0);
    REFUSES(temperature, -1);
    REFUSES(temperature, (double)NAN);
    REFUSES(top_k, -1);
    REFUSES(top_p, 0);
    REFUSES(top_p, 1.5);
    REFUSES(min_p, -0.1);
    REFUSES(min_p, (double)NAN);
    REFUSES(repetition_penalty, 0);
}

/* --- Streaming --- */

static tp_tokenizer *load_tokenizer(void) {
    tp_tokenizer *tokenizer;
    OK(tp_tokenizer_load(WICK, &tokenizer));
    return tokenizer;
}

/* Streams the tokens of `text`; checks each piece, returns them put together: since nothing is taken back,
 * what is equal at the end was never more. Owned. */
static char *stream_text(tp_tokenizer *tokenizer, const char *text, const char *const *stop, int stop_count) {
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    o.stop = stop;
    o.stop_count = stop_count;
    tpi_stream stream;
    OK(tpi_stream_init(&stream, tokenizer, &o));
    int32_t *ids;
    size_t count, length, total = 0;
    const char *piece;
    OK(tp_tokenizer_encode(tokenizer, text, strlen(text), false, &ids, &count));
    char *all = calloc(strlen(text) + 16, 1);
    for (size_t i = 0; i <= count && !stream.stopped; i++) {
        OK(i < count ? tpi_stream_push(&stream, ids[i], &piece, &length)
                     : tpi_stream_finish(&stream, &piece, &length));
        cr_assert_eq(tpi_utf8_valid(piece, length), length, "a piece splits a character");
        memcpy(all + total, piece, length);
        total += length;
    }
    tp_ids_free(ids);
    tpi_stream_clear(&stream);
    return all;
}

Test(stream, gives_whole_characters_and_all_of_the_text) {
    static const char text[] =
        "caf\xc3\xa9 \xe2\x82\xac 5 \xf0\x9f\x95\xaf\xef\xb8\x8f \xe6\x97\xa5\xe6\x9c\xac";
    tp_tokenizer *tokenizer = load_tokenizer();
    char *all = stream_text(tokenizer, text, NULL, 0);
    cr_expect_str_eq(all, text);
    free(all);
    tp_tokenizer_release(tokenizer);
}

Test(stream, never_shows_a_part_of_a_stop_text) {
    static const struct {
        const char *text, *stop[2], *shown;
    } cases[] = {
        {"one two three\n\nfour", {"\n\n", NULL}, "one two three"},
        {"one two three\nfour", {"\n\n", NULL}, "one two three\nfour"},
        {"one ##", {"###", NULL}, "one ##"},
        {"####! and", {"##!", NULL}, "##"},
        {"xaxaxb rest", {"xaxb", NULL}, "xa"},
        {"both #A# and @B@", {"@B@", "#A#"}, "both "},
        {"\xf0\x9f\x95\xaf and \xf0\x9f\x95\xaf\xf0\x9f\x95\xaf",
         {"\xf0\x9f\x95\xaf\xf0\x9f\x95\xaf", NULL},
         "\xf0\x9f\x95\xaf and "},
    };
    tp_tokenizer *tokenizer = load_tokenizer();
    for (size_t i = 0; i < COUNT(cases); i++) {
        char *all = stream_text(tokenizer, cases[i].text, cases[i].stop, cases[i].stop[1] ? 2 : 1);
        cr_expect_str_eq(all, cases[i].shown);
        free(all);
    }
    tp_tokenizer_release(tokenizer);
}

/* In SentencePiece's style the beginning of a text loses a blank; what continues a prompt is no beginning. */
Test(stream, keeps_the_blank_behind_a_prompt) {
    tp_tokenizer *tokenizer;
    OK(tp_tokenizer_load(TAPER_TEST_DATA "/golden/tokenizer/pieces-legacy", &tokenizer));
    for (int prompted = 0; prompted < 2; prompted++) {
        tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
        tpi_stream stream;
        int32_t *prompt, *ids;
        size_t prompt_count, count, length;
        const char *piece;
        OK(tp_tokenizer_encode(tokenizer, "The lamp", prompted ? 8 : 0, true, &prompt, &prompt_count));
        OK(tp_tokenizer_encode(tokenizer, "was", 3, false, &ids, &count));
        OK(tpi_stream_init(&stream, tokenizer, &o));
        OK(tpi_stream_continue(&stream, prompt, prompt_count));
        OK(tpi_stream_push(&stream, ids[0], &piece, &length));
        cr_assert_gt(length, 0);
        cr_expect_eq(piece[0] == ' ', prompted);
        tpi_stream_clear(&stream);
        tp_ids_free(prompt);
        tp_ids_free(ids);
    }
    tp_tokenizer_release(tokenizer);
}

Test(stream, refuses_stop_texts_that_cannot_be_met) {
    static const char *const bad[] = {"", "\xa9", "a\xff"};
    tp_tokenizer *tokenizer = load_tokenizer();
    for (size_t i = 0; i < COUNT(bad); i++) {
        tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
        o.stop = &bad[i];
        o.stop_count = 1;
        tpi_stream stream;
        cr_expect_eq(tpi_stream_init(&stream, tokenizer, &o), TP_EINVAL);
        tpi_stream_clear(&stream);
    }
    tp_tokenizer_release(tokenizer);
}

/* --- Models --- */

static tp_context *context;

static void setup(void) {
    OK(tp_context_create(&context, NULL));
}

static void teardown(void) {
    tp_context_destroy(context);
}

TestSuite(generate, .init = setup, .fini = teardown);

typedef struct tokens {
    int32_t ids[512];
    int count;
    int wanted; /* the callback returns false when it has so many; 0: never */
    char text[8192];
    size_t length;
} tokens;

static bool collect(void *user, int32_t id, const char *text, size_t length) {
    tokens *t = user;
    cr_assert_eq(tpi_utf8_valid(text, length), length);
    if (id >= 0) t->ids[t->count++] = id;
    memcpy(t->text + t->length, text, length);
    t->length += length;
    return t->wanted == 0 || t->count < t->wanted;
}

static const int32_t *golden_ids(tpi_safetensors *st, const char *name, size_t *count) {
    const tpi_st_tensor *tensor;
    OK(tpi_safetensors_get(st, name, &tensor));
    cr_assert_eq(tensor->dtype, TPI_ST_I32);
    *count = tensor->bytes / 4;
    return tensor->data;
}

static void check_greedy(const tp_model *model, const tp_adapter_use *use, tpi_safetensors *golden,
                         const char *name) {
    size_t prompt_count, expected_count;
    const int32_t *prompt = golden_ids(golden, "greedy.prompt", &prompt_count);
    const int32_t *expected = golden_ids(golden, name, &expected_count);
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    o.max_tokens = (int64_t)expected_count;
    tp_generator *generator;
    OK(tp_generator_create(&generator, model, NULL, use, use ? 1 : 0));
    for (int round = 0; round < 2; round++) { /* the second finds the first's cache and plans */
        tokens got = {.count = 0};
        tp_generate_stats stats;
        OK(tp_generate_ids(generator, prompt, prompt_count, &o, collect, &got, &stats));
        cr_expect_eq(stats.end, TP_END_LENGTH);
        cr_expect_eq(stats.prompt_tokens, (int64_t)prompt_count);
        cr_expect_eq(stats.tokens, (int64_t)expected_count);
        cr_assert_eq(got.count, (int)expected_count);
        for (int i = 0; i < got.count; i++) cr_assert_eq(got.ids[i], expected[i], "%s: token %d", name, i);
    }
    tp_generator_destroy(generator);
}

/* The golden tokens are those of f32 activations: rounding may turn the order of two logits. */
static void check_model(const char *name, const char *adapter_name) {
    char path[512], tensor[64];
    tp_device *cpu = tp_device_cpu(context);
    tp_model_options options = TP_MODEL_OPTIONS_INIT;
    if (tpi_device_multiplies(cpu, TP_BF16)) options.dtype = TP_BASE_F32;
    tp_model *model;
    tp_adapter *adapter;
    tpi_safetensors *golden;
    snprintf(path, sizeof path, "%s/%s", MODELS, name);
    OK(tp_model_load(&model, cpu, path, &options));
    snprintf(path, sizeof path, "%s/%s/golden.safetensors", MODELS, name);
    OK(tpi_safetensors_open(path, &golden));
    check_greedy(model, NULL, golden, "greedy.tokens");
    snprintf(path, sizeof path, "%s/%s/%s", MODELS, name, adapter_name);
    OK(tp_adapter_load(&adapter, model, path));
    snprintf(tensor, sizeof tensor, "%s.greedy.tokens", adapter_name);
    check_greedy(model, &(tp_adapter_use){adapter, 1.0}, golden, tensor);
    check_greedy(model, &(tp_adapter_use){adapter, 0.0}, golden, "greedy.tokens");
    tpi_safetensors_release(golden);
    tp_adapter_destroy(adapter);
    tp_model_destroy(model);
}

Test(generate, greedy_tokens_equal_the_golden_ones) {
    static const char *const models[][2] = {
        {"llama", "adapter-qv"},      {"llama-rope3", "adapter-all"}, {"llama-bias", "adapter-all"},
        {"llama-bf16", "adapter-qv"}, {"mistral", "adapter-pattern"}, {"qwen2", "adapter-qv"},
        {"qwen3", "adapter-all"},
    };
    for (size_t i = 0; i < COUNT(models); i++) check_model(models[i][0], models[i][1]);
}

static tp_model *load_llama(void) {
    tp_model *model;
    OK(tp_model_load(&model, tp_device_cpu(context), MODELS "/llama", NULL));
    return model;
}

/* The greedy choice after ids, from one forward pass without a cache. */
static int32_t choose_without_cache(const tp_model *model, const int32_t *ids, int count) {
    tp_graph *graph;
    OK(tp_graph_create(&graph, context));
    tp_forward f = TP_FORWARD_INIT;
    f.tokens = tp_lazy_from_slice(graph, tp_device_cpu(context), TP_I32, 2, (int64_t[]){1, count}, ids);
    tp_tensor *logits;
    OK(tp_lazy_eval(tp_model_forward_lazy(model, &f), &logits));
    const int64_t vocab = tp_tensor_size(logits, -1);
    const float *last = (const float *)tp_tensor_data(logits) + (count - 1) * vocab;
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (last[i] > last[best]) best = i;
    tp_tensor_release(logits);
    tp_graph_destroy(graph);
    return best;
}

Test(generate, cache_changes_nothing_over_chunks_and_growth) {
    static const int prompts[] = {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 300};
    tp_model *model = load_llama();
    tp_generator *generator;
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    o.max_tokens = 4;
    o.ignore_stop_ids = true;
    for (size_t p = 0; p < COUNT(prompts); p++) {
        int32_t ids[320];
        int n = prompts[p];
        for (int i = 0; i < n; i++) ids[i] = (int32_t)((i * 31 + 7 * (i / 5)) % 97);
        tokens got = {.count = 0};
        OK(tp_generator_create(&generator, model, NULL, NULL, 0));
        OK(tp_generate_ids(generator, ids, (size_t)n, &o, collect, &got, NULL));
        tp_generator_destroy(generator);
        for (int i = 0; i < got.count; i++) {
            cr_expect_eq(got.ids[i], choose_without_cache(model, ids, n), "prompt of %d, token %d",
                         prompts[p], i);
            ids[n++] = got.ids[i];
        }
        cr_expect_eq(got.count, 4);
    }
    tp_model_destroy(model);
}

Test(generate, draws_follow_the_seed) {
    const int32_t prompt[] = {5, 6, 7};
    tp_model *model = load_llama();
    tp_generator *generator;
    OK(tp_generator_create(&generator, model, NULL, NULL, 0));
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    o.temperature = 1.5;
    o.max_tokens = 24;
    o.ignore_stop_ids = true;
    tokens got[3] = {{.count = 0}};
    for (int i = 0; i < 3; i++) {
        o.seed = i == 2;
        OK(tp_generate_ids(generator, prompt, 3, &o, collect, &got[i], NULL));
    }
    cr_expect_arr_eq(got[0].ids, got[1].ids, 24 * sizeof(int32_t));
    cr_expect_arr_neq(got[0].ids, got[2].ids, 24 * sizeof(int32_t));
    tp_generator_destroy(generator);
    tp_model_destroy(model);
}

/* A model of random weights with the vocabulary of taper-wick: its text is noise, in valid UTF-8. */
Test(generate, text_ends_at_tokens_stops_and_the_callers_wish) {
    tp_model *model;
    tp_generator *generator;
    tp_generate_stats stats;
    tp_tokenizer *tokenizer = load_tokenizer();
    OK(tp_model_create_random(&model, tp_device_cpu(context), WICK, 3));
    OK(tp_generator_create(&generator, model, tokenizer, NULL, 0));
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    o.temperature = 1;
    o.max_tokens = 40;
    o.ignore_stop_ids = true;
    tokens all = {.count = 0};
    OK(tp_generate(generator, "Modern: a\n", 10, &o, collect, &all, &stats));
    cr_expect_eq(all.count, 40);
    cr_expect_eq(stats.end, TP_END_LENGTH);
    char *text;
    size_t length;
    OK(tp_tokenizer_decode(tokenizer, all.ids, 40, true, &text, &length));
    cr_expect_eq(length, all.length);
    cr_expect_arr_eq(text, all.text, length);
    tp_text_free(text);

    char stop[16] = {0};
    size_t from = all.length / 2;
    while (((unsigned char)all.text[from] & 0xc0) == 0x80) from++;
    size_t to = from + 1;
    while (to < from + 8 || ((unsigned char)all.text[to] & 0xc0) == 0x80) to++;
    memcpy(stop, all.text + from, to - from);
    const char *const stops[] = {stop};
    o.stop = stops;
    o.stop_count = 1;
    tokens part = {.count = 0};
    OK(tp_generate(generator, "Modern: a\n", 10, &o, collect, &part, &stats));
    cr_expect_eq(stats.end, TP_END_STOP);
    char *first = memmem(all.text, all.length, stop, strlen(stop));
    cr_expect_eq(part.length, (size_t)(first - all.text));
    cr_expect_arr_eq(part.text, all.text, part.length);

    tokens few = {.count = 0, .wanted = 5};
    OK(tp_generate(generator, "Modern: a\n", 10, &o, collect, &few, &stats));
    cr_expect_eq(few.count, 5);
    cr_expect_eq(stats.end, TP_END_CALLBACK);
    tp_generator_destroy(generator);
    tp_model_destroy(model);
    tp_tokenizer_release(tokenizer);
}

Test(generate, refuses_bad_prompts) {
    const int32_t bad[] = {3, 97}, good[] = {3};
    static const char *const stops[] = {"x"};
    tp_model *model = load_llama();
    tp_generator *generator;
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    OK(tp_generator_create(&generator, model, NULL, NULL, 0));
    cr_expect_eq(tp_generate_ids(generator, bad, 2, &o, NULL, NULL, NULL), TP_EINVAL);
    cr_expect(strstr(tp_error_message(), "token 1 of the prompt is 97"), "%s", tp_error_message());
    cr_expect_eq(tp_generate_ids(generator, bad, 0, &o, NULL, NULL, NULL), TP_EINVAL);
    cr_expect_eq(tp_generate(generator, "x", 1, &o, NULL, NULL, NULL), TP_EINVAL);
    o.stop = stops;
    o.stop_count = 1;
    cr_expect_eq(tp_generate_ids(generator, good, 1, &o, NULL, NULL, NULL), TP_EINVAL);
    o.size = 8;
    cr_expect_eq(tp_generate_ids(generator, good, 1, &o, NULL, NULL, NULL), TP_EINVAL);
    tp_generator_destroy(generator);
    tp_generator_destroy(NULL);
    tp_model_destroy(model);
}

static tp_status create_and_generate(const tp_model *model, const int32_t *prompt, size_t count) {
    tp_generate_options o = TP_GENERATE_OPTIONS_INIT;
    o.max_tokens = 4;
    tp_generator *generator;
    tp_status status = tp_generator_create(&generator, model, NULL, NULL, 0);
    if (status == TP_OK) status = tp_generate_ids(generator, prompt, count, &o, NULL, NULL, NULL);
    tp_generator_destroy(generator);
    return status;
}

/* From the n-th failing allocation to the first n that none reaches; a prompt of 62 makes the cache grow. */
Test(generate, survives_every_failing_allocation) {
    int32_t prompt[62];
    for (int i = 0; i < 62; i++) prompt[i] = i;
    tp_model *model = load_llama();
    OK(create_and_generate(model, prompt, COUNT(prompt))); /* plans are cached from here on */
    int64_t n = 1;
    for (tp_status status = TP_ENOMEM; status != TP_OK; n++) {
        cr_assert_lt(n, 100000);
        const int64_t live = tpi_alloc_live();
        tpi_alloc_fail_at(n);
        status = create_and_generate(model, prompt, COUNT(prompt));
        tpi_alloc_fail_at(0);
        cr_assert(status == TP_OK || status == TP_ENOMEM, "allocation %lld: %s", (long long)n,
                  tp_error_message());
        cr_assert_leq(tpi_alloc_live(), live, "allocation %lld leaks", (long long)n);
    }
    cr_expect_gt(n, 10);
    tp_model_destroy(model);
}
