/* Opening and closing what subcommands work with. */
#include "session.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const base_dtypes[] = {"auto", "stored", "f32", "bf16", "f16", NULL};

_Static_assert(sizeof(tp_base_dtype) == sizeof(int), "choices are read as int");

static void print_warning(void *user, tp_log_level level, const char *line) {
    (void)user;
    fprintf(stderr, "taper: %s%s\n", level == TP_LOG_WARN ? "warning: " : "", line);
}

static int choose_device(session *s, const char *name) {
    const bool automatic = strcmp(name, "auto") == 0, cuda = strncmp(name, "cuda", 4) == 0;
    char *end = NULL;
    const long index = cuda && name[4] == ':' ? strtol(name + 5, &end, 10) : 0;
    const bool valid = automatic || strcmp(name, "cpu") == 0 || strcmp(name, "cuda") == 0 ||
                       (end && end != name + 5 && *end == '\0' && index >= 0 && index < INT_MAX);
    if (!valid) return cli_fail(EXIT_USAGE, "--device: expected auto, cpu or cuda:N, got \"%s\"", name);
    s->device = cuda        ? tp_device_cuda(s->context, (int)index)
                : automatic ? tp_device_cuda_if_available(s->context, 0)
                            : tp_device_cpu(s->context);
    return s->device ? 0 : cli_fail_status(TP_EDEVICE);
}

int session_open(session *s, const session_options *o) {
    *s = (session){0};
    if (o->threads > INT_MAX)
        return cli_fail(EXIT_USAGE, "--threads: %lld is too many", (long long)o->threads);
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = (int)o->threads;
    options.memory_limit = o->memory_limit;
    options.deterministic = o->deterministic;
    options.log = print_warning;
    tp_status status = tp_context_create(&s->context, &options);
    return status == TP_OK ? choose_device(s, o->device) : cli_fail_status(status);
}

int session_load_model(session *s, const char *directory, tp_base_dtype dtype) {
    tp_model_options options = TP_MODEL_OPTIONS_INIT;
    options.dtype = dtype;
    return cli_fail_status(tp_model_load(&s->model, s->device, directory, &options));
}

/* Parts "DIR:SCALE". A directory whose own name ends like a scale is taken as it is. */
static char *part_scale(const char *text, double *scale) {
    const char *colon = strrchr(text, ':');
    *scale = 1;
    if (!colon || access(text, F_OK) == 0) return cli_strndup(text, strlen(text));
    char *end;
    const double value = strtod(colon + 1, &end);
    if (end == colon + 1 || *end || !isfinite(value)) return cli_strndup(text, strlen(text));
    *scale = value;
    return cli_strndup(text, (size_t)(colon - text));
}

int session_load_adapters(session *s, const text_list *adapters) {
    s->adapters = cli_alloc((size_t)adapters->count, sizeof *s->adapters);
    for (int i = 0; i < adapters->count; i++) {
        tp_adapter_use *use = &s->adapters[i];
        const char *directory = part_scale(adapters->items[i], &use->scale);
        tp_status status = tp_adapter_load(&use->adapter, s->model, directory);
        if (status != TP_OK) return cli_fail_status(status);
        s->adapter_count++;
    }
    return 0;
}

void session_close(session *s) {
    for (int i = 0; i < s->adapter_count; i++) tp_adapter_destroy(s->adapters[i].adapter);
    tp_model_destroy(s->model);
    tp_context_destroy(s->context);
}

int require(const char *command, const char *option, const char *value) {
    if (value) return 0;
    return cli_fail(EXIT_USAGE, "%s: --%s is required; see: taper help %s", command, option, command);
}
