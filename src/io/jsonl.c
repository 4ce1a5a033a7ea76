/* Lines are found with memchr and handed out as slices of the caller's text. */
#include "io/jsonl.h"

#include <string.h>

void tpi_lines_init(tpi_lines *lines, const void *data, size_t size) {
    const char *text = size > 0 ? data : "";
    bool marked = size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0;
    *lines = (tpi_lines){.next = text + (marked ? 3 : 0), .end = text + size};
}

bool tpi_lines_next(tpi_lines *lines, const char **text, size_t *length) {
    if (lines->next == lines->end) return false;
    const char *start = lines->next;
    const char *feed = memchr(start, '\n', (size_t)(lines->end - start));
    const char *stop = feed ? feed : lines->end;
    lines->next = feed ? feed + 1 : lines->end;
    lines->number++;
    if (stop > start && stop[-1] == '\r') stop--;
    *text = start;
    *length = (size_t)(stop - start);
    return true;
}

static bool blank(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (text[i] != ' ' && text[i] != '\t') return false;
    return true;
}

tp_status tpi_jsonl_next(tpi_lines *lines, const char *name, tpi_json_doc **out) {
    const char *text;
    size_t length;
    *out = NULL;
    while (tpi_lines_next(lines, &text, &length))
        if (!blank(text, length)) return tpi_json_parse(name, lines->number, text, length, out);
    return TP_OK;
}
