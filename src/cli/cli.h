/* What the subcommands share: exit codes, errors, memory, text.
 *
 * Invariants: a subcommand returns an exit code, and one that is not 0 has been explained by one line
 * "taper: ..." on stderr (an interruption and a closed pipe need none). Memory of cli_alloc lives until the
 * program ends. */
#ifndef TAPER_CLI_CLI_H
#define TAPER_CLI_CLI_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The exit codes, and what `taper help` says of them. X(name, number, meaning) */
#define EXIT_CODE_LIST(X)                                                                                    \
    X(OK, 0, "ok")                                                                                           \
    X(FAILED, 1, "failed while running")                                                                     \
    X(USAGE, 2, "wrong usage: an option, or a value out of range")                                           \
    X(FILE, 3, "a file is missing, malformed, unsupported or cannot be written")                             \
    X(MEMORY, 4, "out of memory, or above the limit")                                                        \
    X(NONFINITE, 5, "the loss or a value is not finite")                                                     \
    X(INTERRUPTED, 130, "interrupted; of training, the checkpoint is saved")

typedef enum exit_code {
#define X(name, number, meaning) EXIT_##name = number,
    EXIT_CODE_LIST(X)
#undef X
} exit_code;

/* The subcommands; argv[0] is the subcommand's name. */
int train_command(int argc, char **argv);
int generate_command(int argc, char **argv);
int merge_command(int argc, char **argv);
int info_command(int argc, char **argv);
int devices_command(int argc, char **argv);

/* ---- errors (errors.c) ---- */

/* Prints "taper: <text>" on stderr and returns `code`. */
int cli_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints the library's message and returns the exit code of the status; TP_OK and TP_EINTERRUPTED print
 * nothing. */
int cli_fail_status(tp_status status);

/* Flushes stdout; false if it cannot be written. The reason is kept for cli_close_stdout. */
bool cli_flush(void);

/* Flushes stdout at the end. A full disk turns success into EXIT_FILE; a reader that is gone needs no words.
 */
int cli_close_stdout(int code);

/* ---- memory (memory.c): each ends the program with EXIT_MEMORY when there is none ---- */

void *cli_alloc(size_t count, size_t size); /* zeroed */
char *cli_strndup(const char *text, size_t length);
char *cli_asprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_free_all(void);

/* ---- text (text.c) ---- */

/* The one of `names` that is nearest to `text`, or NULL if none is near enough to be meant. */
const char *nearest(const char *text, const char *const *names, size_t count);

/* "1.2 GB"; the buffer is returned. */
#define SIZE_TEXT 32
char *size_text(uint64_t bytes, char text[SIZE_TEXT]);

/* "h:mm:ss". */
#define TIME_TEXT 32
char *time_text(double seconds, char text[TIME_TEXT]);

/* A JSON string with its quotes. */
void print_json_string(FILE *file, const char *text);

/* Monotonic, in seconds. */
double clock_seconds(void);

/* ---- interruption (interrupt.c) ---- */

/* From now on the first Ctrl-C (or SIGTERM) calls `stop`, from the signal's handler; the second ends the
 * program at once. */
void on_interrupt(void (*stop)(void));

#endif
