/* A pool of threads that runs one function on all of them: fork, join, nothing else.
 *
 * Workers spin briefly for the next job, then sleep. Invariant: tpi_parallel(pool, fn, arg) calls
 * fn(arg, i, n) once for each i in 0 ... n-1 with n the parts of the pool and returns when all have returned.
 * Which thread makes which call is open, and if the pool is busy with another thread's job the caller makes
 * all of them one after the other: results depend on n alone. fn must not call tpi_parallel. */
#ifndef TAPER_CORE_THREADS_H
#define TAPER_CORE_THREADS_H

#include "taper/status.h"

#include <stdint.h>

typedef struct tpi_threads tpi_threads;

/* count ≥ 1 threads, the caller's included, and as many parts. */
tp_status tpi_threads_create(tpi_threads **out, int count);

/* The parts of a job apart from the threads, of which no more than there are parts find work. */
tp_status tpi_threads_create_split(tpi_threads **out, int threads, int parts);
void tpi_threads_destroy(tpi_threads *threads);
int tpi_threads_parts(const tpi_threads *threads);   /* what kernels divide their work by */
int tpi_threads_running(const tpi_threads *threads); /* threads that do them */

/* Binds thread `number`, from 1 on, to a processor; the caller's thread, number 0, is its own business. */
tp_status tpi_threads_bind(tpi_threads *threads, int number, int processor);
int tpi_threads_available(void); /* processors this process may use */

void tpi_parallel(tpi_threads *threads, void (*fn)(void *arg, int index, int count), void *arg);

/* Splits [0, n) into at most one contiguous piece a part, each but the last a multiple of `grain` and none
 * smaller than it, and calls fn(arg, begin, end). One piece runs in the caller without waking anybody. */
void tpi_parallel_for(tpi_threads *threads, int64_t n, int64_t grain,
                      void (*fn)(void *arg, int64_t begin, int64_t end), void *arg);

#endif
