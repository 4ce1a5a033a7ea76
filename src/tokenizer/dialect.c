/* From Oniguruma's pattern dialect to PCRE2's. The two agree on nearly everything that tokenizers use. The
 * escapes whose sets of characters differ are spelt out; what only one of them understands, or both
 * differently, is refused. */
#include "tokenizer/pattern.h"
#include "core/error.h"

#include <string.h>

/* The members of an escape's set, as they stand within brackets. PCRE2's own \s has U+180E and its \w lacks
 * marks, connectors, circled letters and Latin-1's superscripts and fractions; \h means a hexadecimal digit
 * in one and a blank in the other. */
static const struct escape {
    char set, complement;
    const char *members;
} escapes[] = {
    {'s', 'S', "\\x{9}-\\x{d}\\x{85}\\p{Z}"},
    {'w', 'W',
     "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{"
     "1f149}\\x{1f150}-\\x{1f169}"
     "\\x{1f170}-\\x{1f189}"},
    {'h', 'H', "0-9a-fA-F"},
};

static tp_status append(tpi_text *out, const char *text) {
    return tpi_text_append(out, text, strlen(text));
}

static const struct escape *find_escape(char letter) {
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++)
        if (escapes[i].set == letter || escapes[i].complement == letter) return &escapes[i];
    return NULL;
}

/* A backslash and the letter behind it. Within brackets a complement has no spelling of its own: \S and \W
 * stay PCRE2's, which differ in the characters named above, and \H is refused. */
static tp_status translate_escape(const char *source, bool in_class, tpi_text *out) {
    const struct escape *escape = find_escape(source[1]);
    bool complement = escape && escape->complement == source[1];
    if (escape && in_class && source[1] == 'H') return tpi_fail(TP_EUNSUPPORTED, "\\H within brackets");
    if (!escape || (in_class && complement)) return tpi_text_append(out, source, source[1] ? 2 : 1);
    if (!in_class) TPI_TRY(append(out, complement ? "[^" : "["));
    TPI_TRY(append(out, escape->members));
    return in_class ? TP_OK : append(out, "]");
}

/* "(?imx-imx" with m: "dot matches newline" in Ruby, "anchors match at lines" in PCRE2. */
static bool has_option_m(const char *source) {
    if (source[0] != '(' || source[1] != '?') return false;
    size_t letters = strspn(source + 2, "imx-");
    return strchr(":)", source[2 + letters]) && memchr(source + 2, 'm', letters);
}

/* Within brackets: nesting and "&&" are operators to Oniguruma and plain characters to PCRE2. */
static bool has_set_operator(const char *source) {
    return (source[0] == '[' && source[1] != ':') || (source[0] == '&' && source[1] == '&');
}

/* The length of what stands at `s` and is copied as it is: a character, "[" or "[^" that opens brackets, or a
 * whole [:name:] within them. 0 if that has no end. */
static size_t copied(const char *s, bool in_class) {
    if (s[0] != '[') return 1;
    if (!in_class) return s[1] == '^' ? 2 : 1;
    const char *end = strstr(s, ":]");
    return end ? (size_t)(end + 2 - s) : 0;
}

tp_status tpi_dialect_translate(const char *source, tpi_text *out) {
    const char *members = NULL; /* the beginning of the brackets' members, within brackets */
    for (const char *s = source; *s;) {
        size_t offset = (size_t)(s - source);
        if (members && has_set_operator(s))
            return tpi_fail(TP_EUNSUPPORTED, "pattern offset %zu: set operation within brackets", offset);
        if (!members && has_option_m(s))
            return tpi_fail(TP_EUNSUPPORTED, "pattern offset %zu: the option (?m)", offset);
        if (*s == '\\') {
            tp_status status = translate_escape(s, members != NULL, out);
            if (status != TP_OK) return tpi_fail_within(status, "pattern offset %zu", offset);
            s += s[1] ? 2 : 1;
            continue;
        }
        size_t size = copied(s, members != NULL);
        if (size == 0) return tpi_fail(TP_EFORMAT, "pattern offset %zu: [: without :]", offset);
        TPI_TRY(tpi_text_append(out, s, size));
        if (!members && *s == '[')
            members = s + size;
        else if (members && *s == ']' && s != members)
            members = NULL;
        s += size;
    }
    return TP_OK;
}
