/* UTF-8 by one function, `scan`, which says how long the sequence at a place is and whether it is well
 * formed; everything else walks with it. */
#include "tokenizer/text.h"

#include <string.h>
#include <utf8proc.h>

typedef enum form { WELL, ILL, UNFINISHED } form;

/* The longest beginning of `bytes` that is one character, or the beginning of one (then ILL, or UNFINISHED
 * where `length` cuts it off), or one byte that begins none. Table 3-7 of the Unicode standard: only the
 * second byte has a narrower range after some first bytes. */
static size_t scan(const char *bytes, size_t length, form *as) {
    const uint8_t *b = (const uint8_t *)bytes;
    size_t size = b[0] < 0x80 ? 1 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : 4;
    uint8_t low = b[0] == 0xe0 ? 0xa0 : b[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t high = b[0] == 0xed ? 0x9f : b[0] == 0xf4 ? 0x8f : 0xbf;
    *as = ILL;
    if ((b[0] >= 0x80 && b[0] < 0xc2) || b[0] > 0xf4) return 1;
    for (size_t i = 1; i < size; i++, low = 0x80, high = 0xbf) {
        if (i == length) {
            *as = UNFINISHED;
            return i;
        }
        if (b[i] < low || b[i] > high) return i;
    }
    *as = WELL;
    return size;
}

tp_status tpi_text_append_lossy(tpi_text *text, const char *bytes, size_t length) {
    size_t before = text->length, good = 0; /* bytes[good, i) is well formed and not yet copied */
    tp_status status = tpi_text_reserve(text, length);
    for (size_t i = 0; i < length && status == TP_OK;) {
        form as;
        size_t size = scan(bytes + i, length - i, &as);
        if (as != WELL) {
            status = tpi_text_append(text, bytes + good, i - good);
            if (status == TP_OK) status = tpi_text_append(text, TPI_REPLACEMENT, sizeof TPI_REPLACEMENT - 1);
            good = i + size;
        }
        i += size;
    }
    if (status == TP_OK && good < length) status = tpi_text_append(text, bytes + good, length - good);
    if (status != TP_OK) text->length = before;
    return status;
}

size_t tpi_text_unfinished(const char *bytes, size_t length) {
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        form as;
        size_t size = scan(bytes + length - back, back, &as);
        if (as == UNFINISHED && size == back) return back;
    }
    return 0;
}

size_t tpi_text_decode(const char *bytes, int32_t *character) {
    const uint8_t *b = (const uint8_t *)bytes;
    size_t size = b[0] < 0x80 ? 1 : b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : 4;
    int32_t code = size == 1 ? b[0] : b[0] & (0x7f >> size);
    for (size_t i = 1; i < size; i++) code = code << 6 | (b[i] & 0x3f);
    *character = code;
    return size;
}

size_t tpi_text_decode_back(const char *end, int32_t *character) {
    const char *start = end - 1;
    while (((uint8_t)*start & 0xc0) == 0x80) start--;
    return tpi_text_decode(start, character);
}

size_t tpi_text_encode(int32_t character, char bytes[4]) {
    uint32_t c = (uint32_t)character;
    size_t size = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = size; i-- > 1; c >>= 6) bytes[i] = (char)(0x80 | (c & 0x3f));
    bytes[0] = (char)(lead[size] | c);
    return size;
}

bool tpi_char_is_space(int32_t c) {
    if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool tpi_char_is_word(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default: /* zero-width joiners, and circled and squared letters, which are alphabetic symbols */
        return c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
               (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
    }
}

/* Bytes that no printable Latin-1 character stands for: 0-32, 127-160 and 173 get U+0100 + their ordinal. */
int32_t tpi_char_of_byte(uint8_t byte) {
    if (byte <= 32) return 0x100 + byte;
    if (byte >= 127 && byte <= 160) return 0x100 + 33 + (byte - 127);
    return byte == 173 ? 0x100 + 33 + 34 : byte;
}

int tpi_byte_of_char(int32_t c) {
    if (c >= 0x100) {
        int32_t ordinal = c - 0x100;
        return ordinal < 33 ? ordinal : ordinal < 67 ? ordinal - 33 + 127 : ordinal == 67 ? 173 : -1;
    }
    return tpi_char_of_byte((uint8_t)c) == c ? c : -1;
}
