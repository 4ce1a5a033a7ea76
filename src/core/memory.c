/* Block memory by size class. A class is a power of two in four steps, so that at most a quarter is slack and
 * a freed block fits the next tensor of about its size. */
#include "core/memory.h"
#include "core/alloc.h"
#include "core/error.h"

#include <pthread.h>
#include <stdlib.h>

#define SMALLEST   ((size_t)64)
#define CLASSES    200
#define KEEP_BYTES ((uint64_t)256 << 20) /* kept for reuse at most, beyond one block a class */

typedef struct block {
    struct block *next;
} block;

struct tpi_memory {
    pthread_mutex_t lock;
    uint64_t limit;
    tpi_memory_stats stats;
    block *kept[CLASSES];
};

/* Sizes 64, 80, 96, 112, 128, 160, ...: class c has (4 + c % 4) << (c / 4 + 4) bytes. */
static int class_of(size_t bytes, size_t *rounded) {
    if (bytes <= SMALLEST) return *rounded = SMALLEST, 0;
    int shift = 63 - __builtin_clzll(bytes - 1) - 2; /* the top three bits of bytes - 1 */
    size_t quarter = (bytes - 1) >> shift;           /* 4 ... 7 */
    *rounded = (quarter + 1) << shift;
    return (shift - 4) * 4 + (int)quarter - 4 + 1;
}

size_t tpi_memory_block_bytes(size_t bytes) {
    size_t rounded = 0;
    if (bytes <= SIZE_MAX / 4) class_of(bytes, &rounded);
    return rounded ? rounded : bytes;
}

tp_status tpi_memory_create(tpi_memory **out, uint64_t limit) {
    tpi_memory *memory = tpi_calloc(1, sizeof *memory);
    *out = memory;
    if (!memory) return TP_ENOMEM;
    memory->limit = limit;
    pthread_mutex_init(&memory->lock, NULL);
    return TP_OK;
}

static void trim(tpi_memory *memory) {
    for (int c = 0; c < CLASSES; c++)
        for (block *b; (b = memory->kept[c]);) {
            memory->kept[c] = b->next;
            tpi_free(b);
        }
    memory->stats.kept = 0;
}

void tpi_memory_destroy(tpi_memory *memory) {
    if (!memory) return;
    trim(memory);
    pthread_mutex_destroy(&memory->lock);
    tpi_free(memory);
}

static tp_status over_limit(const tpi_memory *memory, size_t bytes) {
    return tpi_fail(
        TP_ELIMIT, "memory: needs %.1f MiB more, %.1f MiB in use, limit %.1f MiB: raise the limit",
        (double)bytes / 0x1p20, (double)memory->stats.now / 0x1p20, (double)memory->limit / 0x1p20);
}

static void *new_block(size_t bytes) {
    void *data = tpi_aligned_alloc(bytes);
    if (data) tpi_advise_huge(data, bytes);
    return data;
}

tp_status tpi_memory_take(tpi_memory *memory, size_t bytes, void **out) {
    size_t rounded;
    *out = NULL;
    if (bytes > SIZE_MAX / 4)
        return tpi_fail(TP_ENOMEM, "out of memory: could not allocate %zu bytes", bytes);
    int c = class_of(bytes, &rounded);
    pthread_mutex_lock(&memory->lock);
    tpi_memory_stats *stats = &memory->stats;
    block *found = memory->kept[c];
    if (found) {
        memory->kept[c] = found->next;
        stats->kept -= rounded;
    }
    bool over = memory->limit && stats->now + rounded > memory->limit;
    if (!over && memory->limit && stats->now + stats->kept + rounded > memory->limit) trim(memory);
    void *data = found;
    tp_status status = TP_OK;
    if (over) {
        status = over_limit(memory, rounded);
        tpi_free(found);
        data = NULL;
    } else if (!data && !(data = new_block(rounded))) {
        trim(memory);
        if (!(data = new_block(rounded))) status = TP_ENOMEM;
    }
    if (data) {
        stats->now += rounded;
        stats->blocks++;
        if (stats->now > stats->peak) stats->peak = stats->now;
    }
    pthread_mutex_unlock(&memory->lock);
    *out = data;
    return status;
}

void tpi_memory_give(tpi_memory *memory, void *data, size_t bytes) {
    if (!data) return;
    size_t rounded;
    int c = class_of(bytes, &rounded);
    pthread_mutex_lock(&memory->lock);
    memory->stats.now -= rounded;
    memory->stats.blocks--;
    bool keep = !memory->kept[c] || memory->stats.kept + rounded <= KEEP_BYTES;
    if (keep) {
        block *b = data;
        b->next = memory->kept[c];
        memory->kept[c] = b;
        memory->stats.kept += rounded;
    }
    pthread_mutex_unlock(&memory->lock);
    if (!keep) tpi_free(data);
}

void tpi_memory_trim(tpi_memory *memory) {
    pthread_mutex_lock(&memory->lock);
    trim(memory);
    pthread_mutex_unlock(&memory->lock);
}

tpi_memory_stats tpi_memory_get_stats(tpi_memory *memory) {
    pthread_mutex_lock(&memory->lock);
    tpi_memory_stats stats = memory->stats;
    pthread_mutex_unlock(&memory->lock);
    return stats;
}

uint64_t tpi_memory_limit(const tpi_memory *memory) {
    return memory->limit;
}
