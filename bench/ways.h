/* The four ways to run one recording: eagerly, lazily with a cached plan, lazily with a cold plan, and the
 * host's cost alone (recording, lookup and binding, with the kernels taken out). */
#ifndef TAPER_BENCH_WAYS_H
#define TAPER_BENCH_WAYS_H

#include "bench.h"

#define WAYS 4

typedef struct ways {
    tp_lazy *(*record)(struct ways *w, tp_graph *g); /* the program; reads w->user */
    void (*eager)(struct ways *w);
    void *user;
    const char *names[WAYS];
    double flops, bytes;
    double units, host_target; /* nodes in one recording, and seconds that one should cost the host */
    tp_context *context, *cold, *host;
    tp_graph *graph, *host_graph;
} ways;

/* Makes contexts and graphs; then the program makes its tensors with `ways_tensor`. */
void ways_open(ways *w, int argc, char **argv);

/* The entries of the four ways. */
void ways_entries(ways *w, bench_entry entries[WAYS]);
void ways_close(ways *w);

/* A tensor is of one context, so each has its own copy with the same numbers. */
typedef struct ways_tensor {
    tp_tensor *in[3]; /* cached, cold, host */
} ways_tensor;
void ways_randn(const ways *w, int rank, const int64_t *shape, uint64_t seed, ways_tensor *out);
void ways_release(ways_tensor *t);

/* The leaf of the copy that belongs to the graph. */
tp_lazy *ways_leaf(const ways *w, tp_graph *g, const ways_tensor *t);

/* The whole program of an operation over the rows of a [4096, 4096] tensor: `user` is its ways_tensor, its
 * bytes one read and one write. Returns main's status. */
int ways_rows(int argc, char **argv, const char *title, tp_lazy *(*record)(ways *w, tp_graph *g),
              void (*eager)(ways *w));

#endif
