/* A fork-join pool. The trick: a job is published by one word that workers watch, first spinning for about as
 * long as waking a thread takes, then asleep on it with a futex. Starting a job costs a system call only
 * where somebody sleeps. With more threads than processors nobody spins, since the spinner would hold the
 * processor that the other needs.
 *
 * A job falls into a number of parts that is the pool's own, one a thread unless it is asked for more. Each
 * thread begins at its share of them, then goes on to those that nobody has begun: the caller does the part
 * of a worker that the system has not woken yet, and never waits for it. What a part is depends on its number
 * alone, not on who does it, so a pool of the same parts gives the same results on any number of threads. */
#include "core/threads.h"
#include "core/alloc.h"
#include "core/error.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NANOSECONDS 50000
#define PAUSES_PER_CLOCK 32 /* reading the clock is as slow as a pause */

/* Invariant: every job takes every part once, so `taken` is the number of the job that took it last. */
typedef struct part {
    alignas(TPI_ALIGN) atomic_uint taken;
} part;

typedef struct worker {
    tpi_threads *pool;
    pthread_t thread;
    int first; /* the part that it begins with */
} worker;

/* Invariant: `fn` and `arg` change only while no part is taken and unfinished and `busy` is held; who reads
 * them has taken a part of the job before, and finishes it after. */
struct tpi_threads {
    alignas(TPI_ALIGN) atomic_uint job;     /* counts the jobs: workers sleep on it */
    alignas(TPI_ALIGN) atomic_uint pending; /* unfinished parts: the caller sleeps on it */
    alignas(TPI_ALIGN) atomic_int sleepers; /* workers that sleep or are about to */
    atomic_bool caller_sleeps;
    alignas(TPI_ALIGN) atomic_flag busy;
    void (*fn)(void *arg, int index, int count);
    void *arg;
    atomic_bool stopping;
    bool spin;
    int count, threads, started; /* of parts; of threads, with the caller; of workers that run */
    part *parts;                 /* count */
    worker *workers;             /* threads - 1: the caller is none of them */
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Sleeps unless *word differs from `value` already. May return for no reason. */
static void futex_wait(atomic_uint *word, unsigned value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int threads) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

/* Spins for a while as long as *word is `value`; true if it changed. */
static bool spin_while(const tpi_threads *pool, atomic_uint *word, unsigned value) {
    int64_t deadline = pool->spin ? nanoseconds() + SPIN_NANOSECONDS : 0;
    do {
        for (int i = 0; i < PAUSES_PER_CLOCK; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value) return true;
            if (!pool->spin) return false;
            pause_briefly();
        }
    } while (nanoseconds() < deadline);
    return false;
}

/* The sleeper is counted before the kernel compares the word, and the waker changes the word before it reads
 * the count: one of the two sees the other. That takes sequential consistency. */
static void wait_for_job(tpi_threads *pool, unsigned seen) {
    if (spin_while(pool, &pool->job, seen)) return;
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->job) == seen) futex_wait(&pool->job, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void wait_for_parts(tpi_threads *pool) {
    unsigned left;
    while ((left = atomic_load_explicit(&pool->pending, memory_order_acquire)) != 0) {
        if (spin_while(pool, &pool->pending, left)) continue;
        atomic_store(&pool->caller_sleeps, true);
        if (atomic_load(&pool->pending) == left) futex_wait(&pool->pending, left);
        atomic_store(&pool->caller_sleeps, false);
    }
}

static void wake_workers(tpi_threads *pool) {
    atomic_fetch_add(&pool->job, 1);
    if (atomic_load(&pool->sleepers) > 0) futex_wake(&pool->job, INT_MAX);
}

static void start_job(tpi_threads *pool, void (*fn)(void *, int, int), void *arg) {
    pool->fn = fn;
    pool->arg = arg;
    atomic_store_explicit(&pool->pending, (unsigned)pool->count, memory_order_relaxed);
    wake_workers(pool);
}

/* Takes part `index` for job `number`; false if that is done, or has passed. */
static bool take(tpi_threads *pool, int index, unsigned number) {
    unsigned last = number - 1;
    return atomic_compare_exchange_strong(&pool->parts[index].taken, &last, number);
}

/* Does what is left of job `number`, from part `first` on. */
static void do_parts(tpi_threads *pool, int first, unsigned number) {
    for (int i = 0; i < pool->count; i++) {
        int index = (first + i) % pool->count;
        if (!take(pool, index, number)) continue;
        pool->fn(pool->arg, index, pool->count);
        if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->caller_sleeps))
            futex_wake(&pool->pending, 1);
    }
}

static void *work(void *arg) {
    worker *self = arg;
    tpi_threads *pool = self->pool;
    for (unsigned seen = 0;;) {
        wait_for_job(pool, seen);
        seen = atomic_load(&pool->job); /* the newest: those before are done */
        if (atomic_load(&pool->stopping)) return NULL;
        do_parts(pool, self->first, seen);
    }
}

int tpi_threads_available(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* more processors than cpu_set_t holds */
    return online < 1 ? 1 : (int)online;
}

/* Thread `number`'s share of the parts begins here. */
static int first_part(const tpi_threads *pool, int number) {
    return (int)((int64_t)number * pool->count / pool->threads);
}

static tp_status start_workers(tpi_threads *pool) {
    for (; pool->started < pool->threads - 1; pool->started++) {
        worker *next = &pool->workers[pool->started];
        int number = pool->started + 1;
        *next = (worker){.pool = pool, .first = first_part(pool, number)};
        int error = pthread_create(&next->thread, NULL, work, next);
        if (error)
            return tpi_fail(TP_ENOMEM, "could not start thread %d of %d: %s", number + 1, pool->threads,
                            strerror(error));
    }
    return TP_OK;
}

static tp_status fill(tpi_threads *pool) {
    size_t bytes = (size_t)pool->count * sizeof *pool->parts; /* an int's worth of parts: no overflow */
    if (!(pool->parts = tpi_aligned_alloc(bytes))) return TP_ENOMEM;
    memset(pool->parts, 0, bytes);
    pool->workers = tpi_calloc((size_t)pool->threads, sizeof *pool->workers);
    return pool->workers ? start_workers(pool) : TP_ENOMEM;
}

tp_status tpi_threads_create_split(tpi_threads **out, int threads, int parts) {
    *out = NULL;
    if (threads < 1 || parts < 1)
        return tpi_fail(TP_EINVAL, "threads: at least 1 expected, got %d in %d parts", threads, parts);
    tpi_threads *pool = tpi_aligned_alloc(sizeof *pool);
    if (!pool) return TP_ENOMEM;
    memset(pool, 0, sizeof *pool);
    atomic_flag_clear(&pool->busy);
    pool->count = parts;
    pool->threads = threads;
    pool->spin = threads <= tpi_threads_available();
    tp_status status = fill(pool);
    if (status != TP_OK) {
        tpi_threads_destroy(pool);
        return status;
    }
    *out = pool;
    return TP_OK;
}

tp_status tpi_threads_create(tpi_threads **out, int count) {
    return tpi_threads_create_split(out, count, count);
}

void tpi_threads_destroy(tpi_threads *pool) {
    if (!pool) return;
    atomic_store(&pool->stopping, true); /* before the workers wake */
    wake_workers(pool);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    tpi_free(pool->workers);
    tpi_free(pool->parts);
    tpi_free(pool);
}

int tpi_threads_parts(const tpi_threads *pool) {
    return pool->count;
}

int tpi_threads_running(const tpi_threads *pool) {
    return pool->threads;
}

tp_status tpi_threads_bind(tpi_threads *pool, int number, int processor) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)processor, &one);
    int error = pthread_setaffinity_np(pool->workers[number - 1].thread, sizeof one, &one);
    if (!error) return TP_OK;
    return tpi_fail(TP_EINVAL, "could not bind a thread to processor %d: %s", processor, strerror(error));
}

void tpi_parallel(tpi_threads *threads, void (*fn)(void *arg, int index, int count), void *arg) {
    int count = threads->count;
    if (count == 1 || threads->threads == 1 ||
        atomic_flag_test_and_set_explicit(&threads->busy, memory_order_acquire)) {
        for (int i = 0; i < count; i++) fn(arg, i, count);
        return;
    }
    start_job(threads, fn, arg);
    do_parts(threads, 0, atomic_load_explicit(&threads->job, memory_order_relaxed));
    wait_for_parts(threads);
    atomic_flag_clear_explicit(&threads->busy, memory_order_release);
}

typedef struct split {
    void (*fn)(void *arg, int64_t begin, int64_t end);
    void *arg;
    int64_t n, grain, pieces;
} split;

/* Piece `index`: its share of the whole grains, and for the last one what is left over. */
static void run_piece(void *arg, int index, int count) {
    const split *job = arg;
    (void)count;
    if (index >= job->pieces) return;
    int64_t share = job->n / job->grain / job->pieces, extra = job->n / job->grain % job->pieces;
    int64_t begin = index * share + (index < extra ? index : extra);
    int64_t end = begin + share + (index < extra);
    job->fn(job->arg, begin * job->grain, index == job->pieces - 1 ? job->n : end * job->grain);
}

void tpi_parallel_for(tpi_threads *threads, int64_t n, int64_t grain,
                      void (*fn)(void *arg, int64_t begin, int64_t end), void *arg) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    int64_t pieces = n / grain < threads->count ? n / grain : threads->count;
    if (pieces <= 1) {
        fn(arg, 0, n);
        return;
    }
    split job = {fn, arg, n, grain, pieces};
    tpi_parallel(threads, run_piece, &job);
}
