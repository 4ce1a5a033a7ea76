/* cJSON accepts more than JSON: raw control characters, any bytes as UTF-8, 01 and 1. as numbers, \u with no
 * hex digits, and it cuts a string at \u0000. It also descends 1000 levels. This pass looks at tokens only,
 * with no state but the depth, and leaves the grammar between them to cJSON. */
#include "io/json_scan.h"

#include "core/error.h"
#include "io/json.h"
#include "io/utf8.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define NUMBER_MAX 63 /* characters: cJSON copies a number into 64 bytes */

typedef struct cursor {
    const char *at, *end;
    const char *complaint; /* NULL while all is well; `at` is then past what was read, else at the fault */
    tp_status status;
} cursor;

static void complain(cursor *c, const char *at, const char *complaint) {
    c->at = at;
    c->complaint = complaint;
    c->status = TP_EFORMAT;
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_hex(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static const char *skip_digits(const char *p, const char *end) {
    while (p < end && is_digit(*p)) p++;
    return p;
}

/* -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)? */
static void scan_number(cursor *c) {
    const char *start = c->at, *p = start, *digits;
    if (*p == '-') p++;
    p = skip_digits(digits = p, c->end);
    if (p == digits) return complain(c, start, "a minus sign without digits");
    if (*digits == '0' && p - digits > 1) return complain(c, start, "a number with a leading zero");
    if (p < c->end && *p == '.') {
        p = skip_digits(digits = p + 1, c->end);
        if (p == digits) return complain(c, start, "a number without digits behind its point");
    }
    if (p < c->end && (*p == 'e' || *p == 'E')) {
        digits = p + 1;
        if (digits < c->end && (*digits == '+' || *digits == '-')) digits++;
        p = skip_digits(digits, c->end);
        if (p == digits) return complain(c, start, "a number without digits in its exponent");
    }
    if (p - start > NUMBER_MAX) return complain(c, start, "a number of more than 63 characters");
    c->at = p;
}

/* At a backslash. Which letters may follow it, and that surrogates come in pairs, is checked by cJSON. */
static void scan_escape(cursor *c) {
    const char *start = c->at;
    if (c->end - start < 2 || start[1] != 'u') {
        c->at += c->end - start < 2 ? 1 : 2;
        return;
    }
    for (int i = 2; i < 6; i++)
        if (c->end - start <= i || !is_hex(start[i]))
            return complain(c, start, "\\u without four hex digits");
    if (memcmp(start + 2, "0000", 4) == 0) {
        complain(c, start, "a NUL character (\\u0000) in a string is not supported");
        c->status = TP_EUNSUPPORTED;
        return;
    }
    c->at += 6;
}

static void scan_string(cursor *c) {
    const char *start = c->at++;
    while (c->at < c->end && *c->at != '"' && !c->complaint) {
        if ((unsigned char)*c->at < 0x20) return complain(c, c->at, "a raw control character in a string");
        if (*c->at == '\\')
            scan_escape(c);
        else
            c->at++;
    }
    if (c->complaint) return;
    if (c->at >= c->end) return complain(c, start, "a string that does not end");
    c->at++;
}

static void scan_tokens(cursor *c) {
    int depth = 0;
    while (c->at < c->end && !c->complaint) {
        char byte = *c->at;
        if (byte == '"') {
            scan_string(c);
        } else if (byte == '-' || is_digit(byte)) {
            scan_number(c);
        } else {
            if (byte == '[' || byte == '{') depth++;
            if (byte == ']' || byte == '}') depth--;
            if (depth > TPI_JSON_MAX_DEPTH) return complain(c, c->at, "nested too deep (limit 128 levels)");
            if ((unsigned char)byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r')
                return complain(c, c->at, "a control character");
            c->at++;
        }
    }
}

_Static_assert(TPI_JSON_MAX_DEPTH == 128, "the message above names the limit");

tp_status tpi_json_fail_at(const char *name, size_t line, const char *text, size_t at, tp_status status,
                           const char *complaint) {
    size_t column = 1;
    for (size_t i = 0; i < at; i++) {
        if (text[i] == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)text[i] & 0xc0) != 0x80) {
            column++;
        }
    }
    return tpi_fail(status, "%s:%zu:%zu: %s", name, line, column, complaint);
}

tp_status tpi_json_scan(const char *name, size_t line, const char *text, size_t length) {
    size_t valid = tpi_utf8_valid(text, length);
    if (valid < length)
        return tpi_json_fail_at(name, line, text, valid, TP_EFORMAT, "a byte that is not UTF-8");
    cursor c = {.at = text, .end = text + length};
    scan_tokens(&c);
    if (c.complaint) return tpi_json_fail_at(name, line, text, (size_t)(c.at - text), c.status, c.complaint);
    return TP_OK;
}
