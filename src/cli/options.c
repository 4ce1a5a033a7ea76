/* The command line, through argp.
 *
 * The trick: argp's table is made from ours, an option's key being its row, so that names, aliases, help and
 * defaults have one source. argp is kept silent; what it refuses is explained here in one line. */
#include "options.h"

#include <argp.h>
#include <string.h>

#define FIRST_KEY 256 /* above every letter */
#define HELP_KEY  'h'

typedef struct parse {
    const option_table *table;
    void *values;
    bool *given;
    bool help;
    int next;               /* the argument behind the one that argp refused */
    const option_row *bare; /* the option just before, where it came without the value that it may have */
    int code;               /* of the error that was explained; 0: none */
} parse;

/* ---- names ---- */

static bool same_name(const char *a, const char *b, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (a[i] != b[i] && !(a[i] == '-' && b[i] == '_')) return false;
    return true;
}

/* The row's names in turn, from NULL on: its own, then its aliases. NULL behind the last. `length` is in and
 * out; the name is borrowed and `length` bytes. */
static const char *next_name(const option_row *row, const char *name, size_t *length) {
    if (row->kind == OPTION_HEADING) return NULL;
    if (!name)
        name = row->name;
    else if (name == row->name)
        name = row->aliases;
    else
        name += *length + (name[*length] == ' ');
    if (!name || !*name) return NULL;
    *length = strcspn(name, " ");
    return name;
}

const option_row *option_find(const option_table *table, const char *name, size_t length) {
    for (size_t i = 0; i < table->count; i++) {
        size_t n = 0;
        for (const char *own = NULL; (own = next_name(&table->rows[i], own, &n));)
            if (n == length && same_name(own, name, length)) return &table->rows[i];
    }
    return NULL;
}

static size_t name_count(const option_table *table) {
    size_t count = 0, n = 0;
    for (size_t i = 0; i < table->count; i++)
        for (const char *name = NULL; (name = next_name(&table->rows[i], name, &n));) count++;
    return count;
}

const char *option_nearest(const option_table *table, const char *name) {
    const char **names = cli_alloc(name_count(table), sizeof *names);
    size_t count = 0, n = 0;
    for (size_t i = 0; i < table->count; i++)
        for (const char *own = NULL; (own = next_name(&table->rows[i], own, &n));)
            names[count++] = cli_strndup(own, n);
    return nearest(name, names, count);
}

/* ---- argp's table ---- */

static int key_of(const option_table *table, const option_row *row) {
    return row->letter ? row->letter : FIRST_KEY + (int)(row - table->rows);
}

static const option_row *row_of(const option_table *table, int key) {
    for (size_t i = 0; i < table->count; i++)
        if (table->rows[i].kind != OPTION_HEADING && key_of(table, &table->rows[i]) == key)
            return &table->rows[i];
    return NULL;
}

static const char *help_of(const option_row *row, const void *defaults) {
    const char *value = option_default(row, defaults);
    return value ? cli_asprintf("%s [%s]", row->help, value) : row->help;
}

static struct argp_option *add_aliases(struct argp_option *out, const option_row *row) {
    size_t n = 0;
    const char *name = next_name(row, NULL, &n);
    while ((name = next_name(row, name, &n)))
        *out++ = (struct argp_option){.name = cli_strndup(name, n), .flags = OPTION_ALIAS | OPTION_HIDDEN};
    return out;
}

static struct argp_option *make_options(const option_table *table, const void *defaults) {
    struct argp_option *options = cli_alloc(table->count + name_count(table) + 2, sizeof *options),
                       *out = options;
    int group = 1;
    for (size_t i = 0; i < table->count; i++) {
        const option_row *row = &table->rows[i];
        if (row->kind == OPTION_HEADING) {
            *out++ = (struct argp_option){.doc = row->help, .group = ++group};
            continue;
        }
        *out++ = (struct argp_option){.name = row->name,
                                      .key = key_of(table, row),
                                      .arg = row->value  ? row->value
                                             : row->bare ? "BOOL"
                                                         : NULL,
                                      .flags = row->bare ? OPTION_ARG_OPTIONAL : 0,
                                      .doc = help_of(row, defaults),
                                      .group = group};
        out = add_aliases(out, row);
    }
    *out = (struct argp_option){.name = "help", .key = HELP_KEY, .doc = "Show this help", .group = group + 1};
    return options;
}

/* ---- parsing ---- */

static int unexpected(const parse *p, const char *text) {
    const char *command = p->table->command;
    if (!p->bare) return cli_fail(EXIT_USAGE, "%s: unexpected argument \"%s\"", command, text);
    return cli_fail(EXIT_USAGE, "%s: unexpected argument \"%s\"; did you mean --%s=%s?", command, text,
                    p->bare->name, text);
}

static int set_from_line(parse *p, const option_row *row, const char *text) {
    p->given[row - p->table->rows] = true;
    return option_set(row, p->values, cli_asprintf("--%s", row->name), text ? text : row->bare);
}

static error_t take(int key, char *text, struct argp_state *state) {
    parse *p = state->input;
    const option_row *row = NULL;
    if (key == ARGP_KEY_ERROR) p->next = state->next;
    if (key == HELP_KEY) p->help = true;
    if (key == HELP_KEY || key == ARGP_KEY_ERROR) return 0;
    if (key == ARGP_KEY_ARG) {
        const char *positional = p->table->positional;
        if (positional) row = option_find(p->table, positional, strlen(positional));
        if (!row || p->given[row - p->table->rows]) p->code = unexpected(p, text);
    } else {
        row = row_of(p->table, key);
        if (!row) return ARGP_ERR_UNKNOWN;
    }
    p->bare = text ? NULL : row;
    if (p->code == 0) p->code = set_from_line(p, row, text);
    return p->code ? EINVAL : 0;
}

/* The argument that argp stopped at: it says no more than that it stopped. */
static int explain(const option_table *table, const char *argument) {
    const char *command = table->command;
    if (argument[0] != '-') return cli_fail(EXIT_USAGE, "%s: wrong argument \"%s\"", command, argument);
    if (argument[1] != '-') {
        const bool known = row_of(table, (unsigned char)argument[strlen(argument) - 1]) != NULL;
        return cli_fail(EXIT_USAGE, "%s: %s: %s", command, argument,
                        known ? "needs a value" : "unknown option");
    }
    const char *name = argument + 2;
    const size_t length = strcspn(name, "=");
    const option_row *row = option_find(table, name, length);
    if (row && strncmp(row->name, name, length) != 0 && memchr(name, '_', length))
        return cli_fail(EXIT_USAGE, "%s: unknown option --%.*s; did you mean --%s?", command, (int)length,
                        name, row->name);
    if (row && name[length]) return cli_fail(EXIT_USAGE, "%s: --%s takes no value", command, row->name);
    if (row) return cli_fail(EXIT_USAGE, "%s: --%s needs a value", command, row->name);
    const char *guess = option_nearest(table, cli_strndup(name, length));
    return cli_fail(EXIT_USAGE, "%s: unknown option --%.*s%s%s%s", command, (int)length, name,
                    guess ? "; did you mean --" : "", guess ? guess : "", guess ? "?" : "");
}

static int read_config(parse *p) {
    if (!p->table->config) return 0;
    const option_row *row = option_find(p->table, p->table->config, strlen(p->table->config));
    const char *path;
    memcpy(&path, (char *)p->values + row->offset, sizeof path);
    return path ? config_read(p->table, path, p->given, p->values) : 0;
}

int options_parse(const option_table *table, int argc, char **argv, void *values) {
    parse p = {.table = table, .values = values, .given = cli_alloc(table->count, sizeof *p.given)};
    struct argp argp = {.options = make_options(table, values), .parser = take, .doc = table->summary};
    if (table->positional) argp.args_doc = "[MODEL]";
    if (argp_parse(&argp, argc, argv, ARGP_SILENT | ARGP_IN_ORDER, NULL, &p) != 0 && p.code == 0 && !p.help)
        p.code = explain(table, argv[p.next > 1 && p.next <= argc ? p.next - 1 : argc - 1]);
    if (p.code) return p.code;
    if (p.help) {
        argp_help(&argp, stdout, ARGP_HELP_SHORT_USAGE | ARGP_HELP_DOC | ARGP_HELP_LONG,
                  cli_asprintf("taper %s", table->command));
        return EXIT_OK;
    }
    const int code = read_config(&p);
    return code ? code : OPTIONS_GO;
}
