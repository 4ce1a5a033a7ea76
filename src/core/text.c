#include "core/text.h"

#include "core/alloc.h"
#include "core/error.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

tp_status tpi_text_reserve(tpi_text *text, size_t extra) {
    size_t wanted = 0;
    if (!tpi_add_size(text->length, extra, &wanted)) wanted = SIZE_MAX;
    return tpi_grow(&text->data, &text->capacity, wanted, 1);
}

tp_status tpi_text_append(tpi_text *text, const char *bytes, size_t length) {
    tp_status status = tpi_text_reserve(text, length);
    if (status != TP_OK || length == 0) return status;
    memcpy(text->data + text->length, bytes, length);
    text->length += length;
    return TP_OK;
}

tp_status tpi_text_print(tpi_text *text, const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    const int length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    if (length < 0) return TP_ENOMEM;
    TPI_TRY(tpi_text_reserve(text, (size_t)length + 1));
    vsnprintf(text->data + text->length, (size_t)length + 1, format, args);
    text->length += (size_t)length;
    return TP_OK;
}

void tpi_text_free(tpi_text *text) {
    tpi_free(text->data);
    *text = (tpi_text){0};
}
