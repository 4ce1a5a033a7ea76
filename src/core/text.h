/* Text that grows: bytes, their number, and room. A zeroed tpi_text is empty. */
#ifndef TAPER_CORE_TEXT_H
#define TAPER_CORE_TEXT_H

#include "taper/status.h"

#include <stdarg.h>
#include <stddef.h>

typedef struct tpi_text {
    char *data;
    size_t length, capacity;
} tpi_text;

/* Room for `extra` bytes more. These fail with TP_ENOMEM only, and then change nothing. */
tp_status tpi_text_reserve(tpi_text *text, size_t extra);
tp_status tpi_text_append(tpi_text *text, const char *bytes, size_t length);

/* With a NUL behind it, which does not count. */
tp_status tpi_text_print(tpi_text *text, const char *format, va_list args);

/* Makes it empty. */
void tpi_text_free(tpi_text *text);

#endif
