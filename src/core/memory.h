/* The memory of one device: blocks by size class, kept for reuse, counted against a limit.
 *
 * Invariant: now = bytes handed out; peak ≥ now; now + kept ≤ limit after an allocation, kept blocks are
 * freed first. Blocks are aligned to TPI_ALIGN. Safe from several threads. */
#ifndef TAPER_CORE_MEMORY_H
#define TAPER_CORE_MEMORY_H

#include "taper/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct tpi_memory tpi_memory;

typedef struct tpi_memory_stats {
    uint64_t now, peak, kept, blocks;
} tpi_memory_stats;

/* Where blocks come from: NULL for the host's memory, else a device's. */
typedef struct tpi_memory_source {
    void *state;
    tp_status (*allocate)(void *state, size_t bytes, void **out);
    void (*release)(void *state, void *block);
} tpi_memory_source;

tp_status tpi_memory_create(tpi_memory **out, uint64_t limit,
                            const tpi_memory_source *source); /* limit 0: none */
void tpi_memory_destroy(tpi_memory *memory);

/* TP_ELIMIT when bytes beyond the limit are asked for, TP_ENOMEM when the system has none. */
tp_status tpi_memory_take(tpi_memory *memory, size_t bytes, void **out);

/* What taking `bytes` adds to `now`: the size of the block. */
size_t tpi_memory_block_bytes(size_t bytes);
void tpi_memory_give(tpi_memory *memory, void *block, size_t bytes);
void tpi_memory_trim(tpi_memory *memory);
tpi_memory_stats tpi_memory_get_stats(tpi_memory *memory);
uint64_t tpi_memory_limit(const tpi_memory *memory);

#endif
