/* Allocation with overflow checks, a live count and a fault hook; each is one relaxed atomic. */
#include "core/alloc.h"
#include "core/error.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_BYTES ((size_t)2 << 20)

static atomic_llong live;
static atomic_llong fail_countdown; /* 0: off */

void tpi_alloc_fail_at(int64_t n) {
    atomic_store(&fail_countdown, n);
}

int64_t tpi_alloc_live(void) {
    return atomic_load(&live);
}

static bool injected_fault(void) {
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) == 0) return false;
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

static void *counted(void *pointer, size_t bytes) {
    if (!pointer)
        tpi_fail(TP_ENOMEM, "out of memory: could not allocate %zu bytes", bytes);
    else
        atomic_fetch_add_explicit(&live, 1, memory_order_relaxed);
    return pointer;
}

void *tpi_malloc(size_t bytes) {
    return counted(injected_fault() ? NULL : malloc(bytes ? bytes : 1), bytes);
}

void *tpi_calloc(size_t count, size_t size) {
    return counted(injected_fault() ? NULL : calloc(count ? count : 1, size ? size : 1), count * size);
}

void *tpi_realloc_array(void *old, size_t count, size_t size) {
    size_t bytes;
    if (!tpi_mul_size(count, size, &bytes)) {
        tpi_fail(TP_ENOMEM, "out of memory: %zu elements of %zu bytes overflow", count, size);
        return NULL;
    }
    void *pointer = injected_fault() ? NULL : realloc(old, bytes ? bytes : 1);
    if (!pointer) tpi_fail(TP_ENOMEM, "out of memory: could not allocate %zu bytes", bytes);
    if (pointer && !old) atomic_fetch_add_explicit(&live, 1, memory_order_relaxed);
    return pointer;
}

void *tpi_aligned_alloc(size_t bytes) {
    size_t rounded = tpi_align_up(bytes);
    bool overflow = rounded < bytes;
    if (rounded == 0) rounded = TPI_ALIGN;
    return counted(overflow || injected_fault() ? NULL : aligned_alloc(TPI_ALIGN, rounded), bytes);
}

void tpi_advise_huge(const void *data, size_t bytes) {
    const char *set = getenv("TP_HUGE_PAGES");
    if (bytes < 2 * HUGE_BYTES || (set && strcmp(set, "0") == 0)) return;
    uintptr_t begin = ((uintptr_t)data + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
    uintptr_t end = ((uintptr_t)data + bytes) & ~(HUGE_BYTES - 1);
    madvise((void *)begin, end - begin, MADV_HUGEPAGE);
}

void tpi_free(void *pointer) {
    if (!pointer) return;
    atomic_fetch_sub_explicit(&live, 1, memory_order_relaxed);
    free(pointer);
}

char *tpi_strndup(const char *text, size_t length) {
    char *copy = tpi_malloc(length + 1);
    if (!copy) return NULL;
    memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

char *tpi_strdup(const char *text) {
    return tpi_strndup(text, strlen(text));
}

char *tpi_asprintf(const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = length < 0 ? NULL : tpi_malloc((size_t)length + 1);
    if (text) vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}

tp_status tpi_grow(void *array, size_t *capacity, size_t wanted, size_t size) {
    if (wanted <= *capacity) return TP_OK;
    size_t larger = *capacity < 8 ? 8 : *capacity;
    while (larger < wanted)
        if (!tpi_mul_size(larger, 2, &larger))
            return tpi_fail(TP_ENOMEM, "out of memory: %zu elements", wanted);
    void *old, *moved;
    memcpy(&old, array, sizeof old);
    if (!(moved = tpi_realloc_array(old, larger, size))) return TP_ENOMEM;
    memcpy(array, &moved, sizeof moved);
    *capacity = larger;
    return TP_OK;
}
