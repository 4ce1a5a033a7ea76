/* One table row per lead byte: how many bytes follow, and the range of the first of them, which is what
 * excludes overlong forms, surrogates and everything above U+10FFFF (RFC 3629, section 4). */
#include "io/utf8.h"

static const struct lead {
    unsigned char first, last, follow, low, high;
} leads[] = {
    {0x00, 0x7f, 0, 0x00, 0x00}, {0xc2, 0xdf, 1, 0x80, 0xbf}, {0xe0, 0xe0, 2, 0xa0, 0xbf},
    {0xe1, 0xec, 2, 0x80, 0xbf}, {0xed, 0xed, 2, 0x80, 0x9f}, {0xee, 0xef, 2, 0x80, 0xbf},
    {0xf0, 0xf0, 3, 0x90, 0xbf}, {0xf1, 0xf3, 3, 0x80, 0xbf}, {0xf4, 0xf4, 3, 0x80, 0x8f},
};

/* Bytes of the character at `text`, 0 if it is not well formed within `length` bytes. */
static size_t character(const unsigned char *text, size_t length) {
    for (size_t i = 0; i < sizeof leads / sizeof *leads; i++) {
        const struct lead *lead = &leads[i];
        if (text[0] < lead->first || text[0] > lead->last) continue;
        if (lead->follow >= length) return 0;
        if (lead->follow > 0 && (text[1] < lead->low || text[1] > lead->high)) return 0;
        for (size_t j = 2; j <= lead->follow; j++)
            if ((text[j] & 0xc0) != 0x80) return 0;
        return lead->follow + 1u;
    }
    return 0;
}

size_t tpi_utf8_valid(const char *text, size_t length) {
    const unsigned char *bytes = (const unsigned char *)text;
    size_t at = 0;
    while (at < length) {
        size_t n = character(bytes + at, length - at);
        if (n == 0) break;
        at += n;
    }
    return at;
}
