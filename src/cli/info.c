/* taper info: what a model is, which of its layers can be adapted, and what memory it takes. */
#include "session.h"

#include <string.h>

#define PROMPT_TOKENS 256 /* of the forward pass that is planned */
#define SHOWN_RANK    16
#define STATE_COPIES  4 /* of a trained parameter, each f32: value, gradient, two moments */

typedef struct arguments {
    const char *model;
    bool json;
    session_options session;
} arguments;

#define ROW(kind, name, field, value, ...) OPTION_ROW(kind, name, arguments, field, value, __VA_ARGS__)

static const option_row rows[] = {
    ROW(TEXT, "model", model, "DIR", "The model's directory", .letter = 'm'),
    ROW(FLAG, "json", json, NULL, "Print JSON", .bare = "true"),
    SESSION_ROWS(arguments, session),
};

static const option_table table = {
    "info",  "Say what a model is, which layers an adapter can target, and what memory it takes.",
    rows,    sizeof rows / sizeof *rows,
    "model", NULL};

/* ---- memory ---- */

typedef struct needs {
    int64_t positions;    /* of the cache */
    uint64_t cache;       /* bytes of keys and values of so many */
    uint64_t activations; /* bytes of reading PROMPT_TOKENS tokens of a prompt */
    uint64_t lora;        /* parameters of an adapter of rank SHOWN_RANK on all linear layers */
} needs;

static tp_status plan_prompt(const session *s, const tp_model_info *info, uint64_t *bytes) {
    static const int32_t ids[PROMPT_TOKENS];
    const int64_t count =
        info->max_positions && info->max_positions < PROMPT_TOKENS ? info->max_positions : PROMPT_TOKENS;
    const int64_t shape[] = {1, count}, one = 1;
    const int32_t last = (int32_t)count - 1;
    tp_graph *graph;
    tp_status status = tp_graph_create(&graph, s->context);
    if (status != TP_OK) return status;
    tp_forward forward = TP_FORWARD_INIT;
    forward.tokens = tp_lazy_from_slice(graph, s->device, TP_I32, 2, shape, ids);
    forward.rows = tp_lazy_from_slice(graph, s->device, TP_I32, 1, &one, &last);
    tp_lazy *logits = tp_model_forward_lazy(s->model, &forward);
    status = tp_graph_memory(graph, &logits, 1, bytes);
    tp_graph_destroy(graph);
    return status;
}

static tp_status find_needs(const session *s, const tp_model_info *info, needs *out) {
    int count;
    const tp_linear *linears = tp_model_linears(s->model, &count);
    *out = (needs){.positions = info->max_positions ? info->max_positions : 2048};
    out->cache = 2 * (uint64_t)(info->layers * info->kv_heads * info->head_dim) * (uint64_t)out->positions *
                 tp_dtype_size(info->activations);
    for (int i = 0; i < count; i++)
        if (linears[i].layer >= 0)
            out->lora += SHOWN_RANK * (uint64_t)(linears[i].in_features + linears[i].out_features);
    return plan_prompt(s, info, &out->activations);
}

/* ---- layers, grouped by what follows their block's number ---- */

static const char *last_part(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

static bool same_group(const tp_linear *a, const tp_linear *b) {
    return strcmp(last_part(a->path), last_part(b->path)) == 0 && a->in_features == b->in_features &&
           a->out_features == b->out_features && (a->layer < 0) == (b->layer < 0);
}

static bool first_of_group(const tp_linear *linears, int index) {
    for (int i = 0; i < index; i++)
        if (same_group(&linears[i], &linears[index])) return false;
    return true;
}

static void print_linears(const tp_model *model) {
    int count;
    const tp_linear *linears = tp_model_linears(model, &count);
    printf("\n%-12s  %-16s  %5s  %14s  %s\n", "target", "[out, in]", "count", "parameters", "first of them");
    for (int i = 0; i < count; i++) {
        if (!first_of_group(linears, i)) continue;
        char shape[48];
        int members = 0;
        for (int j = i; j < count; j++) members += same_group(&linears[i], &linears[j]);
        const long long out = (long long)linears[i].out_features, in = (long long)linears[i].in_features;
        snprintf(shape, sizeof shape, "[%lld, %lld]", out, in);
        printf("%-12s  %-16s  %5d  %14lld  %s\n", last_part(linears[i].path), shape, members,
               out * in * members, linears[i].path);
    }
}

/* ---- output ---- */

static void print_text(const session *s, const tp_model_info *i, const needs *n) {
    char weights[SIZE_TEXT], cache[SIZE_TEXT], activations[SIZE_TEXT], lora[SIZE_TEXT];
    printf("model         %s\narchitecture  %s\nparameters    %llu\n", i->directory, i->architecture,
           (unsigned long long)i->parameters);
    printf("layers        %lld of width %lld, feed-forward %lld\n", (long long)i->layers,
           (long long)i->hidden_size, (long long)i->intermediate_size);
    printf("attention     %lld heads of %lld, %lld key-value heads\n", (long long)i->heads,
           (long long)i->head_dim, (long long)i->kv_heads);
    printf("vocabulary    %lld, %s output head\n", (long long)i->vocab_size, i->tied ? "tied" : "separate");
    printf("positions     %lld%s\n\n", (long long)i->max_positions, i->max_positions ? "" : " (not said)");
    printf("memory        %s  weights\n", size_text(i->bytes, weights));
    printf("              %s  keys and values of %lld positions, when generating\n",
           size_text(n->cache, cache), (long long)n->positions);
    printf("              %s  activations, when reading a prompt\n", size_text(n->activations, activations));
    printf("              %s  LoRA of rank %d on all-linear, in training: %llu parameters\n",
           size_text(n->lora * STATE_COPIES * sizeof(float), lora), SHOWN_RANK, (unsigned long long)n->lora);
    puts("              (taper train --dry-run: the peak of a run)");
    print_linears(s->model);
}

static void print_json(const session *s, const tp_model_info *i, const needs *n) {
    int count;
    const tp_linear *linears = tp_model_linears(s->model, &count);
    printf("{\"model\": ");
    print_json_string(stdout, i->directory);
    printf(", \"architecture\": ");
    print_json_string(stdout, i->architecture);
    printf(
        ",\n \"parameters\": %llu, \"layers\": %lld, \"hidden_size\": %lld, \"intermediate_size\": %lld,\n",
        (unsigned long long)i->parameters, (long long)i->layers, (long long)i->hidden_size,
        (long long)i->intermediate_size);
    printf(" \"heads\": %lld, \"kv_heads\": %lld, \"head_dim\": %lld, \"vocab_size\": %lld, "
           "\"max_positions\": %lld, "
           "\"tied\": %s,\n",
           (long long)i->heads, (long long)i->kv_heads, (long long)i->head_dim, (long long)i->vocab_size,
           (long long)i->max_positions, i->tied ? "true" : "false");
    printf(
        " \"memory\": {\"weights\": %llu, \"cache\": %llu, \"cache_positions\": %lld, \"prompt\": %llu},\n",
        (unsigned long long)i->bytes, (unsigned long long)n->cache, (long long)n->positions,
        (unsigned long long)n->activations);
    printf(" \"targets\": [");
    for (int l = 0; l < count; l++) {
        printf("%s\n  {\"path\": ", l ? "," : "");
        print_json_string(stdout, linears[l].path);
        printf(", \"shape\": [%lld, %lld], \"layer\": %d}", (long long)linears[l].out_features,
               (long long)linears[l].in_features, linears[l].layer);
    }
    puts("]}");
}

static int show(const session *s, bool json) {
    tp_model_info info;
    needs n;
    tp_model_get_info(s->model, &info);
    tp_status status = find_needs(s, &info, &n);
    if (status != TP_OK) return cli_fail_status(status);
    (json ? print_json : print_text)(s, &info, &n);
    return EXIT_OK;
}

int info_command(int argc, char **argv) {
    arguments a = {.session = SESSION_OPTIONS_INIT};
    int code = options_parse(&table, argc, argv, &a);
    if (code != OPTIONS_GO) return code;
    code = require("info", "model", a.model);
    if (code) return code;
    session s;
    code = session_open(&s, &a.session);
    if (code == 0) code = session_load_model(&s, a.model, TP_BASE_STORED);
    if (code == 0) code = show(&s, a.json);
    session_close(&s);
    return code;
}
