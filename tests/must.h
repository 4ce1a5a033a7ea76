/* Calls that a test needs to succeed, or to fail in a certain way. */
#ifndef TAPER_TESTS_MUST_H
#define TAPER_TESTS_MUST_H

#include <criterion/criterion.h>

#include "core/error.h"

#include <string.h>

#define must(call) cr_assert_eq((call), TP_OK, "%s: %s", #call, tp_error_message())

/* The call fails with this status, and its message holds `part`. */
#define must_fail(call, wanted, part)                                                                        \
    do {                                                                                                     \
        tp_status status_ = (call);                                                                          \
        cr_assert_eq(status_, wanted, "%s: got %s: %s", #call, tp_status_name(status_), tp_error_message()); \
        cr_assert(strstr(tp_error_message(), part), "%s: no \"%s\" in: %s", #call, part,                     \
                  tp_error_message());                                                                       \
    } while (0)

#endif
