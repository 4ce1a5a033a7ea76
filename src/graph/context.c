/* Making a context: options, environment, devices. */
#include "graph/context.h"
#include "backend/backend.h"
#include "core/affinity.h"
#include "core/alloc.h"
#include "core/error.h"
#include "graph/run.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_BYTES ((uint64_t)64 << 20)

/* Parts of a job where results may not depend on the number of threads. More parts keep more threads busy,
 * and cost each kernel more scratch and more sums to join; 16 fall evenly on 1, 2, 4, 8 and 16 threads. */
#define DETERMINISTIC_PARTS 16

void tpi_log(tp_context *ctx, tp_log_level level, const char *format, ...) {
    if (!ctx->log) return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    ctx->log(ctx->log_user, level, line);
}

/* ---- options ---- */

/* Calls `apply` for each word of a list "a,-b"; an unknown word is an error that lists the known ones. */
static tp_status each_word(const char *what, const char *list, const char *const *names, int n_names,
                           void (*apply)(tp_context *, int index, bool off), tp_context *ctx) {
    for (const char *word = list; word && *word;) {
        size_t length = strcspn(word, ",");
        bool off = *word == '-';
        int found = -1;
        for (int i = 0; i < n_names; i++)
            if (strlen(names[i]) == length - off && strncmp(word + off, names[i], length - off) == 0)
                found = i;
        if (found < 0 && length > 0) {
            char known[256] = "";
            for (int i = 0; i < n_names; i++)
                snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                         names[i]);
            return tpi_fail(TP_EINVAL, "%s: '%.*s' is not known; there are %s", what, (int)length, word,
                            known);
        }
        if (found >= 0) apply(ctx, found, off);
        word += length + (word[length] == ',');
    }
    return TP_OK;
}

static void apply_fusion(tp_context *ctx, int index, bool off) {
    if (off)
        ctx->fusions &= ~(1u << index);
    else
        ctx->fusions |= 1u << index;
}

static void apply_topic(tp_context *ctx, int index, bool off) {
    if (!off) ctx->topics |= 1u << index;
}

static bool is_on(const char *variable) {
    const char *value = getenv(variable);
    return value && strcmp(value, "1") == 0;
}

static tp_status apply_options(tp_context *ctx, const tp_context_options *options) {
    static const char *const fusion_names[] = {
#define X(NAME, text) text,
        TPI_FUSION_LIST(X)
#undef X
    };
    static const char *const topic_names[] = {"plan", "kernel", "memory"};
    ctx->log = options->log;
    ctx->log_user = options->log_user;
    ctx->strict = options->strict || is_on("TP_STRICT");
    ctx->check_plans = is_on("TP_PLAN_CHECK");
    atomic_init(&ctx->detect_nonfinite, is_on("TP_DETECT_NAN"));
    ctx->fusions = (1u << TPI_FUSION_COUNT) - 1;
    TPI_TRY(each_word("TP_FUSE", options->fuse ? options->fuse : getenv("TP_FUSE"), fusion_names,
                      TPI_FUSION_COUNT, apply_fusion, ctx));
    return each_word("TP_VERBOSE", options->verbose ? options->verbose : getenv("TP_VERBOSE"), topic_names, 3,
                     apply_topic, ctx);
}

static tp_status thread_count(const tp_context_options *options, const tpi_affinity *affinity, int *out) {
    const char *text = getenv("TP_THREADS");
    char *end = NULL;
    long from_text = options->threads == 0 && text ? strtol(text, &end, 10) : 0;
    if ((end && (*end || from_text < 1 || from_text > 1024)) || options->threads < 0 ||
        options->threads > 1024)
        return tpi_fail(TP_EINVAL, "threads: expected 1 to 1024, got %s",
                        end ? text : "a number out of range");
    *out = options->threads  ? options->threads
           : from_text       ? (int)from_text
           : affinity->count ? affinity->count
                             : tpi_threads_available();
    return TP_OK;
}

static tp_status start_threads(tp_context *ctx, const tp_context_options *options,
                               const tpi_affinity *affinity) {
    int threads = 1;
    TPI_TRY(thread_count(options, affinity, &threads));
    bool fixed = options->deterministic || is_on("TP_DETERMINISTIC");
    TPI_TRY(tpi_threads_create_split(&ctx->threads, threads, fixed ? DETERMINISTIC_PARTS : threads));
    return tpi_affinity_bind(affinity, ctx->threads);
}

static tp_status open_threads(tp_context *ctx, const tp_context_options *options) {
    tpi_affinity affinity;
    TPI_TRY(tpi_affinity_read(options->affinity ? options->affinity : getenv("TP_AFFINITY"), &affinity));
    tp_status status = start_threads(ctx, options, &affinity);
    tpi_affinity_free(&affinity);
    return status;
}

/* ---- life ---- */

static tp_status fill(tp_context *ctx, const tp_context_options *options) {
    TPI_TRY(apply_options(ctx, options));
    TPI_TRY(open_threads(ctx, options));
    ctx->memory_limit = options->memory_limit;
    TPI_TRY(tpi_memory_create(&ctx->memory, options->memory_limit, NULL));
    TPI_TRY(tpi_plan_cache_create(&ctx->cache, options->cache_bytes ? options->cache_bytes : CACHE_BYTES));
    TPI_TRY(tpi_queue_create(&ctx->queue));
    char isa[64];
    ctx->cpu = (tp_device){.context = ctx, .memory = ctx->memory, .backend = tpi_backend_cpu(), .index = -1};
    ctx->cpu.backend->describe(isa, sizeof isa);
    snprintf(ctx->cpu.name, sizeof ctx->cpu.name, "cpu");
    int threads = tp_context_threads(ctx);
    snprintf(ctx->cpu.description, sizeof ctx->cpu.description, "%s, %d thread%s", isa, threads,
             threads == 1 ? "" : "s");
    return TP_OK;
}

tp_status tp_context_create(tp_context **out, const tp_context_options *options) {
    static const tp_context_options defaults = TP_CONTEXT_OPTIONS_INIT;
    if (!out) return tpi_fail(TP_EINVAL, "tp_context_create: out is NULL");
    *out = NULL;
    if (options && options->size != sizeof *options)
        return tpi_fail(TP_EINVAL,
                        "tp_context_create: options.size is %zu, expected %zu: use TP_CONTEXT_OPTIONS_INIT",
                        options->size, sizeof *options);
    tp_context *ctx = tpi_calloc(1, sizeof *ctx);
    if (!ctx) return TP_ENOMEM;
    pthread_mutex_init(&ctx->graphs_lock, NULL);
    pthread_mutex_init(&ctx->gpus_lock, NULL);
    tp_status status = fill(ctx, options ? options : &defaults);
    if (status != TP_OK) {
        tp_context_destroy(ctx);
        return status;
    }
    *out = ctx;
    return TP_OK;
}

void tp_context_destroy(tp_context *ctx) {
    if (!ctx) return;
    for (int i = 0; i < ctx->idle_count; i++) tp_graph_destroy(ctx->idle_graphs[i]);
    tpi_queue_destroy(ctx->queue);
    tpi_plan_cache_destroy(ctx->cache);
    tpi_close_devices(ctx);
    tpi_memory_destroy(ctx->memory);
    tpi_threads_destroy(ctx->threads);
    pthread_mutex_destroy(&ctx->gpus_lock);
    pthread_mutex_destroy(&ctx->graphs_lock);
    tpi_free(ctx);
}

static void add_stats(void *user, tpi_memory *memory) {
    tp_context_stats *out = user;
    const tpi_memory_stats stats = tpi_memory_get_stats(memory);
    out->memory_now += stats.now;
    out->memory_peak += stats.peak;
    out->tensors += stats.blocks;
}

void tp_context_get_stats(tp_context *ctx, tp_context_stats *out) {
    *out = (tp_context_stats){0};
    tpi_plan_cache_stats(ctx->cache, out);
    tpi_each_memory(ctx, add_stats, out);
}

bool tp_context_detect_nonfinite(tp_context *ctx, bool on) {
    return atomic_exchange(&ctx->detect_nonfinite, on);
}

static void trim(void *user, tpi_memory *memory) {
    (void)user;
    tpi_memory_trim(memory);
}

void tp_context_trim(tp_context *ctx) {
    tpi_each_memory(ctx, trim, NULL);
}

int tp_context_threads(const tp_context *ctx) {
    return tpi_threads_running(ctx->threads);
}

/* ---- private graphs of eager calls ---- */

tp_status tpi_context_graph_take(tp_context *ctx, tp_graph **out) {
    pthread_mutex_lock(&ctx->graphs_lock);
    *out = ctx->idle_count ? ctx->idle_graphs[--ctx->idle_count] : NULL;
    pthread_mutex_unlock(&ctx->graphs_lock);
    return *out ? TP_OK : tp_graph_create(out, ctx);
}

void tpi_context_graph_give(tp_context *ctx, tp_graph *graph) {
    tp_graph_reset(graph);
    pthread_mutex_lock(&ctx->graphs_lock);
    bool kept = ctx->idle_count < (int)(sizeof ctx->idle_graphs / sizeof ctx->idle_graphs[0]);
    if (kept) ctx->idle_graphs[ctx->idle_count++] = graph;
    pthread_mutex_unlock(&ctx->graphs_lock);
    if (!kept) tp_graph_destroy(graph);
}
