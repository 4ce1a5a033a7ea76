/* Matching targets. Names and groups are plain comparisons; the rest are regular expressions. */
#include "models/targets.h"

#include "core/alloc.h"
#include "core/error.h"
#include "core/regex.h"

#include <stdio.h>
#include <string.h>

#define NEAREST 3

tpi_target tpi_target_of(const char *word) {
    static const struct {
        const char *word;
        tpi_target target;
    } words[] = {{"all-linear", {TPI_TARGET_ALL, NULL}},
                 {"attn", {TPI_TARGET_GROUP, "self_attn"}},
                 {"mlp", {TPI_TARGET_GROUP, "mlp"}}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(word, words[i].word) == 0) return words[i].target;
    if (strncmp(word, "re:", 3) == 0) return (tpi_target){TPI_TARGET_REGEX, word + 3};
    return (tpi_target){TPI_TARGET_NAME, word};
}

/* ---- expressions ---- */

typedef struct expression {
    tpi_regex *regex;
    tpi_matcher *matcher;
} expression;

static void free_expression(expression *e) {
    tpi_regex_destroy(e->regex);
    tpi_matcher_destroy(e->matcher);
}

static tp_status compile(expression *e, const char *text) {
    TPI_TRY(tpi_matcher_create(&e->matcher));
    return tpi_regex_create(text, strlen(text), TPI_REGEX_WHOLE, TP_EINVAL, &e->regex);
}

static tp_status compile_target(expression *e, const tpi_target *target) {
    if (target->kind != TPI_TARGET_PATTERN) return compile(e, target->text);
    char *text = tpi_asprintf("(.*\\.)?(%s)", target->text);
    if (!text) return TP_ENOMEM;
    tp_status status = compile(e, text);
    tpi_free(text);
    return status;
}

static tp_status match_expression(const expression *e, const char *path, bool *out) {
    size_t start, end;
    return tpi_regex_find(e->regex, e->matcher, path, strlen(path), 0, out, &start, &end);
}

/* ---- targets ---- */

/* The path equals the name or ends in "." and the name. */
static bool names(const char *name, const char *path) {
    size_t length = strlen(name), whole = strlen(path);
    if (length == 0 || length > whole || strcmp(path + whole - length, name) != 0) return false;
    return length == whole || path[whole - length - 1] == '.';
}

/* The path has a component of this name. */
static bool has_component(const char *path, const char *name) {
    size_t length = strlen(name);
    for (const char *p = path; p; p = strchr(p, '.') ? strchr(p, '.') + 1 : NULL)
        if (strncmp(p, name, length) == 0 && (p[length] == '.' || p[length] == 0)) return true;
    return false;
}

static tp_status match(const tpi_target *target, const expression *e, const tp_linear *linear, bool *out) {
    switch (target->kind) {
    case TPI_TARGET_ALL:
        *out = linear->layer >= 0;
        return TP_OK;
    case TPI_TARGET_GROUP:
        *out = has_component(linear->path, target->text);
        return TP_OK;
    case TPI_TARGET_NAME:
        *out = names(target->text, linear->path);
        return TP_OK;
    case TPI_TARGET_REGEX:
    case TPI_TARGET_PATTERN:
        break;
    }
    return match_expression(e, linear->path, out);
}

tp_status tpi_target_walk(const tpi_target *target, const tp_linear *linears, int count,
                          void (*visit)(void *user, int k), void *user, int *matches) {
    expression e = {NULL, NULL};
    tp_status status = TP_OK;
    int found = 0;
    if (target->kind == TPI_TARGET_REGEX || target->kind == TPI_TARGET_PATTERN)
        status = compile_target(&e, target);
    for (int k = 0; status == TP_OK && k < count; k++) {
        bool hit = false;
        status = match(target, &e, &linears[k], &hit);
        if (!hit) continue;
        visit(user, k);
        found++;
    }
    free_expression(&e);
    if (matches) *matches = found;
    return status;
}

/* ---- suggestions ---- */

#define WORD 64

static const char *last_component(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

/* Insertions, deletions and replacements that turn a into b (Levenshtein 1966); both cut to WORD bytes. */
static int distance(const char *a, const char *b) {
    size_t n = strnlen(a, WORD), m = strnlen(b, WORD);
    int row[WORD + 1];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int replaced = diagonal + (a[i - 1] != b[j - 1]),
                best = row[j] < row[j - 1] ? row[j] : row[j - 1];
            diagonal = row[j];
            row[j] = replaced < best + 1 ? replaced : best + 1;
        }
    }
    return row[m];
}

typedef struct near_name {
    const char *name;
    int distance;
} near_name;

/* Keeps the NEAREST different names, the nearest first. */
static void consider(near_name near[NEAREST], near_name candidate) {
    for (int i = 0; i < NEAREST; i++)
        if (near[i].name && strcmp(near[i].name, candidate.name) == 0) return;
    for (int i = 0; i < NEAREST; i++) {
        if (near[i].name && near[i].distance <= candidate.distance) continue;
        near_name moved = near[i];
        near[i] = candidate;
        candidate = moved;
    }
}

tp_status tpi_target_fail(const char *what, const char *text, const tp_linear *linears, int count) {
    near_name near[NEAREST] = {{NULL, 0}};
    char list[NEAREST * (WORD + 2) + 1] = "";
    size_t used = 0;
    for (int k = 0; k < count; k++) {
        const char *name = last_component(linears[k].path);
        consider(near, (near_name){name, distance(last_component(text), name)});
    }
    for (int i = 0; i < NEAREST && near[i].name && used < sizeof list; i++)
        used +=
            (size_t)snprintf(list + used, sizeof list - used, "%s%.*s", i ? ", " : "", WORD, near[i].name);
    return tpi_fail(TP_EINVAL, "%s \"%.100s\" matches no linear layer of the model; nearest are %s", what,
                    text, list);
}
