/* taper merge: a model with adapters merged into its weights, as a model directory. */
#include "session.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

typedef struct arguments {
    const char *model, *out, *config;
    text_list adapters;
    int dtype; /* 0: each weight as it was; else a tp_dtype + 1 */
    session_options session;
} arguments;

#define ROW(kind, name, field, value, ...) OPTION_ROW(kind, name, arguments, field, value, __VA_ARGS__)

static const char *const dtypes[] = {"keep", "f32", "bf16", "f16", NULL};
_Static_assert(TP_F32 == 0 && TP_BF16 == 1 && TP_F16 == 2, "the choices are dtypes, one further on");

static const option_row rows[] = {
    ROW(TEXT, "model", model, "DIR", "The model's directory", .letter = 'm'),
    ROW(REPEATED, "adapter", adapters, "DIR[:SCALE]",
        "An adapter, and how strongly it acts (1 as trained); several add up", .letter = 'a',
        .aliases = "adapter-path"),
    ROW(TEXT, "out", out, "DIR", "The directory to write", .letter = 'o', .aliases = "save-path"),
    ROW(CHOICE, "dtype", dtype, "NAME", "Of the weights: keep (each as it was), f32, bf16 or f16",
        .choices = dtypes),
    ROW(TEXT, "config", config, "FILE", "Read options from a YAML file; the command line beats it",
        .letter = 'c', .line_only = true),
    SESSION_ROWS(arguments, session),
};

static const option_table table = {"merge", "Write a model directory with adapters merged into the weights.",
                                   rows,    sizeof rows / sizeof *rows,
                                   NULL,    "config"};

static bool same_directory(const char *a, const char *b) {
    char real_a[PATH_MAX], real_b[PATH_MAX];
    return realpath(a, real_a) && realpath(b, real_b) && strcmp(real_a, real_b) == 0;
}

static int merge(const session *s, const arguments *a) {
    tp_model_save_options options = TP_MODEL_SAVE_OPTIONS_INIT;
    options.convert = a->dtype > 0;
    if (a->dtype > 0) options.dtype = (tp_dtype)(a->dtype - 1);
    options.adapters = s->adapters;
    options.adapter_count = s->adapter_count;
    tp_status status = tp_model_save(s->model, a->out, &options);
    if (status != TP_OK) return cli_fail_status(status);
    for (int i = 0; i < s->adapter_count; i++) {
        tp_adapter_info info;
        tp_adapter_get_info(s->adapters[i].adapter, &info);
        printf("Merged %s: %d modules, %llu parameters, scale %g\n", a->adapters.items[i], info.modules,
               (unsigned long long)info.parameters, s->adapters[i].scale);
    }
    printf("Wrote %s\n", a->out);
    return EXIT_OK;
}

static int check(const arguments *a) {
    int code = require("merge", "model", a->model);
    if (code == 0) code = require("merge", "out", a->out);
    if (code == 0) code = require("merge", "adapter", a->adapters.count ? a->adapters.items[0] : NULL);
    if (code == 0 && same_directory(a->model, a->out))
        code = cli_fail(EXIT_USAGE, "merge: --out is the model's own directory, %s", a->model);
    return code;
}

int merge_command(int argc, char **argv) {
    arguments a = {.session = SESSION_OPTIONS_INIT};
    int code = options_parse(&table, argc, argv, &a);
    if (code != OPTIONS_GO) return code;
    code = check(&a);
    if (code) return code;
    session s;
    code = session_open(&s, &a.session);
    if (code == 0) code = session_load_model(&s, a.model, TP_BASE_STORED);
    if (code == 0) code = session_load_adapters(&s, &a.adapters);
    if (code == 0) code = merge(&s, &a);
    session_close(&s);
    return code;
}
