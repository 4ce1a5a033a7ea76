/* Devices: where tensors live, and how to reach memory that the host cannot address.
 *
 * The CPU's memory is the host's: its `calls` are NULL. Any other device does its work in one order, behind
 * the host's back. A mark is a point in that order; it is reached when all that was queued before it has
 * ended. Invariants: memory that is given back may be handed out at once, for its next use is queued behind
 * its last; what `write` was given may be changed when it returns. */
#ifndef TAPER_CORE_DEVICE_H
#define TAPER_CORE_DEVICE_H

#include "core/memory.h"
#include "taper/context.h"

/* Bytes of the host's memory, and where they go. */
typedef struct tpi_piece {
    size_t at; /* bytes from the beginning of what is written */
    const void *from;
    size_t bytes;
} tpi_piece;

typedef struct tpi_device_calls {
    tp_status (*allocate)(void *state, size_t bytes, void **out); /* TP_ENOMEM when there is no more */
    void (*release)(void *state, void *block);
    tp_status (*write)(void *state, void *to, const tpi_piece *pieces, int n); /* see below */
    tp_status (*clear)(void *state, void *to, size_t bytes);
    tp_status (*copy)(void *state, void *to, const void *from, size_t bytes); /* within the device */

    /* Copies to the host when the mark is reached, whatever became of the evaluation there: `wait` tells. */
    tp_status (*read)(void *state, void *to, const void *from, size_t bytes, uint64_t mark);

    uint64_t (*mark)(void *state);                 /* behind all that is queued now */
    tp_status (*wait)(void *state, uint64_t mark); /* fails as the evaluation at that mark did */
    void (*describe_memory)(void *state, uint64_t *free_bytes, uint64_t *total_bytes);
    void (*close)(void *state); /* waits for what is queued */
} tpi_device_calls;

struct tp_device {
    tp_context *context;
    tpi_memory *memory; /* where storages come from */
    const struct tpi_backend *backend;
    const tpi_device_calls *calls; /* NULL: host memory */
    void *state;                   /* the calls' */
    int index;                     /* GPU number, -1 for the CPU */
    char name[16];
    char description[112];
};

/* Whether the host reads and writes the device's memory through plain pointers. */
static inline bool tpi_is_host(const tp_device *device) {
    return !device->calls;
}

/* Copies from host memory; `from` NULL: zeros. */
tp_status tpi_device_write(tp_device *device, void *to, const void *from, size_t bytes);

/* Copies pieces, in ascending order, to their places behind `to`. What lies between two of them is lost. */
tp_status tpi_device_write_pieces(tp_device *device, void *to, const tpi_piece *pieces, int n);

/* Copies to host memory, when the mark is reached. */
tp_status tpi_device_read(tp_device *device, void *to, const void *from, size_t bytes, uint64_t mark);

#endif
