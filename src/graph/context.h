/* Contexts: what graphs share. Threads, memory, the plan cache, the queue of asynchronous evaluations.
 *
 * Invariant: everything here but the options is safe from several threads. */
#ifndef TAPER_GRAPH_CONTEXT_H
#define TAPER_GRAPH_CONTEXT_H

#include "core/tensor.h"
#include "core/threads.h"
#include "taper/graph.h"

#include <pthread.h>
#include <stdatomic.h>

enum tpi_topic { TPI_TOPIC_PLAN = 1, TPI_TOPIC_KERNEL = 2, TPI_TOPIC_MEMORY = 4 };

/* The fusions, as they are called in TP_FUSE. X(NAME, text) */
#define TPI_FUSION_LIST(X)                                                                                   \
    X(LORA, "lora")                                                                                          \
    X(LINEAR_LORA, "linear_lora")                                                                            \
    X(LINEAR, "linear")                                                                                      \
    X(ADD_RMS_NORM, "add_rms_norm")                                                                          \
    X(SILU_MUL, "silu_mul")                                                                                  \
    X(POINTWISE, "pointwise")

enum tpi_fusion {
#define X(NAME, text) TPI_FUSE_##NAME,
    TPI_FUSION_LIST(X)
#undef X
        TPI_FUSION_COUNT
};

#define TPI_MOST_GPUS 16

struct tp_context {
    tp_log_fn log;
    void *log_user;
    unsigned topics;  /* enum tpi_topic bits */
    unsigned fusions; /* bit of each enum tpi_fusion that is on */
    bool strict, check_plans;
    atomic_bool detect_nonfinite; /* runs fail at the first step that makes a NaN or an infinity */
    bool null_kernels; /* bench only: steps are bound and skipped, to measure the host's cost alone */
    tpi_threads *threads;
    tpi_memory *memory;
    uint64_t memory_limit; /* of each device */
    tp_device cpu;
    pthread_mutex_t gpus_lock;
    tp_device *gpus[TPI_MOST_GPUS]; /* opened when they are first asked for */
    struct tpi_plan_cache *cache;
    struct tpi_queue *queue;

    pthread_mutex_t graphs_lock;
    tp_graph *idle_graphs[16]; /* private graphs of eager calls */
    int idle_count;
};

void tpi_log(tp_context *ctx, tp_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static inline bool tpi_verbose(const tp_context *ctx, enum tpi_topic topic) {
    return __builtin_expect((ctx->topics & (unsigned)topic) != 0, 0);
}

/* ---- devices.c ---- */

/* Closes what was opened, after the queue has ended. */
void tpi_close_devices(tp_context *ctx);

/* Whether the device multiplies matrices of `dtype` as they are, and quicker than those of f32. */
bool tpi_device_multiplies(const tp_device *device, tp_dtype dtype);

/* Calls `visit` for the memory of each open device, the CPU's first. */
void tpi_each_memory(tp_context *ctx, void (*visit)(void *user, tpi_memory *memory), void *user);

/* A graph for one eager call: taken, recorded into, evaluated, given back (which resets it). */
tp_status tpi_context_graph_take(tp_context *ctx, tp_graph **out);
void tpi_context_graph_give(tp_context *ctx, tp_graph *graph);

#endif
