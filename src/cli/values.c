/* Values of options, from text and back: a case for each kind. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define LARGEST_INT 9007199254740992LL /* 2^53: what the JSON files of a run hold exactly */

static void store(const option_row *row, void *values, const void *value, size_t size) {
    memcpy((char *)values + row->offset, value, size);
}

static int wrong(const char *where, const char *expected, const char *text) {
    return cli_fail(EXIT_USAGE, "%s: expected %s, got \"%s\"", where, expected, text);
}

static int set_flag(const option_row *row, void *values, const char *where, const char *text) {
    static const char *const words[2][4] = {{"false", "no", "off", "0"}, {"true", "yes", "on", "1"}};
    for (int w = 0; w < 8; w++) {
        const bool value = w >= 4;
        if (strcasecmp(text, words[value][w % 4]) != 0) continue;
        store(row, values, &value, sizeof value);
        return 0;
    }
    return wrong(where, "true or false", text);
}

static int set_int(const option_row *row, void *values, const char *where, const char *text) {
    char *end;
    errno = 0;
    const long long number = strtoll(text, &end, 10);
    const int64_t value = number;
    if (end == text || *end || errno || number < 0 || number > LARGEST_INT)
        return wrong(where, "a whole number from 0 to 2^53", text);
    store(row, values, &value, sizeof value);
    return 0;
}

static int set_real(const option_row *row, void *values, const char *where, const char *text) {
    char *end;
    const double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value)) return wrong(where, "a number", text);
    store(row, values, &value, sizeof value);
    return 0;
}

/* A number with a unit: G and GB are 10^9, Gi and GiB 2^30. */
static int set_bytes(const option_row *row, void *values, const char *where, const char *text) {
    static const char units[] = "kmgt";
    char *end;
    double value = strtod(text, &end);
    const char *unit = *end ? strchr(units, *end | 0x20) : NULL;
    if (unit) {
        const bool binary = (end[1] | 0x20) == 'i';
        for (const char *u = units; u <= unit; u++) value *= binary ? 1024 : 1000;
        end += 1 + binary;
    }
    if ((*end | 0x20) == 'b') end++;
    if (end == text || *end || !(value >= 0 && value < 0x1p63))
        return wrong(where, "a size such as 4GiB or 512M", text);
    const uint64_t bytes = (uint64_t)value;
    store(row, values, &bytes, sizeof bytes);
    return 0;
}

static int set_choice(const option_row *row, void *values, const char *where, const char *text) {
    const char *list = "one of";
    for (int value = 0; row->choices[value]; value++) {
        if (strcmp(text, row->choices[value]) == 0) {
            store(row, values, &value, sizeof value);
            return 0;
        }
        list = cli_asprintf("%s%s %s", list, value ? "," : "", row->choices[value]);
    }
    return wrong(where, list, text);
}

static void add_text(text_list *list, const char *text, size_t length) {
    const char **items = cli_alloc((size_t)list->count + 1, sizeof *items);
    if (list->count > 0) memcpy(items, list->items, (size_t)list->count * sizeof *items);
    items[list->count] = cli_strndup(text, length);
    list->items = items;
    list->count++;
}

static int set_list(const option_row *row, void *values, const char *where, const char *text) {
    text_list list;
    memcpy(&list, (char *)values + row->offset, sizeof list);
    const bool whole = row->kind == OPTION_REPEATED || strncmp(text, "re:", 3) == 0;
    for (const char *begin = text; begin;) {
        const char *comma = whole ? NULL : strchr(begin, ',');
        const size_t length = comma ? (size_t)(comma - begin) : strlen(begin);
        if (length == 0 && !whole) return wrong(where, "names parted by commas", text);
        add_text(&list, begin, length);
        begin = comma ? comma + 1 : NULL;
    }
    store(row, values, &list, sizeof list);
    return 0;
}

static int set_text(const option_row *row, void *values, const char *text) {
    const char *copy = cli_strndup(text, strlen(text));
    store(row, values, &copy, sizeof copy);
    return 0;
}

int option_set(const option_row *row, void *values, const char *where, const char *text) {
    switch (row->kind) {
    case OPTION_FLAG:
        return set_flag(row, values, where, text);
    case OPTION_INT:
        return set_int(row, values, where, text);
    case OPTION_REAL:
        return set_real(row, values, where, text);
    case OPTION_TEXT:
        return set_text(row, values, text);
    case OPTION_CHOICE:
        return set_choice(row, values, where, text);
    case OPTION_BYTES:
        return set_bytes(row, values, where, text);
    case OPTION_LIST:
    case OPTION_REPEATED:
        return set_list(row, values, where, text);
    case OPTION_HEADING:
        break;
    }
    return cli_fail(EXIT_FAILED, "%s: not an option", where);
}

char *option_default(const option_row *row, const void *values) {
    const char *at = (const char *)values + row->offset;
    int64_t whole;
    double real;
    const char *text;
    int choice;
    switch (row->kind) {
    case OPTION_INT:
        memcpy(&whole, at, sizeof whole);
        return cli_asprintf("%lld", (long long)whole);
    case OPTION_REAL:
        memcpy(&real, at, sizeof real);
        return cli_asprintf("%g", real);
    case OPTION_TEXT:
        memcpy(&text, at, sizeof text);
        return text ? cli_asprintf("%s", text) : NULL;
    case OPTION_CHOICE:
        memcpy(&choice, at, sizeof choice);
        return cli_asprintf("%s", row->choices[choice]);
    default:
        return NULL;
    }
}
