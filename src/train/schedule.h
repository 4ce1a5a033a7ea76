/* The learning rate as a function of the step: warm-up along a line, then the schedule. */
#ifndef TAPER_TRAIN_SCHEDULE_H
#define TAPER_TRAIN_SCHEDULE_H

#include "taper/train.h"

typedef struct tpi_schedule {
    tp_train_schedule kind;
    double peak;
    int64_t warmup, steps; /* steps of warm-up, of the whole run */
} tpi_schedule;

/* `warmup` is a share of `steps` if below 1, else a number of steps. */
tpi_schedule tpi_schedule_make(tp_train_schedule kind, double peak, double warmup, int64_t steps);

/* The rate of step 0 ... steps - 1: never 0, so that no step is wasted. */
double tpi_schedule_rate(const tpi_schedule *schedule, int64_t step);

#endif
