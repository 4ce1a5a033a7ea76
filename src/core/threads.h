/* A pool of threads that runs one function on all of them: fork, join, nothing else.
 *
 * Workers spin briefly for the next job, then sleep. Invariant: tpi_parallel(pool, fn, arg) calls
 * fn(arg, i, n) once for each i in 0 ... n-1 with n the pool's size and returns when all have returned. If
 * the pool is busy with another thread's job the calls are made one after the other by the caller, so results
 * depend on n alone. fn must not call tpi_parallel. */
#ifndef TAPER_CORE_THREADS_H
#define TAPER_CORE_THREADS_H

#include "taper/status.h"

#include <stdint.h>

typedef struct tpi_threads tpi_threads;

tp_status tpi_threads_create(tpi_threads **out, int count); /* count ≥ 1, the caller's thread included */
void tpi_threads_destroy(tpi_threads *threads);
int tpi_threads_count(const tpi_threads *threads);
int tpi_threads_available(void); /* processors this process may use */

void tpi_parallel(tpi_threads *threads, void (*fn)(void *arg, int index, int count), void *arg);

/* Splits [0, n) into at most one contiguous piece a thread, each but the last a multiple of `grain` and none
 * smaller than it, and calls fn(arg, begin, end). One piece runs in the caller without waking anybody. */
void tpi_parallel_for(tpi_threads *threads, int64_t n, int64_t grain,
                      void (*fn)(void *arg, int64_t begin, int64_t end), void *arg);

#endif
