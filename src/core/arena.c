/* Chunks double in size, so that a large recording costs few of them. */
#include "core/arena.h"
#include "core/alloc.h"
#include "core/error.h"

#include <string.h>

#define FIRST_CHUNK ((size_t)16 << 10)
#define LAST_CHUNK  ((size_t)4 << 20)

struct tpi_chunk {
    tpi_chunk *next;
    size_t bytes; /* of the chunk, header included */
};

static void enter(tpi_arena *arena, tpi_chunk *chunk) {
    arena->current = chunk;
    arena->next = (char *)(chunk + 1);
    arena->end = (char *)chunk + chunk->bytes;
}

void *tpi_arena_slow(tpi_arena *arena, size_t bytes) {
    size_t needed;
    if (!tpi_add_size(bytes, sizeof(tpi_chunk), &needed)) {
        tpi_fail(TP_ENOMEM, "out of memory: %zu bytes overflow", bytes);
        return NULL;
    }
    tpi_chunk *chunk = arena->current ? arena->current->next : arena->first;
    if (!chunk || chunk->bytes < needed) {
        size_t size = arena->current ? arena->current->bytes * 2 : FIRST_CHUNK;
        if (size > LAST_CHUNK) size = LAST_CHUNK;
        if (size < needed) size = needed;
        tpi_chunk *fresh = tpi_malloc(size);
        if (!fresh) return NULL;
        fresh->bytes = size;
        fresh->next = chunk; /* a kept chunk that is too small comes after this one */
        *(arena->current ? &arena->current->next : &arena->first) = fresh;
        arena->bytes += size;
        chunk = fresh;
    }
    enter(arena, chunk);
    return tpi_arena_take(arena, bytes);
}

void *tpi_arena_array(tpi_arena *arena, size_t count, size_t size) {
    size_t bytes;
    if (!tpi_mul_size(count, size, &bytes) || bytes > SIZE_MAX - 8) {
        tpi_fail(TP_ENOMEM, "out of memory: %zu elements of %zu bytes overflow", count, size);
        return NULL;
    }
    void *array = tpi_arena_take(arena, bytes);
    if (array) memset(array, 0, bytes);
    return array;
}

void tpi_arena_rewind(tpi_arena *arena, void *at) {
    const char *from = at;
    tpi_chunk *chunk = arena->first;
    while (from <= (char *)chunk || from >= (char *)chunk + chunk->bytes) chunk = chunk->next;
    enter(arena, chunk);
    arena->next = at;
}

void tpi_arena_reset(tpi_arena *arena, size_t keep) {
    size_t kept = 0;
    for (tpi_chunk **link = &arena->first, *chunk; (chunk = *link);) {
        if (kept + chunk->bytes <= keep) {
            kept += chunk->bytes;
            link = &chunk->next;
        } else {
            *link = chunk->next;
            tpi_free(chunk);
        }
    }
    arena->bytes = kept;
    arena->current = NULL;
    arena->next = arena->end = NULL;
    if (arena->first) enter(arena, arena->first);
}

void tpi_arena_release(tpi_arena *arena) {
    tpi_arena_reset(arena, 0);
}
