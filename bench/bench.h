/* The benchmark harness: warm-up, interleaved samples, medians with their spread, and the machine's limits.
 *
 * A program states entries (what, how much work a call is, how to call it); bench_run samples all of them
 * turn by turn, so that a disturbance hits all alike, and prints a table or, with --json FILE, writes the
 * figures too. Invariant: the machine's f32 peak and copy bandwidth are measured in every turn, and a share
 * of them is the median of the turns' shares. */
#ifndef TAPER_BENCH_H
#define TAPER_BENCH_H

#include "graph/context.h"
#include "graph/graph.h"
#include "taper/eager.h"

typedef struct bench_entry {
    const char *name;
    void (*call)(void *user); /* one call of what is measured */
    void *user;
    double flops, bytes; /* of one call; 0: not stated */
    double per;          /* units in one call, for instance nodes; 0: one */
    double target;       /* seconds a unit that the entry should not exceed; 0: none */
} bench_entry;

/* Measures the entries and prints the table under `title`. Options: --json FILE, --markdown, --threads N.
 * Returns the exit status. */
int bench_run(int argc, char **argv, const char *title, const bench_entry *entries, int n);

/* A context on the threads of --threads or TP_THREADS; ends the program with the message on failure. */
tp_context *bench_context(int argc, char **argv, uint64_t cache_bytes);

/* Ends the program unless the status is TP_OK. */
void bench_must(tp_status status);

tp_tensor *bench_randn(tp_context *ctx, int rank, const int64_t *shape, uint64_t seed);

#endif
