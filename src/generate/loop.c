/* The loop: the prompt in chunks, then one row of the model a token.
 *
 * The trick is that few plans serve all of it. A chunk is padded to a power of two; its padding writes keys
 * and values that no earlier position sees and that later tokens overwrite. The cache's capacity is a power
 * of two as well and doubles when it is full. What changes from row to row is in three small tensors,
 * so the pass over one token is a program, recorded once for a cache.
 *
 * A greedy choice is a part of the pass and becomes the next pass's token where it is made. So a device that
 * works by itself gets the next pass before the host has read the choice, and waits for nobody; a text that
 * ends by its own leaves one pass that nobody reads. */
#include "generate/sampling.h"
#include "generate/stream.h"
#include "taper/ops.h"
#include "taper/program.h"
#include "tokenizer/tokenizer.h"

#include "core/alloc.h"
#include "core/device.h"
#include "core/error.h"

#include <string.h>
#include <time.h>

#define LONGEST_CHUNK  2048 /* on a device that rereads its weights for every chunk */
#define HOST_CHUNK     256  /* on the host, whose caches hold a chunk's activations; most that is padded */
#define SHORTEST_CHUNK 16   /* on a device, whose products have tiles of so many rows */
#define LEAST_CAPACITY 64

struct tp_generator {
    const tp_model *model;    /* borrowed */
    tp_tokenizer *tokenizer;  /* retained; NULL */
    tp_adapter_use *adapters; /* owned array */
    int adapter_count;
    int64_t vocab;
    tp_graph *graph;
    tp_kv_cache *cache;     /* NULL before the first prompt */
    tp_tensor *token;       /* i32 [1, 1]: the next pass's, state that a greedy pass assigns */
    tp_tensor *start, *row; /* i32 [1] */
    tp_program *steps[2]; /* a pass over `token`, with this cache; [1] is the greedy one; NULL until needed */
    float *scores;        /* the logits of one position, on the host */
};

/* What a pass leaves of its last position, owned: the logits, f32, vocab elements; or, where the choice is
 * greedy, the likeliest, i32 [1], and its logit [1]. */
enum { LOGITS = 0, LIKELIEST = 0, TOP = 1, OUTCOMES = 2 };
typedef struct outcome {
    tp_tensor *of[OUTCOMES];
} outcome;

/* One generation. */
typedef struct run {
    tp_generator *generator;
    tp_generate_options options;
    tp_generate_fn callback;
    void *user;
    tpi_sampler sampler;
    tpi_stream stream;
    bool greedy;      /* the pass chooses */
    bool ahead;       /* the next pass begins before the choice is read */
    outcome outcome;  /* of the last pass */
    int64_t position; /* tokens in the cache */
    int64_t tokens;
    tp_generate_end end;
} run;

/* ---- creation ---- */

static tp_status make_inputs(tp_generator *g) {
    tp_device *device = tp_model_device(g->model);
    const int64_t ones[] = {1, 1};
    TPI_TRY(tp_tensor_zeros(device, TP_I32, 2, ones, &g->token));
    TPI_TRY(tp_tensor_zeros(device, TP_I32, 1, ones, &g->start));
    TPI_TRY(tp_tensor_zeros(device, TP_I32, 1, ones, &g->row));
    if (!(g->scores = tpi_calloc((size_t)g->vocab, sizeof *g->scores))) return TP_ENOMEM;
    return tp_graph_create(&g->graph, tp_device_context(device));
}

static tp_status copy_adapters(tp_generator *g, const tp_adapter_use *adapters, int count) {
    g->adapters = tpi_calloc((size_t)count, sizeof *adapters);
    if (!g->adapters) return TP_ENOMEM;
    if (count > 0) memcpy(g->adapters, adapters, (size_t)count * sizeof *adapters);
    g->adapter_count = count;
    return TP_OK;
}

tp_status tp_generator_create(tp_generator **out, const tp_model *model, tp_tokenizer *tokenizer,
                              const tp_adapter_use *adapters, int adapter_count) {
    *out = NULL;
    if (adapter_count < 0 || (adapter_count > 0 && !adapters))
        return tpi_fail(TP_EINVAL, "generator: adapters is NULL or their count negative (%d)", adapter_count);
    tp_generator *g = tpi_calloc(1, sizeof *g);
    if (!g) return TP_ENOMEM;
    tp_model_info info;
    tp_model_get_info(model, &info);
    g->model = model;
    g->vocab = info.vocab_size;
    g->tokenizer = tokenizer ? tp_tokenizer_retain(tokenizer) : NULL;
    tp_status status = copy_adapters(g, adapters, adapter_count);
    if (status == TP_OK) status = make_inputs(g);
    if (status == TP_OK)
        *out = g;
    else
        tp_generator_destroy(g);
    return status;
}

static void forget_steps(tp_generator *g) {
    for (int i = 0; i < 2; i++) {
        tp_program_destroy(g->steps[i]);
        g->steps[i] = NULL;
    }
}

void tp_generator_destroy(tp_generator *g) {
    if (!g) return;
    forget_steps(g);
    tp_graph_destroy(g->graph);
    tp_kv_cache_destroy(g->cache);
    tp_tensor_release(g->token);
    tp_tensor_release(g->start);
    tp_tensor_release(g->row);
    tp_tokenizer_release(g->tokenizer);
    tpi_free(g->scores);
    tpi_free(g->adapters);
    tpi_free(g);
}

/* ---- the cache ---- */

static int64_t double_until(int64_t least, int64_t n) {
    while (least < n) least *= 2;
    return least;
}

/* Records that the beginning of `to` becomes `from`. */
static tp_lazy *record_copy(tp_graph *graph, tp_tensor *from, tp_tensor *to) {
    const int64_t more = tp_tensor_size(to, 1) - tp_tensor_size(from, 1);
    return tp_lazy_assign(tp_lazy_from_tensor(graph, to),
                          tp_lazy_pad(tp_lazy_from_tensor(graph, from), 1, 0, more));
}

static tp_status copy_cache(tp_generator *g, const tp_kv_cache *from, const tp_kv_cache *to) {
    tp_graph_reset(g->graph);
    tp_lazy *last = NULL;
    for (int64_t layer = 0; tp_kv_cache_keys(from, layer); layer++) {
        record_copy(g->graph, tp_kv_cache_keys(from, layer), tp_kv_cache_keys(to, layer));
        last = record_copy(g->graph, tp_kv_cache_values(from, layer), tp_kv_cache_values(to, layer));
    }
    TPI_TRY(tp_graph_eval(g->graph, &last, 1, NULL));
    tp_graph_reset(g->graph);
    return TP_OK;
}

/* Makes room for `wanted` positions, of which the cache holds `position` now. */
static tp_status reserve(tp_generator *g, int64_t position, int64_t wanted) {
    const int64_t old = g->cache ? tp_kv_cache_capacity(g->cache) : LEAST_CAPACITY;
    if (g->cache && wanted <= old) return TP_OK;
    tp_kv_cache *cache;
    TPI_TRY(tp_kv_cache_create(&cache, g->model, 1, double_until(old, wanted)));
    tp_status status = position > 0 ? copy_cache(g, g->cache, cache) : TP_OK;
    if (status != TP_OK) {
        tp_kv_cache_destroy(cache);
        return status;
    }
    tp_graph_reset(g->graph);
    forget_steps(g);
    tp_kv_cache_destroy(g->cache);
    g->cache = cache;
    return TP_OK;
}

/* ---- the model ---- */

static void release_outcome(outcome *o) {
    for (int i = 0; i < OUTCOMES; i++) tp_tensor_release(o->of[i]);
    *o = (outcome){0};
}

/* Records the pass over tokens i32 [1, T]; the logits are those of row `g->row`, or of the only one. Returns
 * how many outputs tell of its outcome. */
static int record_pass(run *r, tp_tensor *tokens, tp_lazy *outputs[OUTCOMES]) {
    const tp_generator *g = r->generator;
    tp_forward f = TP_FORWARD_INIT;
    f.tokens = tp_lazy_from_tensor(g->graph, tokens);
    f.start = tp_lazy_from_tensor(g->graph, g->start);
    f.rows = tp_tensor_size(tokens, 1) > 1 ? tp_lazy_from_tensor(g->graph, g->row) : NULL;
    f.cache = g->cache;
    f.adapters = g->adapters;
    f.adapter_count = g->adapter_count;
    tp_lazy *logits = tp_lazy_reshape(tp_model_forward_lazy(g->model, &f), 1, &g->vocab);
    if (!r->greedy) {
        outputs[LOGITS] = tp_lazy_cast(logits, TP_F32);
        return 1;
    }
    outputs[LIKELIEST] = tp_lazy_argmax(logits, 0, true);
    outputs[TOP] = tp_lazy_max(logits, 0, true);
    tp_lazy_assign(tp_lazy_from_tensor(g->graph, g->token),
                   tp_lazy_reshape(outputs[LIKELIEST], 2, (int64_t[]){1, 1}));
    return 2;
}

/* What comes before a pass. */
static tp_status begin_pass(run *r) {
    const int32_t start = (int32_t)r->position;
    release_outcome(&r->outcome);
    return tp_tensor_write(r->generator->start, &start, sizeof start);
}

/* A pass of its own over a part of the prompt. */
static tp_status run_pass(run *r, tp_tensor *tokens) {
    tp_graph *graph = r->generator->graph;
    tp_lazy *outputs[OUTCOMES];
    TPI_TRY(begin_pass(r));
    tp_graph_reset(graph);
    const int count = record_pass(r, tokens, outputs);
    tp_status status = tp_graph_eval(graph, outputs, count, r->outcome.of);
    tp_graph_reset(graph);
    return status;
}

/* The pass over the token that g->token holds. It is recorded once for a cache. */
static tp_status run_step(run *r) {
    tp_generator *g = r->generator;
    tp_program **step = &g->steps[r->greedy];
    TPI_TRY(begin_pass(r));
    if (!*step) {
        tp_lazy *outputs[OUTCOMES];
        tp_graph_reset(g->graph);
        const int count = record_pass(r, g->token, outputs);
        tp_status status = tp_program_create(step, g->graph, outputs, count);
        tp_graph_reset(g->graph);
        TPI_TRY(status);
    }
    return tp_program_run(*step, r->outcome.of);
}

/* A chunk's rows. The host's products take longer with each row, so few stay few there. */
static int64_t padded_length(const tp_generator *g, int64_t count) {
    if (count == 1) return 1;
    return double_until(tpi_is_host(tp_model_device(g->model)) ? 1 : SHORTEST_CHUNK, count);
}

/* Tokens of the prompt, padded. */
static tp_status read_chunk(run *r, const int32_t *ids, int64_t count) {
    tp_generator *g = r->generator;
    int32_t padded[LONGEST_CHUNK] = {0};
    const int32_t row = (int32_t)count - 1;
    memcpy(padded, ids, (size_t)count * sizeof *ids);
    const int64_t shape[] = {1, padded_length(g, count)};
    TPI_TRY(reserve(g, r->position, r->position + shape[1]));
    TPI_TRY(tp_tensor_write(g->row, &row, sizeof row));
    tp_tensor *tokens;
    TPI_TRY(tp_tensor_from_data(tp_model_device(g->model), TP_I32, 2, shape, padded, &tokens));
    tp_status status = run_pass(r, tokens);
    tp_tensor_release(tokens);
    r->position += count;
    return status;
}

/* The next chunk of `left` tokens: as long as may be without padding, the last few padded. */
static int64_t chunk_of(const tp_generator *g, int64_t left) {
    const int64_t longest = tpi_is_host(tp_model_device(g->model)) ? HOST_CHUNK : LONGEST_CHUNK;
    int64_t chunk = HOST_CHUNK;
    if (left < chunk) return left;
    while (chunk < longest && 2 * chunk <= left) chunk *= 2;
    return chunk;
}

static tp_status read_prompt(run *r, const int32_t *ids, size_t count) {
    for (size_t at = 0; at < count;) {
        const int64_t chunk = chunk_of(r->generator, (int64_t)(count - at));
        TPI_TRY(read_chunk(r, ids + at, chunk));
        at += (size_t)chunk;
    }
    return TP_OK;
}

/* The token that g->token holds. */
static tp_status read_token(run *r) {
    TPI_TRY(reserve(r->generator, r->position, r->position + 1));
    TPI_TRY(run_step(r));
    r->position++;
    return TP_OK;
}

/* The token that a pass led to. One that the host draws becomes the next pass's. */
static tp_status choose(run *r, const outcome *o, int32_t *id) {
    tp_generator *g = r->generator;
    float top;
    if (!r->greedy) {
        TPI_TRY(tp_tensor_read(o->of[LOGITS], TP_F32, g->scores, (size_t)g->vocab * sizeof(float)));
        TPI_TRY(tpi_sampler_next(&r->sampler, g->scores, id));
        return tp_tensor_write(g->token, id, sizeof *id);
    }
    TPI_TRY(tp_tensor_read(o->of[LIKELIEST], TP_I32, id, sizeof *id));
    TPI_TRY(tp_tensor_read(o->of[TOP], TP_F32, &top, sizeof top));
    return tpi_sampler_see_choice(&r->sampler, *id, top);
}

/* ---- the loop ---- */

static bool ends_text(const run *r, int32_t id) {
    int count;
    const int32_t *stops = tp_model_stop_ids(r->generator->model, &count);
    for (int i = 0; i < count && !r->options.ignore_stop_ids; i++)
        if (stops[i] == id) return true;
    return false;
}

/* False: the callback wants no more. */
static bool give(run *r, int32_t id, const char *text, size_t length) {
    return !r->callback || r->callback(r->user, id, text, length);
}

/* The next token, with the pass behind it begun where that goes ahead. */
static tp_status next_token(run *r, int32_t *id) {
    outcome now = r->outcome;
    tp_status status = TP_OK;
    r->outcome = (outcome){0};
    if (r->ahead && r->tokens + 1 < r->options.max_tokens) status = read_token(r);
    if (status == TP_OK) status = choose(r, &now, id);
    release_outcome(&now);
    return status;
}

/* Chooses tokens until one of the ends; r->end says which. */
static tp_status generate_tokens(run *r) {
    const char *text;
    size_t length;
    int32_t id;
    for (r->end = TP_END_LENGTH; r->tokens < r->options.max_tokens;) {
        TPI_TRY(next_token(r, &id));
        if (ends_text(r, id)) {
            r->end = TP_END_TOKEN;
            return TP_OK;
        }
        r->tokens++;
        TPI_TRY(tpi_stream_push(&r->stream, id, &text, &length));
        if (!give(r, id, text, length)) {
            r->end = TP_END_CALLBACK;
            return TP_OK;
        }
        if (r->stream.stopped) {
            r->end = TP_END_STOP;
            return TP_OK;
        }
        if (!r->ahead && r->tokens < r->options.max_tokens) TPI_TRY(read_token(r));
    }
    return TP_OK;
}

/* What was held back, where the text ended by itself. */
static tp_status finish(run *r) {
    const char *text;
    size_t length;
    if (r->end == TP_END_CALLBACK) return TP_OK;
    TPI_TRY(tpi_stream_finish(&r->stream, &text, &length));
    if (r->stream.stopped) r->end = TP_END_STOP;
    if (length > 0 && !give(r, -1, text, length)) r->end = TP_END_CALLBACK;
    return TP_OK;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static tp_status run_generation(run *r, const int32_t *ids, size_t count, tp_generate_stats *stats) {
    const double began = now();
    TPI_TRY(read_prompt(r, ids, count));
    TPI_TRY(
        tp_device_synchronize(tp_model_device(r->generator->model))); /* so that its time is the prompt's */
    const double read = now();
    TPI_TRY(generate_tokens(r));
    TPI_TRY(finish(r));
    if (stats) *stats = (tp_generate_stats){(int64_t)count, r->tokens, read - began, now() - read, r->end};
    return TP_OK;
}

static tp_status check_ids(const tp_generator *g, const int32_t *ids, size_t count) {
    if (count == 0) return tpi_fail(TP_EINVAL, "generate: the prompt has no tokens");
    if (count > INT32_MAX / 2)
        return tpi_fail(TP_EINVAL, "generate: a prompt of %zu tokens is too long", count);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= g->vocab)
            return tpi_fail(TP_EINVAL, "generate: token %zu of the prompt is %d, expected 0 to %lld", i,
                            (int)ids[i], (long long)g->vocab - 1);
    return TP_OK;
}

tp_status tp_generate_ids(tp_generator *g, const int32_t *ids, size_t count,
                          const tp_generate_options *options, tp_generate_fn callback, void *user,
                          tp_generate_stats *stats) {
    const tp_generate_options defaults = TP_GENERATE_OPTIONS_INIT;
    run r = {.generator = g, .options = options ? *options : defaults, .callback = callback, .user = user};
    TPI_TRY(tpi_sampling_check(&r.options));
    TPI_TRY(check_ids(g, ids, count));
    r.greedy = r.options.temperature == 0 && r.options.repetition_penalty == 1;
    r.ahead = r.greedy && !tpi_is_host(tp_model_device(g->model));
    tp_status status = tpi_stream_init(&r.stream, g->tokenizer, &r.options);
    if (status == TP_OK) status = tpi_stream_continue(&r.stream, ids, count);
    if (status == TP_OK) status = tpi_sampler_init(&r.sampler, &r.options, g->vocab);
    for (size_t i = 0; status == TP_OK && i < count; i++) tpi_sampler_see(&r.sampler, ids[i]);
    if (status == TP_OK) status = run_generation(&r, ids, count, stats);
    release_outcome(&r.outcome);
    tpi_sampler_clear(&r.sampler);
    tpi_stream_clear(&r.stream);
    return status;
}

tp_status tp_generate(tp_generator *g, const char *prompt, size_t length, const tp_generate_options *options,
                      tp_generate_fn callback, void *user, tp_generate_stats *stats) {
    if (!g->tokenizer)
        return tpi_fail(TP_EINVAL,
                        "generate: a prompt of text needs a tokenizer, and the generator has none");
    int32_t *ids;
    size_t count, begin;
    TPI_TRY(tpi_tokenizer_encode_start(g->tokenizer, prompt, length, &ids, &count, &begin));
    tp_status status = tp_generate_ids(g, ids, count, options, callback, user, stats);
    tp_ids_free(ids);
    return status;
}
