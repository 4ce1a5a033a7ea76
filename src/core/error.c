/* The thread-local error message: a fixed buffer, so that running out of memory can be reported too. */
#include "core/error.h"

#include <stdio.h>
#include <string.h>

#define MESSAGE_BYTES 1024

static _Thread_local char message[MESSAGE_BYTES];

const char *tp_status_name(tp_status status) {
    static const char *const names[] = {
#define X(name, meaning) "TP_" #name,
        TP_STATUS_LIST(X)
#undef X
    };
    return (unsigned)status < TP_STATUS_COUNT ? names[status] : "TP_?";
}

const char *tp_status_text(tp_status status) {
    static const char *const texts[] = {
#define X(name, meaning) meaning,
        TP_STATUS_LIST(X)
#undef X
    };
    return (unsigned)status < TP_STATUS_COUNT ? texts[status] : "unknown status";
}

const char *tp_error_message(void) {
    return message;
}

/* A message is one line whatever a file name or a token in it holds. */
static void keep_one_line(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = ' ';
}

tp_status tpi_failv(tp_status status, const char *format, va_list args) {
    char text[MESSAGE_BYTES]; /* the arguments may point into `message` */
    vsnprintf(text, sizeof text, format, args);
    keep_one_line(text);
    memcpy(message, text, sizeof text);
    return status;
}

tp_status tpi_fail(tp_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    tpi_failv(status, format, args);
    va_end(args);
    return status;
}

tp_status tpi_fail_within(tp_status status, const char *format, ...) {
    char prefix[MESSAGE_BYTES / 2], rest[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    memcpy(rest, message, sizeof rest);
    return tpi_fail(status, "%s: %s", prefix, rest);
}
