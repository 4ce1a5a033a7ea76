/* A contestant: one process that prepares one work and runs it when told.
 *
 *     bench_contestant WORK key=value ...      all works understand threads=N, inputs=DIR, device=cpu|cuda:I;
 *                                              those of operations backward=1, program=1
 *
 * It answers on standard output, one line a line:
 *
 *     (at start)          ready VERSION WAY ...        prepared; the ways that it can run the work in
 *                         absent WHY                   it has no such work
 *     result WAY DIR      done                         runs it once, writes each result as DIR/NAME.npy, f32
 *     run WAY N           seconds a call               runs it N times
 *     facts               key=value ...                load_seconds: a model's; host_seconds: of a call of
 * the last run, without waiting for the device; peak_bytes: the most that tensors and plans held on the
 * device
 *
 * Whatever else happens ends the process with a line on standard error. The peers of bench/peers speak the
 * same but for the facts.
 *
 * A work of operations is a function that records what is computed on the graph's leaves. Leaves are the
 * inputs by name, read from inputs/NAME.npy, rounded to the work's dtype, on the contest's device. */
#ifndef TAPER_BENCH_CONTESTANT_H
#define TAPER_BENCH_CONTESTANT_H

#include "npy.h"
#include "taper/taper.h"

#define MOST_INPUTS  8
#define MOST_RESULTS 8

typedef struct contest contest;

/* Results of a work, in order, with their names. Tensors are owned by the receiver. */
typedef struct results {
    int count;
    const char *names[MOST_RESULTS];
    tp_tensor *tensors[MOST_RESULTS];
} results;

typedef struct work {
    const char *name;
    /* Operations: records, and returns y; the contest evaluates. With the key backward=1 the gradients of Σ y
     * · dy with respect to `wrt` are wanted too, dy being an input; y without a dy is a loss itself. */
    tp_lazy *(*record)(contest *c);
    const char *wrt[MOST_RESULTS]; /* names of inputs, ended by NULL */
    /* Or a work that does more: makes what `run` needs, runs it `times` times and returns the seconds a call
     * that count, makes the results. */
    void (*open)(contest *c);
    double (*run)(contest *c, int times);
    void (*result)(contest *c, results *out);
    void (*close)(contest *c);
} work;

struct contest {
    const work *work;
    int argc;
    char **argv;
    tp_context *context;
    tp_device *device; /* key device: where models and leaves are */
    tp_graph *graph;
    tp_program *program; /* key program=1: of the recording, from its first call on */
    results made;        /* the program's results, without tensors */
    tp_dtype dtype;      /* of floating inputs: key dtype */
    int input_count;
    const char *input_names[MOST_INPUTS];
    tp_tensor *inputs[MOST_INPUTS];
    double load_seconds, host_seconds; /* facts */
    void *state;                       /* of `open` */
};

/* The value of a key, or `otherwise`. */
const char *key_text(const contest *c, const char *key, const char *otherwise);
long key_number(const contest *c, const char *key, long otherwise);

/* An input as a tensor, read at its first use: f32 ones in the contest's dtype, or as they are. Borrowed. */
tp_tensor *input(contest *c, const char *name);
tp_tensor *input_as(contest *c, const char *name, tp_dtype dtype);
tp_lazy *leaf(contest *c, const char *name);

/* The same file for the host to read, whatever the device. Owned by the caller: npy_free. */
npy host_input(const contest *c, const char *name);

void must(tp_status status);

extern const work operation_works[], model_works[]; /* each ended by a name that is NULL */

#endif
