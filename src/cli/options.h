/* Options of a subcommand: one table gives its command line, its configuration file and its help.
 *
 * Invariant: an option's value lies at `offset` in the subcommand's structure, which holds the defaults
 * before options_parse. What the command line gives beats the file, which beats the defaults. */
#ifndef TAPER_CLI_OPTIONS_H
#define TAPER_CLI_OPTIONS_H

#include "cli.h"

typedef enum option_kind {                 /* the C type of its value */
                           OPTION_HEADING, /* none: `help` is a heading of the help */
                           OPTION_FLAG,    /* bool */
                           OPTION_INT,     /* int64_t, or uint64_t: whole numbers from 0 to 2^53 */
                           OPTION_REAL,    /* double */
                           OPTION_TEXT,    /* const char *; NULL: not given */
                           OPTION_CHOICE,  /* int or enum: the index in `choices` */
                           OPTION_BYTES,   /* uint64_t: "4G", "512MiB" */
                           OPTION_LIST,    /* text_list, parted by commas but for "re:..." */
                           OPTION_REPEATED /* text_list, one text each time it is given */
} option_kind;

typedef struct text_list {
    const char **items;
    int count;
} text_list;

typedef struct option_row {
    option_kind kind;
    const char *name; /* "batch-size"; in a file "_" does for "-" */
    size_t offset;
    const char *value, *help;   /* of the help: what the value is called, and what the option does */
    int letter;                 /* 0: none */
    const char *aliases;        /* further names, parted by spaces */
    const char *bare;           /* its value when it is given without one; NULL: it needs one */
    const char *const *choices; /* NULL at the end */
    bool line_only;             /* not in a file */
} option_row;

/* A row for `field` of the structure `type`; behind the help stand further members, as `.letter = 'm'`. */
#define OPTION_ROW(kind_, name_, type_, field_, value_, ...)                                                 \
    {                                                                                                        \
        .kind = OPTION_##kind_, .name = name_, .offset = offsetof(type_, field_), .value = value_,           \
        .help = __VA_ARGS__                                                                                  \
    }

#define OPTION_GROUP(heading)                                                                                \
    { .kind = OPTION_HEADING, .help = heading }

typedef struct option_table {
    const char *command, *summary;
    const option_row *rows;
    size_t count;
    const char *positional; /* the option that a bare argument stands for; NULL: none may be given */
    const char *config;     /* the option that names a configuration file; NULL: none */
} option_table;

/* Parses the command line, and the file that it names, into `values`. Returns OPTIONS_GO, or the exit code
 * with which to end: after --help, or an error that was explained. */
#define OPTIONS_GO (-1)
int options_parse(const option_table *table, int argc, char **argv, void *values);

/* ---- between options.c, values.c and config.c ---- */

/* The row of a name or alias of `length` bytes, "_" and "-" being the same; NULL: there is none. */
const option_row *option_find(const option_table *table, const char *name, size_t length);

/* The option's name that is nearest to `name`, or NULL. */
const char *option_nearest(const option_table *table, const char *name);

/* Sets or, for lists, extends the value from text; `where` begins the message ("--lr", "c.yaml:3: lr").
 * Returns 0 or EXIT_USAGE. */
int option_set(const option_row *row, void *values, const char *where, const char *text);

/* The default as the help shows it, or NULL for none. */
char *option_default(const option_row *row, const void *values);

/* Reads a configuration file; options in given[row] are left alone. Returns 0 or an exit code. */
int config_read(const option_table *table, const char *path, const bool *given, void *values);

#endif
