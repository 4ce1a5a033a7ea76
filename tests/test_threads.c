/* The pool: every index runs once, concurrent callers too, more threads than processors too, on any number of
 * threads for the same parts. */
#include "core/affinity.h"
#include "core/alloc.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#define MOST 64

typedef struct tally {
    atomic_int calls[MOST];
    long plain[MOST]; /* not atomic: a missing happens-before is for the thread sanitizer to see */
    int count;
} tally;

static void tick(void *arg, int index, int count) {
    tally *t = arg;
    atomic_fetch_add(&t->calls[index], 1);
    t->plain[index]++;
    cr_assert_eq(count, t->count);
}

static void run_jobs(tpi_threads *pool, int jobs, int sleep_every) {
    tally t = {.count = tpi_threads_parts(pool)};
    for (int j = 1; j <= jobs; j++) {
        tpi_parallel(pool, tick, &t);
        for (int i = 0; i < t.count; i++)
            cr_assert_eq(t.plain[i], j, "index %d ran %ld times of %d", i, t.plain[i], j);
        if (sleep_every && j % sleep_every == 0) usleep(300); /* long enough for the workers to fall asleep */
    }
    for (int i = 0; i < t.count; i++) cr_assert_eq(atomic_load(&t.calls[i]), jobs);
}

Test(threads, each_index_runs_once) {
    for (int count = 1; count <= 5; count++) {
        tpi_threads *pool;
        cr_assert_eq(tpi_threads_create(&pool, count), TP_OK);
        cr_assert_eq(tpi_threads_parts(pool), count);
        run_jobs(pool, 2000, 0);
        run_jobs(pool, 60, 3);
        tpi_threads_destroy(pool);
    }
}

Test(threads, parts_apart_from_threads) {
    for (int threads = 1; threads <= 5; threads++)
        for (int parts = 1; parts <= 16; parts += 5) {
            tpi_threads *pool;
            cr_assert_eq(tpi_threads_create_split(&pool, threads, parts), TP_OK);
            cr_assert_eq(tpi_threads_parts(pool), parts);
            cr_assert_eq(tpi_threads_running(pool), threads);
            run_jobs(pool, 500, 100);
            tpi_threads_destroy(pool);
        }
}

typedef struct places {
    pthread_t caller;
    atomic_int seen; /* where the worker ran; -1: it took no part */
} places;

static void find_processor(void *arg, int index, int count) {
    places *p = arg;
    (void)index, (void)count;
    usleep(2000); /* long enough for every thread to take a part, unless others keep it from running */
    if (!pthread_equal(pthread_self(), p->caller)) atomic_store(&p->seen, sched_getcpu());
}

Test(threads, workers_stay_where_they_are_bound) {
    tpi_affinity affinity;
    tpi_threads *pool;
    places p = {.caller = pthread_self()};
    int seen = 0;
    cr_assert_eq(tpi_affinity_read("all", &affinity), TP_OK);
    cr_assert_eq(affinity.count, tpi_threads_available());
    cr_assert_eq(tpi_threads_create(&pool, 2), TP_OK);
    cr_assert_eq(tpi_affinity_bind(&affinity, pool), TP_OK);
    for (int i = 0; i < 2000 && seen < 20; i++) {
        atomic_store(&p.seen, -1);
        tpi_parallel(pool, find_processor, &p);
        if (atomic_load(&p.seen) < 0) continue;
        cr_assert_eq(atomic_load(&p.seen), affinity.processors[1 % affinity.count]);
        seen++;
    }
    cr_assert_eq(seen, 20);
    tpi_threads_destroy(pool);
    tpi_affinity_free(&affinity);
}

Test(threads, lists_of_processors) {
    static const char *const wrong[] = {"", "x", "0-", "-1", "0,", "0,,0", "1-0", "0 ", "0-0-0", "99999999"};
    tpi_affinity affinity;
    int64_t live = tpi_alloc_live();
    cr_assert_eq(tpi_affinity_read(NULL, &affinity), TP_OK);
    cr_assert_eq(affinity.count, 0);
    cr_assert_eq(tpi_affinity_read("none", &affinity), TP_OK);
    cr_assert_eq(affinity.count, 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_expect_eq(tpi_affinity_read(wrong[i], &affinity), TP_EINVAL, "'%s'", wrong[i]);
    cr_assert_eq(tpi_alloc_live(), live);
    cr_assert_eq(tpi_affinity_read("all", &affinity), TP_OK);
    char list[64];
    int only = affinity.processors[0];
    snprintf(list, sizeof list, "%d,%d-%d", only, only, only);
    tpi_affinity_free(&affinity);
    cr_assert_eq(tpi_affinity_read(list, &affinity), TP_OK);
    cr_assert(affinity.count == 2 && affinity.processors[0] == only && affinity.processors[1] == only);
    tpi_affinity_free(&affinity);
    cr_assert_eq(tpi_alloc_live(), live);
}

Test(threads, many_more_than_processors) {
    tpi_threads *pool;
    cr_assert_eq(tpi_threads_create(&pool, 32), TP_OK);
    run_jobs(pool, 200, 20);
    tpi_threads_destroy(pool);
}

static void *call_concurrently(void *pool) {
    run_jobs(pool, 3000, 500);
    return NULL;
}

Test(threads, concurrent_callers) {
    tpi_threads *pool;
    cr_assert_eq(tpi_threads_create(&pool, 3), TP_OK);
    pthread_t callers[4];
    for (int i = 0; i < 4; i++) cr_assert_eq(pthread_create(&callers[i], NULL, call_concurrently, pool), 0);
    for (int i = 0; i < 4; i++) pthread_join(callers[i], NULL);
    tpi_threads_destroy(pool);
}

typedef struct cover {
    atomic_int seen[1000];
    int64_t n, grain;
    atomic_int pieces;
} cover;

static void mark(void *arg, int64_t begin, int64_t end) {
    cover *c = arg;
    cr_assert(0 <= begin && begin < end && end <= c->n);
    cr_assert_eq(begin % c->grain, 0);
    cr_assert(end == c->n || end % c->grain == 0);
    cr_assert(end - begin >= c->grain || c->n < c->grain);
    atomic_fetch_add(&c->pieces, 1);
    for (int64_t i = begin; i < end; i++) atomic_fetch_add(&c->seen[i], 1);
}

Test(threads, parallel_for_covers) {
    static const int64_t sizes[] = {0, 1, 2, 7, 16, 17, 100, 999, 1000}, grains[] = {1, 3, 16, 64, 2000};
    tpi_threads *pool;
    cr_assert_eq(tpi_threads_create(&pool, 4), TP_OK);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t j = 0; j < sizeof grains / sizeof *grains; j++) {
            cover c = {.n = sizes[i], .grain = grains[j]};
            tpi_parallel_for(pool, c.n, c.grain, mark, &c);
            for (int64_t k = 0; k < c.n; k++) cr_assert_eq(atomic_load(&c.seen[k]), 1);
            int64_t most = c.n / c.grain < 4 ? c.n / c.grain : 4;
            cr_assert_eq(atomic_load(&c.pieces), c.n == 0 ? 0 : most < 1 ? 1 : most);
        }
    tpi_threads_destroy(pool);
}

Test(threads, failures_leak_nothing) {
    tpi_threads *pool = (tpi_threads *)&pool;
    cr_assert_eq(tpi_threads_create(&pool, 0), TP_EINVAL);
    cr_assert_null(pool);
    int64_t live = tpi_alloc_live();
    for (int n = 1;; n++) {
        tpi_alloc_fail_at(n);
        tp_status status = tpi_threads_create(&pool, 3);
        tpi_alloc_fail_at(0);
        if (status == TP_OK) break;
        cr_assert_eq(status, TP_ENOMEM);
        cr_assert_null(pool);
        cr_assert_eq(tpi_alloc_live(), live);
    }
    tpi_threads_destroy(pool);
    cr_assert_eq(tpi_alloc_live(), live);
    tpi_threads_destroy(NULL);
}
