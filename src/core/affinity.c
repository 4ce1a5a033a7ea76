/* Lists of processors, read against what the system allows. */
#include "core/affinity.h"
#include "core/alloc.h"
#include "core/error.h"

#include <ctype.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static tp_status add(tpi_affinity *a, const cpu_set_t *allowed, long processor) {
    if (processor >= CPU_SETSIZE || !CPU_ISSET((size_t)processor, allowed))
        return tpi_fail(TP_EINVAL, "affinity: this process may not use processor %ld", processor);
    if (a->count == CPU_SETSIZE) return tpi_fail(TP_EINVAL, "affinity: more than %d processors", CPU_SETSIZE);
    a->processors[a->count++] = (int)processor;
    return TP_OK;
}

static bool number(const char **at, long *out) {
    char *end = NULL;
    if (!isdigit((unsigned char)**at)) return false;
    *out = strtol(*at, &end, 10);
    *at = end;
    return true;
}

/* "4" or "0-3", and the comma behind it. */
static tp_status add_range(tpi_affinity *a, const cpu_set_t *allowed, const char **at) {
    long first = 0, last;
    bool valid = number(at, &first);
    last = first;
    if (valid && **at == '-') ++*at, valid = number(at, &last) && last >= first;
    if (valid && **at == ',') ++*at, valid = **at != '\0';
    if (!valid || (**at && !isdigit((unsigned char)**at)))
        return tpi_fail(TP_EINVAL, "affinity: expected none, all, or a list such as 0-3,8");
    for (long p = first; p <= last; p++) TPI_TRY(add(a, allowed, p));
    return TP_OK;
}

static tp_status fill(tpi_affinity *a, const cpu_set_t *allowed, const char *text) {
    if (strcmp(text, "all") == 0) {
        for (int p = 0; p < CPU_SETSIZE; p++)
            if (CPU_ISSET((size_t)p, allowed)) a->processors[a->count++] = p;
        return TP_OK;
    }
    do TPI_TRY(add_range(a, allowed, &text));
    while (*text);
    return TP_OK;
}

tp_status tpi_affinity_read(const char *text, tpi_affinity *out) {
    cpu_set_t allowed;
    *out = (tpi_affinity){0};
    if (!text || strcmp(text, "none") == 0) return TP_OK;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return tpi_fail(TP_EUNSUPPORTED, "affinity: more than %d processors", CPU_SETSIZE);
    if (!(out->processors = tpi_malloc(CPU_SETSIZE * sizeof(int)))) return TP_ENOMEM;
    tp_status status = fill(out, &allowed, text);
    if (status != TP_OK) tpi_affinity_free(out);
    return status;
}

void tpi_affinity_free(tpi_affinity *affinity) {
    tpi_free(affinity->processors);
    *affinity = (tpi_affinity){0};
}

tp_status tpi_affinity_bind(const tpi_affinity *affinity, tpi_threads *threads) {
    for (int i = 1; affinity->count > 0 && i < tpi_threads_running(threads); i++)
        TPI_TRY(tpi_threads_bind(threads, i, affinity->processors[i % affinity->count]));
    return TP_OK;
}
