/* Which linear layers an adapter is for: names, groups and regular expressions against the layers' paths.
 *
 * Semantics of PEFT: a name matches the path that equals it or ends in "." and the name; an expression
 * matches a whole path; the key of a rank or alpha pattern matches as (.*\.)?(key)$ from the path's start. */
#ifndef TAPER_MODELS_TARGETS_H
#define TAPER_MODELS_TARGETS_H

#include "taper/adapter.h"

typedef enum tpi_target_kind {
    TPI_TARGET_ALL,   /* every layer but the output head */
    TPI_TARGET_GROUP, /* text: "self_attn" or "mlp" */
    TPI_TARGET_NAME,
    TPI_TARGET_REGEX,
    TPI_TARGET_PATTERN
} tpi_target_kind;

typedef struct tpi_target {
    tpi_target_kind kind;
    const char *text; /* borrowed */
} tpi_target;

/* What the words of tp_adapter_options mean: all-linear, attn, mlp, re:REGEX, or a name. */
tpi_target tpi_target_of(const char *word);

/* Calls `visit(user, k)` for each of the `count` layers that the target matches, in order. *matches, if not
 * NULL, is their number. TP_EINVAL for an expression that does not compile or backtracks without end. */
tp_status tpi_target_walk(const tpi_target *target, const tp_linear *linears, int count,
                          void (*visit)(void *user, int k), void *user, int *matches);

/* TP_EINVAL: `what` "text" matches no linear layer, with the nearest names. */
tp_status tpi_target_fail(const char *what, const char *text, const tp_linear *linears, int count);

#endif
