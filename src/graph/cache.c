/* The plan cache: a hash table of plans with a list by last use, bounded in bytes. */
#include "graph/plan.h"
#include "core/alloc.h"

#include <stdio.h>
#include <string.h>

#define BUCKETS 1024

struct tpi_plan_cache {
    pthread_mutex_t lock;
    uint64_t limit, bytes, plans;
    atomic_ullong hits;
    uint64_t misses, evictions;
    tpi_plan *newest, *oldest;
    tpi_plan *buckets[BUCKETS];
};

tp_status tpi_plan_cache_create(tpi_plan_cache **out, uint64_t limit) {
    tpi_plan_cache *cache = tpi_calloc(1, sizeof *cache);
    *out = cache;
    if (!cache) return TP_ENOMEM;
    cache->limit = limit;
    pthread_mutex_init(&cache->lock, NULL);
    return TP_OK;
}

tpi_plan *tpi_plan_retain(tpi_plan *plan) {
    if (plan) atomic_fetch_add_explicit(&plan->references, 1, memory_order_relaxed);
    return plan;
}

void tpi_plan_release(tpi_plan *plan) {
    if (!plan || atomic_fetch_sub_explicit(&plan->references, 1, memory_order_acq_rel) != 1) return;
    if (plan->prepared.release) plan->prepared.release(plan->prepared.data);
    tpi_arena_release(&plan->memory);
    tpi_free(plan);
}

/* ---- lists; under the lock ---- */

static void unlink_use(tpi_plan_cache *cache, tpi_plan *plan) {
    *(plan->newer ? &plan->newer->older : &cache->newest) = plan->older;
    *(plan->older ? &plan->older->newer : &cache->oldest) = plan->newer;
}

static void link_newest(tpi_plan_cache *cache, tpi_plan *plan) {
    plan->newer = NULL;
    plan->older = cache->newest;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = plan;
    cache->newest = plan;
}

static void drop_oldest(tpi_plan_cache *cache) {
    tpi_plan *plan = cache->oldest;
    unlink_use(cache, plan);
    tpi_plan **link = &cache->buckets[plan->hash % BUCKETS];
    while (*link != plan) link = &(*link)->next;
    *link = plan->next;
    cache->bytes -= plan->cached_bytes;
    cache->plans--;
    tpi_plan_release(plan);
}

void tpi_plan_cache_destroy(tpi_plan_cache *cache) {
    if (!cache) return;
    while (cache->oldest) drop_oldest(cache);
    pthread_mutex_destroy(&cache->lock);
    tpi_free(cache);
}

static tpi_plan *lookup(tpi_plan_cache *cache, const tp_graph *graph, const tpi_order *order) {
    tpi_plan *plan = cache->buckets[order->hash % BUCKETS];
    while (plan && !tpi_key_equal(graph, order, plan)) plan = plan->next;
    if (!plan) return NULL;
    unlink_use(cache, plan);
    link_newest(cache, plan);
    return tpi_plan_retain(plan);
}

static void insert(tpi_plan_cache *cache, tpi_plan *plan) {
    plan->cached_bytes = sizeof *plan + plan->memory.bytes;
    if (plan->cached_bytes > cache->limit) return; /* larger than the whole cache: used once */
    while (cache->bytes + plan->cached_bytes > cache->limit) {
        drop_oldest(cache);
        cache->evictions++;
    }
    tpi_plan **bucket = &cache->buckets[plan->hash % BUCKETS];
    plan->next = *bucket;
    *bucket = tpi_plan_retain(plan);
    link_newest(cache, plan);
    cache->bytes += plan->cached_bytes;
    cache->plans++;
}

/* ---- finding ---- */

static bool same_step(const tpi_step *a, const tpi_step *b) {
    return a->op == b->op && a->kernel == b->kernel && a->n_in == b->n_in && a->n_out == b->n_out &&
           a->scratch == b->scratch && a->optional_missing == b->optional_missing &&
           memcmp(a->slots, b->slots, ((size_t)a->n_in + a->n_out + 1) * sizeof *a->slots) == 0 &&
           memcmp(a->operands, b->operands, ((size_t)a->n_in + a->n_out) * sizeof *a->operands) == 0;
}

/* TP_PLAN_CHECK=1: the plan that a hit gives must be the one that planning would give. */
static tp_status check_again(tp_graph *graph, const tpi_order *order, const tpi_plan *plan) {
    tpi_plan *again;
    TPI_TRY(tpi_plan_build(graph, order, &again));
    bool same = again->n_steps == plan->n_steps && again->n_slots == plan->n_slots &&
                again->arena_bytes == plan->arena_bytes && again->n_results == plan->n_results &&
                memcmp(again->slots, plan->slots, plan->n_slots * sizeof *plan->slots) == 0;
    for (uint32_t i = 0; same && i < plan->n_steps; i++) same = same_step(&again->steps[i], &plan->steps[i]);
    tpi_plan_release(again);
    return same ? TP_OK : tpi_fail(TP_EINTERNAL, "plan check: the cached plan differs from a new one");
}

/* Why there was no plan: where the recording leaves the plan made or used last. */
static void explain_miss(const tp_graph *graph, const tpi_order *order, const tpi_plan_cache *cache) {
    if (!tpi_verbose(graph->context, TPI_TOPIC_PLAN)) return;
    char why[TPI_SHAPE_TEXT + 96] = "the cache is empty", shape[TPI_SHAPE_TEXT];
    const tp_lazy *node = cache->newest ? tpi_key_difference(graph, order, cache->newest) : NULL;
    if (node)
        snprintf(why, sizeof why, "the newest plan has no %s %s%s at node %u", tpi_ops[node->record.op].name,
                 tp_dtype_name((tp_dtype)node->record.dtype),
                 tpi_shape_text(node->record.rank, tpi_node_shape(node), shape), node->id);
    else if (cache->newest)
        snprintf(why, sizeof why, "the newest plan has other outputs, assignments or nodes");
    tpi_log(graph->context, TP_LOG_INFO, "plan: miss, %zu nodes, key %016llx: %s (%llu plans)", order->count,
            (unsigned long long)order->hash, why, (unsigned long long)cache->plans);
}

/* Takes over a reference; the graph keeps it until it uses another plan. */
static void remember(tp_graph *graph, tpi_plan *plan) {
    tpi_plan_release(graph->tape.plan);
    graph->tape.plan = plan;
}

static tp_status plan_anew(tp_graph *graph, const tpi_order *order) {
    tpi_plan_cache *cache = graph->context->cache;
    tpi_plan *plan;
    TPI_TRY(tpi_plan_build(graph, order, &plan));
    pthread_mutex_lock(&cache->lock);
    cache->misses++;
    insert(cache, plan);
    pthread_mutex_unlock(&cache->lock);
    remember(graph, plan);
    return TP_OK;
}

/* A plan that other graphs or earlier recordings made; NULL if there is none. */
static tpi_plan *cached_plan(tp_graph *graph, const tpi_order *order) {
    tpi_plan_cache *cache = graph->context->cache;
    pthread_mutex_lock(&cache->lock);
    tpi_plan *plan = lookup(cache, graph, order);
    if (!plan) explain_miss(graph, order, cache);
    pthread_mutex_unlock(&cache->lock);
    return plan;
}

static tp_status find(tp_graph *graph, const tpi_order *order) {
    const tpi_plan *last = graph->tape.plan;
    if (!last || !(order->repeated || tpi_key_equal(graph, order, last))) {
        tpi_plan *plan = cached_plan(graph, order);
        if (!plan) return plan_anew(graph, order);
        remember(graph, plan);
    }
    atomic_fetch_add_explicit(&graph->context->cache->hits, 1, memory_order_relaxed);
    return graph->context->check_plans ? check_again(graph, order, graph->tape.plan) : TP_OK;
}

tp_status tpi_plan_find(tp_graph *graph, const tpi_order *order, tpi_plan **out) {
    *out = NULL;
    TPI_TRY(find(graph, order));
    graph->tape.planned = graph->evaluated ? 0 : order->count;
    *out = graph->tape.plan;
    return TP_OK;
}

void tpi_plan_cache_stats(tpi_plan_cache *cache, tp_context_stats *stats) {
    pthread_mutex_lock(&cache->lock);
    stats->plan_hits = atomic_load(&cache->hits);
    stats->plan_misses = cache->misses;
    stats->plan_evictions = cache->evictions;
    stats->plans = cache->plans;
    stats->plan_bytes = cache->bytes;
    pthread_mutex_unlock(&cache->lock);
}
