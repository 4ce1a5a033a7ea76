/* Parses any bytes as JSON and as JSON lines; what parses must survive writing and parsing again. */
#include "core/alloc.h"
#include "io/json_write.h"
#include "io/jsonl.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *write_again(const tpi_json_doc *doc, size_t *length) {
    tpi_json_writer w;
    char *text;
    tpi_json_writer_init(&w, 0);
    tpi_json_put_value(&w, NULL, tpi_json_root(doc));
    tpi_json_writer_finish(&w, &text, length); /* fails beyond the writer's 64 levels alone */
    return text;
}

static void round_trip(const tpi_json_doc *doc) {
    size_t length, again_length;
    char *text = write_again(doc, &length);
    if (!text) return;
    tpi_json_doc *again;
    if (tpi_json_parse("again", 1, text, length, &again) != TP_OK) abort();
    char *second = write_again(again, &again_length);
    if (!second || strcmp(text, second) != 0) abort();
    tpi_free(second);
    tpi_json_destroy(again);
    tpi_free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tpi_json_doc *doc;
    if (tpi_json_parse("fuzz", 1, (const char *)data, size, &doc) == TP_OK) round_trip(doc);
    tpi_json_destroy(doc);

    tpi_lines lines;
    tpi_lines_init(&lines, data, size);
    for (;;) {
        tp_status status = tpi_jsonl_next(&lines, "fuzz", &doc);
        if (status == TP_OK && !doc) break;
        tpi_json_destroy(doc);
    }
    if (tpi_alloc_live() != 0) abort();
    return 0;
}
