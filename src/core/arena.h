/* Arenas: many small allocations, freed together.
 *
 * Invariant: memory from an arena is valid until the arena is reset or released; it is aligned to 8 bytes. */
#ifndef TAPER_CORE_ARENA_H
#define TAPER_CORE_ARENA_H

#include <stddef.h>

typedef struct tpi_chunk tpi_chunk;

typedef struct tpi_arena {
    tpi_chunk *first, *current;
    char *next, *end; /* free bytes of the current chunk */
    size_t bytes;     /* taken from the system */
} tpi_arena;

/* NULL, with the message set, when memory is short. Contents undefined. */
void *tpi_arena_slow(tpi_arena *arena, size_t bytes);

static inline void *tpi_arena_take(tpi_arena *arena, size_t bytes) {
    bytes = (bytes + 7) & ~(size_t)7;
    if (bytes > (size_t)(arena->end - arena->next)) return tpi_arena_slow(arena, bytes);
    void *taken = arena->next;
    arena->next += bytes;
    return taken;
}

/* Cleared, for `count` elements; NULL also when the size overflows. */
void *tpi_arena_array(tpi_arena *arena, size_t count, size_t size);

/* Forgets what was taken from `at` on, which was taken from this arena; its chunks are used again. */
void tpi_arena_rewind(tpi_arena *arena, void *at);

/* Forgets the contents; keeps up to `keep` bytes of chunks for reuse. */
void tpi_arena_reset(tpi_arena *arena, size_t keep);
void tpi_arena_release(tpi_arena *arena);

#endif
