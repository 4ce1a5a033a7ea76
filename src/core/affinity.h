/* Which processors a pool's workers are bound to.
 *
 * The caller's thread is the program's own, so it is left alone: the first processor of a list is meant for
 * it, and the workers take the others in turn, beginning again where the list ends. */
#ifndef TAPER_CORE_AFFINITY_H
#define TAPER_CORE_AFFINITY_H

#include "core/threads.h"

typedef struct tpi_affinity {
    int count; /* 0: nothing is bound */
    int *processors;
} tpi_affinity;

/* Reads "none" (or NULL), "all" for every processor this process may use, or a list such as "0-3,8".
 * TP_EINVAL for another text and for a processor that the process may not use. Free with tpi_affinity_free.
 */
tp_status tpi_affinity_read(const char *text, tpi_affinity *out);
void tpi_affinity_free(tpi_affinity *affinity);

tp_status tpi_affinity_bind(const tpi_affinity *affinity, tpi_threads *threads);

#endif
