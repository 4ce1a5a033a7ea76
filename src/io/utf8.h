/* UTF-8 as RFC 3629 has it: no overlong form, no surrogate, nothing above U+10FFFF. */
#ifndef TAPER_IO_UTF8_H
#define TAPER_IO_UTF8_H

#include <stddef.h>

/* Length in bytes of the well-formed beginning of `text`: `length` itself if all of it is UTF-8, else the
 * offset of the first byte that is not. */
size_t tpi_utf8_valid(const char *text, size_t length);

#endif
