/* How long the host waited for a device, or for what it read from it: what is left of a call's time is the
 * host's own work, recording, lookup and launch. */
#ifndef TAPER_BENCH_GPU_WAITS_H
#define TAPER_BENCH_GPU_WAITS_H

#include "taper/context.h"

/* From now on waits for this device count. One device a process; not the CPU, which nobody waits for. */
void waits_measure(tp_device *device);

/* The sum of all waits until now. */
double waits_seconds(void);

#endif
