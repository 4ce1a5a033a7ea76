/* What a subcommand works with: a context, a device, a model and its adapters.
 *
 * Invariant: session_close releases whatever was opened, also after a failure half-way. Functions return 0 or
 * the exit code of an error that was explained. */
#ifndef TAPER_CLI_SESSION_H
#define TAPER_CLI_SESSION_H

#include "options.h"
#include "taper/adapter.h"

typedef struct session_options {
    const char *device; /* "auto", "cpu", "cuda", "cuda:1" */
    int64_t threads;    /* 0: all */
    uint64_t memory_limit;
    bool deterministic; /* an option of what trains or generates */
} session_options;

#define SESSION_OPTIONS_INIT                                                                                 \
    { "auto", 0, 0, false }

/* Names of tp_base_dtype. */
extern const char *const base_dtypes[];

/* The rows of an option table for the session_options at `field` of the structure `type`. */
#define SESSION_ROWS(type, field)                                                                            \
    OPTION_ROW(TEXT, "device", type, field.device, "NAME", "auto, cpu, or cuda:N"),                          \
        OPTION_ROW(INT, "threads", type, field.threads, "N", "Threads of the CPU; 0: all"),                  \
        OPTION_ROW(BYTES, "mem-limit", type, field.memory_limit, "SIZE",                                     \
                   "Fail early where more memory is needed than, say, 4GiB")

#define DETERMINISTIC_ROW(type, field)                                                                       \
    OPTION_ROW(FLAG, "deterministic", type, field.deterministic, NULL,                                       \
               "The same results to the last bit on any number of threads; slower", .bare = "true")

typedef struct session {
    tp_context *context;
    tp_device *device;
    tp_model *model;
    tp_adapter_use *adapters; /* of cli_alloc; the adapters in it are owned */
    int adapter_count;
} session;

int session_open(session *s, const session_options *options);
int session_load_model(session *s, const char *directory, tp_base_dtype dtype);

/* Each a directory, or "DIR:SCALE". */
int session_load_adapters(session *s, const text_list *adapters);
void session_close(session *s);

/* EXIT_USAGE, naming the option, when a required value is NULL; else 0. */
int require(const char *command, const char *option, const char *value);

#endif
