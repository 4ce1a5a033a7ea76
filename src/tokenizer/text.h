/* Text while it is tokenized: UTF-8, and questions about characters.
 *
 * Invariant: but for the arguments of the two "lossy" functions and tpi_text_byte, text is valid UTF-8. */
#ifndef TAPER_TOKENIZER_TEXT_H
#define TAPER_TOKENIZER_TEXT_H

#include "core/text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where a piece of a text stands: whether it gets what marks the beginning of a word depends on it. */
typedef enum tpi_standing {
    TPI_STANDS_FIRST,    /* the text begins with it */
    TPI_STANDS_BEHIND,   /* behind an added token or another piece */
    TPI_STANDS_CONTINUED /* the text begins with it, but continues another one */
} tpi_standing;

#define TPI_REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* Appends `bytes` with each maximal ill-formed sequence replaced by U+FFFD (Unicode 3.9, "substitution of
 * maximal subparts"). */
tp_status tpi_text_append_lossy(tpi_text *text, const char *bytes, size_t length);

/* How many bytes at the end may be the beginning of a character that more bytes complete: 0 to 3. */
size_t tpi_text_unfinished(const char *bytes, size_t length);

/* The character at `bytes`; returns its length in bytes, 1 to 4. */
size_t tpi_text_decode(const char *bytes, int32_t *character);

/* The length of the character that ends before `end`, and the character. end > 0. */
size_t tpi_text_decode_back(const char *end, int32_t *character);

/* Writes the character, 1 to 4 bytes, and returns their number. */
size_t tpi_text_encode(int32_t character, char bytes[4]);

bool tpi_char_is_space(int32_t character); /* White_Space */
bool tpi_char_is_word(
    int32_t character); /* \w of UTS 18: alphabetic, mark, decimal digit, connector, joiner */

/* The printable character that stands for a byte in byte-level vocabularies (GPT-2's bytes_to_unicode):
 * itself when it is printable Latin-1, else U+0100 and up in order. */
int32_t tpi_char_of_byte(uint8_t byte);

/* The inverse, or -1 for a character that stands for no byte. */
int tpi_byte_of_char(int32_t character);

#endif
