/* Contexts and devices.
 *
 * A context owns the threads, the memory pools and the plan cache. Programs make one and keep it; everything
 * else is made in a context and must be released before it. A context may be used from several threads at
 * once; a graph belongs to one thread.
 *
 *     tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
 *     options.threads = 4;
 *     tp_context *ctx;
 *     if (tp_context_create(&ctx, &options) != TP_OK) return 1;
 *     tp_device *cpu = tp_device_cpu(ctx);
 *     ...
 *     tp_context_destroy(ctx);
 */
#ifndef TAPER_CONTEXT_H
#define TAPER_CONTEXT_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_context tp_context;
typedef struct tp_device tp_device;

typedef enum tp_log_level { TP_LOG_DEBUG, TP_LOG_INFO, TP_LOG_WARN } tp_log_level;

/* Receives one line of text without a newline. It may be called from several threads at once, with locks
 * held: it calls nothing of taper. */
typedef void (*tp_log_fn)(void *user, tp_log_level level, const char *line);

typedef struct tp_context_options {
    size_t size;           /* sizeof(tp_context_options): set by TP_CONTEXT_OPTIONS_INIT */
    int threads;           /* 0: TP_THREADS, or those of `affinity`, or all that this process may use */
    uint64_t memory_limit; /* bytes that tensors and plans may take on each device; 0: no limit */
    uint64_t cache_bytes;  /* bytes of cached plans; 0: 64 MiB */
    bool strict;           /* report a recording error at its line through `log`, as TP_STRICT=1 does */
    bool deterministic;    /* the same bits on any number of threads, as TP_DETERMINISTIC=1 does; slower */
    const char *affinity;  /* processors of the threads: "none", "all" or "0-3,8"; NULL: TP_AFFINITY */
    const char *fuse;      /* fusions to leave out, for instance "-lora,-pointwise"; NULL: TP_FUSE */
    const char *verbose;   /* any of "plan,kernel,memory"; NULL: TP_VERBOSE */
    tp_log_fn log;         /* NULL: nothing is logged */
    void *log_user;
} tp_context_options;

#define TP_CONTEXT_OPTIONS_INIT                                                                              \
    { sizeof(tp_context_options), 0, 0, 0, false, false, NULL, NULL, NULL, NULL, NULL }

/* Creates a context; `options` may be NULL. Owned: release it with tp_context_destroy. Fails with TP_EINVAL
 * for an unknown fusion or topic, TP_ENOMEM. */
TP_API tp_status tp_context_create(tp_context **out, const tp_context_options *options);

/* Waits for what is queued, then frees the context. NULL does nothing. */
TP_API void tp_context_destroy(tp_context *ctx);

/* What the plan cache and the pools did since creation. */
typedef struct tp_context_stats {
    uint64_t plan_hits, plan_misses, plan_evictions; /* lookups */
    uint64_t plans, plan_bytes;                      /* cached now */
    uint64_t memory_now, memory_peak;                /* bytes of tensors and arenas */
    uint64_t tensors;                                /* live storages */
} tp_context_stats;

TP_API void tp_context_get_stats(tp_context *ctx, tp_context_stats *out);

/* Whether evaluations that run from now on, queued ones included, look for the first number that is not
 * finite; off unless TP_DETECT_NAN=1. Such an evaluation fails with TP_ENONFINITE at the operation that made
 * it, and changes no state: "exp (kernel avx512, plan step 12 of 40): element [3, 7] of f32 [4, 16] is inf;
 * its inputs are finite". The step's number is that of tp_graph_explain; of a fused chain all its operations
 * are named.
 *
 * At fault are: a NaN in a leaf; an operation that makes a NaN; one that makes an infinity of finite inputs.
 * Infinities in leaves are none, as masks hold them, nor is what follows from them, short of a NaN.
 *
 * Costs one more reading of every operand, and memory for a copy of the state that is assigned. Returns what
 * was set before. May be called from any thread. */
TP_API bool tp_context_detect_nonfinite(tp_context *ctx, bool on);

/* Gives memory kept for reuse back to the system. */
TP_API void tp_context_trim(tp_context *ctx);

/* Threads that kernels run on. */
TP_API int tp_context_threads(const tp_context *ctx);

/* The CPU. Borrowed from the context; never NULL. */
TP_API tp_device *tp_device_cpu(tp_context *ctx);

/* GPU number `index`, opened at the first call. Borrowed from the context; NULL where it cannot be used, and
 * the message says why: no plug-in, no driver, one that is too old, no such GPU. */
TP_API tp_device *tp_device_cuda(tp_context *ctx, int index);

/* The GPUs that can be used; 0, and TP_EDEVICE with the reason, where there is none. */
TP_API tp_status tp_device_cuda_count(int *out);

/* GPU number `index`, or the CPU where there is none. Borrowed from the context; never NULL. */
TP_API tp_device *tp_device_cuda_if_available(tp_context *ctx, int index);

/* "cpu" or "cuda:0". Borrowed from the device. */
TP_API const char *tp_device_name(const tp_device *device);

/* What the device is and can do in a few words, for instance "x86-64 avx512, 2 threads". Borrowed. */
TP_API const char *tp_device_description(const tp_device *device);
TP_API bool tp_device_is_cuda(const tp_device *device);

/* Waits until all that was queued on the device has ended. TP_EDEVICE, or what went wrong there last. */
TP_API tp_status tp_device_synchronize(tp_device *device);

/* Bytes of the device's own memory; false, and zeros, for the CPU. */
TP_API bool tp_device_memory(const tp_device *device, uint64_t *free_bytes, uint64_t *total_bytes);
TP_API tp_context *tp_device_context(const tp_device *device);

#ifdef __cplusplus
}
#endif
#endif
