/* Block memory by size class. A class is a power of two in four steps, in sixteen for large blocks, so that
 * little is slack and a freed block fits the next tensor of about its size. */
#include "core/memory.h"
#include "core/alloc.h"
#include "core/error.h"

#include <pthread.h>
#include <stdlib.h>

#define SMALLEST ((size_t)64)
#define FINE_BYTES                                                                                           \
    ((size_t)1 << 20) /* above it classes are a sixteenth of a power of two apart, not a quarter */
#define FINE_CLASS 56 /* the first of them */
#define CLASSES    768
#define KEEP_BYTES ((uint64_t)256 << 20) /* kept for reuse at most, beyond one block a class */

/* A kept block. On the host it lies in the block itself; a device's memory cannot hold it. */
typedef struct block {
    struct block *next;
    void *data;
} block;

struct tpi_memory {
    pthread_mutex_t lock;
    uint64_t limit;
    tpi_memory_source source; /* allocate NULL: the host */
    tpi_memory_stats stats;
    block *kept[CLASSES];
    uint64_t beyond; /* bytes of them beyond the one of each class that is kept in any case */
    block *spare;    /* blocks of a device that hold nothing now */
};

/* `steps` classes to a power of two: the number above that of 2^low, whose multiples the sizes are. */
static int class_above(size_t bytes, int steps_log2, int low, size_t *rounded) {
    int shift = 63 - __builtin_clzll(bytes - 1) - steps_log2;
    size_t step = (bytes - 1) >> shift; /* steps ... 2 steps - 1 */
    *rounded = (step + 1) << shift;
    return ((shift + steps_log2 - low) << steps_log2) + (int)step - (1 << steps_log2) + 1;
}

/* Sizes 64, 80, 96, 112, 128, 160, ..., 1 MiB, 1 MiB + 64 KiB, ... */
static int class_of(size_t bytes, size_t *rounded) {
    if (bytes <= SMALLEST) return *rounded = SMALLEST, 0;
    if (bytes <= FINE_BYTES) return class_above(bytes, 2, 6, rounded);
    return FINE_CLASS + class_above(bytes, 4, 20, rounded);
}

size_t tpi_memory_block_bytes(size_t bytes) {
    size_t rounded = 0;
    if (bytes <= SIZE_MAX / 4) class_of(bytes, &rounded);
    return rounded ? rounded : bytes;
}

tp_status tpi_memory_create(tpi_memory **out, uint64_t limit, const tpi_memory_source *source) {
    tpi_memory *memory = tpi_calloc(1, sizeof *memory);
    *out = memory;
    if (!memory) return TP_ENOMEM;
    memory->limit = limit;
    if (source) memory->source = *source;
    pthread_mutex_init(&memory->lock, NULL);
    return TP_OK;
}

/* ---- blocks ---- */

static void *new_host_block(size_t bytes) {
    void *data = tpi_aligned_alloc(bytes);
    if (data) tpi_advise_huge(data, bytes);
    return data;
}

static tp_status new_block(const tpi_memory *memory, size_t bytes, void **out) {
    if (memory->source.allocate) return memory->source.allocate(memory->source.state, bytes, out);
    return (*out = new_host_block(bytes)) ? TP_OK : TP_ENOMEM;
}

static void free_block(const tpi_memory *memory, void *data) {
    if (memory->source.release)
        memory->source.release(memory->source.state, data);
    else
        tpi_free(data);
}

/* Puts a block away for its class; false where too much is kept, or there is no memory to remember it. */
static bool keep_block(tpi_memory *memory, int c, size_t bytes, void *data) {
    const uint64_t beyond = memory->kept[c] ? bytes : 0;
    if (beyond && memory->beyond + beyond > KEEP_BYTES) return false;
    block *b = memory->source.allocate ? memory->spare : data;
    if (!b && !(b = tpi_malloc(sizeof *b))) return false;
    if (b == memory->spare) memory->spare = b->next;
    *b = (block){memory->kept[c], data};
    memory->kept[c] = b;
    memory->beyond += beyond;
    memory->stats.kept += bytes;
    return true;
}

/* NULL where no block of the class is kept. */
static void *kept_block(tpi_memory *memory, int c, size_t bytes) {
    block *b = memory->kept[c];
    if (!b) return NULL;
    void *data = b->data;
    memory->kept[c] = b->next;
    memory->stats.kept -= bytes;
    if (b->next) memory->beyond -= bytes;
    if (memory->source.allocate) {
        b->next = memory->spare;
        memory->spare = b;
    }
    return data;
}

static void trim(tpi_memory *memory) {
    for (int c = 0; c < CLASSES; c++)
        for (void *data; (data = kept_block(memory, c, 0));) free_block(memory, data);
    memory->stats.kept = memory->beyond = 0;
}

void tpi_memory_destroy(tpi_memory *memory) {
    if (!memory) return;
    trim(memory);
    for (block *b; (b = memory->spare);) {
        memory->spare = b->next;
        tpi_free(b);
    }
    pthread_mutex_destroy(&memory->lock);
    tpi_free(memory);
}

static tp_status over_limit(const tpi_memory *memory, size_t bytes) {
    return tpi_fail(
        TP_ELIMIT, "memory: needs %.1f MiB more, %.1f MiB in use, limit %.1f MiB: raise the limit",
        (double)bytes / 0x1p20, (double)memory->stats.now / 0x1p20, (double)memory->limit / 0x1p20);
}

tp_status tpi_memory_take(tpi_memory *memory, size_t bytes, void **out) {
    size_t rounded;
    *out = NULL;
    if (bytes > SIZE_MAX / 4)
        return tpi_fail(TP_ENOMEM, "out of memory: could not allocate %zu bytes", bytes);
    int c = class_of(bytes, &rounded);
    pthread_mutex_lock(&memory->lock);
    tpi_memory_stats *stats = &memory->stats;
    void *data = kept_block(memory, c, rounded);
    bool over = memory->limit && stats->now + rounded > memory->limit;
    if (!over && memory->limit && stats->now + stats->kept + rounded > memory->limit) trim(memory);
    tp_status status = TP_OK;
    if (over) {
        status = over_limit(memory, rounded);
        if (data) free_block(memory, data);
        data = NULL;
    } else if (!data && new_block(memory, rounded, &data) != TP_OK) {
        trim(memory);
        status = new_block(memory, rounded, &data);
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
    bool keep = keep_block(memory, c, rounded, data);
    pthread_mutex_unlock(&memory->lock);
    if (!keep) free_block(memory, data);
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
