/* Memory: every allocation of the library comes through here, and every one can fail.
 *
 * Invariant: what these functions return is released with tpi_free; sizes are checked for overflow before
 * they are used. The fault hook makes the n-th allocation fail, so that tests walk every failure path. */
#ifndef TAPER_CORE_ALLOC_H
#define TAPER_CORE_ALLOC_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TPI_ALIGN 64 /* bytes: a cache line, and the widest vector */

/* Each returns NULL, with the message set, when memory is short or the size overflows. Size 0 is legal and
 * gives a pointer to free. tpi_calloc and tpi_realloc_array take a count and an element size. */
void *tpi_malloc(size_t bytes);
void *tpi_calloc(size_t count, size_t size);
void *tpi_realloc_array(void *old, size_t count, size_t size);
void *tpi_aligned_alloc(size_t bytes); /* aligned to TPI_ALIGN; contents undefined */
void tpi_free(void *pointer);

/* Asks for huge pages wherever whole ones lie in a large block or mapped file, unless TP_HUGE_PAGES=0. The
 * system may refuse, which changes nothing. */
void tpi_advise_huge(const void *data, size_t bytes);

char *tpi_strdup(const char *text);
char *tpi_strndup(const char *text, size_t length);

/* "printf" into a new string. */
char *tpi_asprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Grows *array so that it holds at least `wanted` elements of `size` bytes; capacity doubles. On failure the
 * array is as it was. */
tp_status tpi_grow(void *array, size_t *capacity, size_t wanted, size_t size);

/* Checked arithmetic: false on overflow. */
static inline bool tpi_mul_size(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool tpi_add_size(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/* The next multiple of TPI_ALIGN; less than `bytes` where there is none. */
static inline size_t tpi_align_up(size_t bytes) {
    return (bytes + TPI_ALIGN - 1) / TPI_ALIGN * TPI_ALIGN;
}

/* Fault injection for tests: the n-th allocation from now fails, once (n = 1 is the next one; 0 switches
 * it off). Process-wide. */
void tpi_alloc_fail_at(int64_t n);

/* Allocations made and not freed, process-wide: what a leak test compares. */
int64_t tpi_alloc_live(void);

#endif
