/* A recording of an operation on sets of inputs of its own.
 *
 * Whoever records asks for inputs in a fixed order: the first time they are made, the next time they are
 * found again. So the same recording can be made anew and again, as a program does that trains. */
#ifndef TAPER_BENCH_GPU_RECORDING_H
#define TAPER_BENCH_GPU_RECORDING_H

#include "taper/taper.h"

typedef struct recording recording;

struct recording {
    tp_graph *graph;
    tp_device *device;
    const int64_t *size; /* the sizes in the row's name, in their order */
    double flops, bytes; /* of one set: set by the kind; inputs and results once each, added up */

    tp_tensor **inputs; /* of all sets, in the order in which they were asked for */
    int input_count, input_capacity;
    int cursor; /* the next input; at the end a new one is made */
    tp_lazy **outputs;
    int output_count, output_capacity;
};

/* Leaves of the device with random elements: normal values of this deviation, or ids below `below`. */
tp_lazy *normal(recording *r, tp_dtype dtype, double deviation, int rank, const int64_t *shape);
tp_lazy *ids(recording *r, int32_t below, int rank, const int64_t *shape);

/* A leaf of given values: f32 or i32. */
tp_lazy *values(recording *r, tp_dtype dtype, int rank, const int64_t *shape, const void *data);

/* State that an assignment writes: positive values, since moments are. */
tp_lazy *state(recording *r, double deviation, int rank, const int64_t *shape);

/* Asks for a result. */
void want(recording *r, tp_lazy *output);

/* The gradients of inputs `which` of y's operation, for dy, as its own reverse rule records them; asked for.
 */
void want_gradients(recording *r, tp_lazy *y, tp_lazy *dy, unsigned which);

/* ---- for who measures ---- */

/* `size` is borrowed. */
void recording_open(recording *r, tp_device *device, const int64_t *size);
void recording_close(recording *r);

/* Forgets what was recorded and calls `record` for each set; flops and bytes are those of one then. */
void recording_make(recording *r, void (*record)(recording *r), int sets);

/* The results, owned: one for each output. */
tp_tensor **recording_evaluate(recording *r);
void recording_release(const recording *r, tp_tensor **results);

/* End the program with a line where there is an error, or no memory. */
void must(tp_status status);
void *allocated(void *memory);

#endif
