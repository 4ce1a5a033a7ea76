/* Memory of the command line: few and small pieces, kept in one list until the program ends. */
#include "cli.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

typedef struct block {
    struct block *next;
    max_align_t data[];
} block;

static block *blocks;

void *cli_alloc(size_t count, size_t size) {
    size_t bytes;
    block *b = NULL;
    if (!__builtin_mul_overflow(count, size, &bytes) && !__builtin_add_overflow(bytes, sizeof *b, &bytes))
        b = calloc(1, bytes);
    if (!b) exit(cli_fail(EXIT_MEMORY, "out of memory: %zu times %zu bytes", count, size));
    b->next = blocks;
    blocks = b;
    return b->data;
}

char *cli_strndup(const char *text, size_t length) {
    char *copy = cli_alloc(length + 1, 1);
    memcpy(copy, text, length);
    return copy;
}

char *cli_asprintf(const char *format, ...) {
    va_list args;
    char *text;
    va_start(args, format);
    const int length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0) exit(cli_fail(EXIT_MEMORY, "out of memory: no room for a text"));
    char *kept = cli_strndup(text, (size_t)length);
    free(text);
    return kept;
}

void cli_free_all(void) {
    while (blocks) {
        block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}
