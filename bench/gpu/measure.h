/* Measuring a recorded operation on a device: its time within a plan, its agreement with the CPU.
 *
 * A kind of operation is one function that asks for inputs, records, and says which results are wanted. It is
 * called once for each set of inputs. A plan of many sets is run again as it is bound, without recording: so
 * a time is what the operation takes as a part of a captured plan. */
#ifndef TAPER_BENCH_GPU_MEASURE_H
#define TAPER_BENCH_GPU_MEASURE_H

#include "recording.h"

#define MOST_SIZES   8
#define MOST_BASES   2
#define MOST_NAME    96 /* of a row; of one with its bases */
#define MOST_KERNELS 256

typedef struct kind {
    const char *name;
    void (*record)(recording *r);
    int64_t checked[MOST_SIZES]; /* small sizes, at which results are compared with the CPU's */
    bool once; /* timed with one set of inputs: it is large itself, or reads what was just made */
} kind;

/* Ended by a name that is NULL. */
extern const kind kinds[];

/* A row: a kind at sizes. Names are KIND-SIZES, for instance "softmax-128x512" or "lora-128x512-r8". */
typedef struct row {
    char name[MOST_NAME];
    const kind *kind;
    int64_t size[MOST_SIZES];
} row;

/* False for a name that has no kind. */
bool row_parse(const char *name, row *out);

typedef struct figures {
    double us[3];        /* within a plan: quartiles */
    double call_us;      /* recorded, evaluated and waited for, once */
    double bytes, flops; /* of one */
    double steps;        /* launches of one */
    char kernels[MOST_KERNELS];
} figures;

/* The largest difference from the CPU's results at the small sizes, relative to the largest value. */
double row_difference(const row *w, tp_device *device);

figures row_measure(const row *w, tp_device *device);

/* What a row takes beyond others, which it does too: quartiles of samples of either, and of the ratios of
 * samples that followed each other, so that both had the card's clock and warmth of that moment. */
typedef struct overhead {
    double us[3], base_us[3], ratio[3];
} overhead;

/* The bases, up to MOST_BASES, are added up. */
overhead row_overhead(const row *w, const row *bases, int count, tp_device *device);

/* Bytes that copies within the device move a second, reading and writing each once. */
double copy_rate(tp_device *device);

#endif
