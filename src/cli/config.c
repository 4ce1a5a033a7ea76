/* The configuration file: a YAML mapping from names of options to their values, read with libfyaml.
 *
 * Every key must be an option's name: one that is not is an error with its line and the nearest name, since a
 * misspelt key that is passed over costs a training run. */
#include "options.h"

#include <errno.h>
#include <libfyaml.h>
#include <string.h>

#define MOST_BYTES (1 << 20)

typedef struct reader {
    const option_table *table;
    const char *path;
    const bool *given;
    bool *seen; /* rows that the file set */
    void *values;
} reader;

static int line_of(struct fy_node *node) {
    const struct fy_mark *mark = fy_token_start_mark(fy_node_get_scalar_token(node));
    return mark ? mark->line + 1 : 0;
}

static char *text_of(struct fy_node *node) {
    size_t length = 0;
    const char *text = fy_node_get_scalar(node, &length);
    return text ? cli_strndup(text, length) : NULL;
}

static int unknown_key(const reader *r, const char *key, int line) {
    const char *guess = option_nearest(r->table, key);
    return cli_fail(EXIT_USAGE, "%s:%d: unknown key \"%s\"%s%s%s", r->path, line, key,
                    guess ? "; did you mean \"" : "", guess ? guess : "", guess ? "\"?" : "");
}

static int set_items(const reader *r, const option_row *row, const char *where, struct fy_node *list) {
    if (row->kind != OPTION_LIST && row->kind != OPTION_REPEATED)
        return cli_fail(EXIT_USAGE, "%s: expected one value, got a list", where);
    void *at = NULL;
    for (struct fy_node *item; (item = fy_node_sequence_iterate(list, &at));) {
        const char *text = fy_node_is_scalar(item) && !fy_node_is_alias(item) ? text_of(item) : NULL;
        if (!text) return cli_fail(EXIT_USAGE, "%s: expected a list of texts", where);
        const int code = option_set(row, r->values, where, text);
        if (code) return code;
    }
    return 0;
}

static int set_pair(const reader *r, struct fy_node *key_node, struct fy_node *value) {
    const char *key = key_node && fy_node_is_scalar(key_node) ? text_of(key_node) : NULL;
    if (!key) return cli_fail(EXIT_FILE, "%s: a key is no text", r->path);
    const int line = line_of(key_node);
    const option_row *row = option_find(r->table, key, strlen(key));
    if (!row) return unknown_key(r, key, line);
    if (row->line_only)
        return cli_fail(EXIT_USAGE, "%s:%d: %s belongs on the command line", r->path, line, row->name);
    const size_t index = (size_t)(row - r->table->rows);
    if (r->seen[index])
        return cli_fail(EXIT_USAGE, "%s:%d: %s is set twice, by another of its names", r->path, line,
                        row->name);
    r->seen[index] = true;
    if (r->given[index] || !value || fy_node_is_null(value)) return 0;
    const char *where = cli_asprintf("%s:%d: %s", r->path, line, key);
    if (fy_node_is_sequence(value)) return set_items(r, row, where, value);
    if (fy_node_is_alias(value)) return cli_fail(EXIT_USAGE, "%s: expected a value, got an alias", where);
    const char *text = fy_node_is_scalar(value) ? text_of(value) : NULL;
    if (!text) return cli_fail(EXIT_USAGE, "%s: expected a value, got a mapping", where);
    return option_set(row, r->values, where, text);
}

static int set_all(const reader *r, struct fy_document *document) {
    struct fy_node *root = fy_document_root(document);
    if (!root || fy_node_is_null(root)) return 0;
    if (!fy_node_is_mapping(root)) return cli_fail(EXIT_FILE, "%s: expected a mapping of options", r->path);
    void *at = NULL;
    for (struct fy_node_pair *pair; (pair = fy_node_mapping_iterate(root, &at));) {
        const int code = set_pair(r, fy_node_pair_key(pair), fy_node_pair_value(pair));
        if (code) return code;
    }
    return 0;
}

/* No document came of it: for an error, or because the file holds nothing, which sets nothing. */
static int explain(const char *path, struct fy_diag *diag) {
    void *at = NULL;
    const struct fy_diag_error *error = fy_diag_errors_iterate(diag, &at);
    if (!error) return 0;
    return cli_fail(EXIT_FILE, "%s:%d:%d: %s", path, error->line, error->column, error->msg);
}

/* One document of options: aliases are not followed, for a few of them can name gigabytes. */
static int read_text(const reader *r, const char *text, size_t length, struct fy_diag *diag) {
    const struct fy_parse_cfg config = {.flags = FYPCF_QUIET, .diag = diag};
    struct fy_document *document = fy_document_build_from_string(&config, text, length);
    if (!document) return explain(r->path, diag);
    const int code = set_all(r, document);
    fy_document_destroy(document);
    return code;
}

/* Where a line begins with `mark`, the number of that line; else 0. */
static int line_that_begins(const char *text, const char *mark, int from) {
    int line = 1;
    for (const char *at = text; at; at = strchr(at, '\n'), at = at ? at + 1 : NULL, line++)
        if (line >= from && strncmp(at, mark, strlen(mark)) == 0) return line;
    return 0;
}

/* What YAML has and options do not need would be passed over without a word. */
static int check_text(const char *path, const char *text, size_t length) {
    if (strlen(text) != length) return cli_fail(EXIT_FILE, "%s: expected a text in UTF-8", path);
    const int line = line_that_begins(text, "...", 1), second = line_that_begins(text, "---", 2);
    if (line || second)
        return cli_fail(EXIT_FILE, "%s:%d: expected one document of options", path, line ? line : second);
    return 0;
}

static int read_file(const reader *r, FILE *file, struct fy_diag *diag) {
    char *text = cli_alloc(MOST_BYTES + 2, 1);
    const size_t length = fread(text, 1, MOST_BYTES + 1, file);
    if (ferror(file)) return cli_fail(EXIT_FILE, "%s: %s", r->path, strerror(errno));
    if (length > MOST_BYTES) return cli_fail(EXIT_FILE, "%s: larger than %d bytes", r->path, MOST_BYTES);
    const int code = check_text(r->path, text, length);
    return code ? code : read_text(r, text, length, diag);
}

int config_read(const option_table *table, const char *path, const bool *given, void *values) {
    const reader r = {table, path, given, cli_alloc(table->count, sizeof(bool)), values};
    FILE *file = fopen(path, "re");
    if (!file) return cli_fail(EXIT_FILE, "%s: %s", path, strerror(errno));
    struct fy_diag_cfg diag_config;
    fy_diag_cfg_default(&diag_config);
    diag_config.fp = NULL;
    struct fy_diag *diag = fy_diag_create(&diag_config);
    if (diag) fy_diag_set_collect_errors(diag, true);
    const int code = diag ? read_file(&r, file, diag) : cli_fail(EXIT_MEMORY, "out of memory");
    if (diag) fy_diag_destroy(diag);
    fclose(file);
    return code;
}
