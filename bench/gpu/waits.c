/* The device's table of calls is replaced by a copy in which the calls that wait are timed. */
#include "waits.h"

#include "../clock.h"
#include "core/device.h"

static const tpi_device_calls *real;
static tpi_device_calls timed;
static double seconds;

static tp_status timed_read(void *state, void *to, const void *from, size_t bytes, uint64_t mark) {
    double start = clock_seconds();
    tp_status status = real->read(state, to, from, bytes, mark);
    seconds += clock_seconds() - start;
    return status;
}

static tp_status timed_wait(void *state, uint64_t mark) {
    double start = clock_seconds();
    tp_status status = real->wait(state, mark);
    seconds += clock_seconds() - start;
    return status;
}

void waits_measure(tp_device *device) {
    real = device->calls;
    timed = *real;
    timed.read = timed_read;
    timed.wait = timed_wait;
    device->calls = &timed;
}

double waits_seconds(void) {
    return seconds;
}
