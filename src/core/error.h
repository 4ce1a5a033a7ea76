/* Failing: one function that records the thread's message and returns the code.
 *
 * Invariant: a function that returns another status than TP_OK has set the message, itself or through the
 * function that it called. Messages are one line: what, where, expected, got. */
#ifndef TAPER_CORE_ERROR_H
#define TAPER_CORE_ERROR_H

#include "taper/status.h"

#include <stdarg.h>

/* Sets the calling thread's message and returns `status`, so that it ends a function:
 *     return tpi_fail(TP_ESHAPE, "matmul: inner sizes %lld and %lld differ", k0, k1); */
tp_status tpi_fail(tp_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
tp_status tpi_failv(tp_status status, const char *format, va_list args) __attribute__((format(printf, 2, 0)));

/* Puts "<prefix>: " before the current message (a file name, a layer's path) and returns `status`. */
tp_status tpi_fail_within(tp_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Returns the status of a failing call at once. */
#define TPI_TRY(call)                                                                                        \
    do {                                                                                                     \
        tp_status tpi_try_status_ = (call);                                                                  \
        if (tpi_try_status_ != TP_OK) return tpi_try_status_;                                                \
    } while (0)

#endif
