/* taper generate: a prompt continued on stdout, token by token. */
#include "session.h"
#include "taper/generate.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

typedef struct arguments {
    const char *model, *prompt, *file, *config;
    text_list adapters, stop;
    tp_generate_options generate;
    session_options session;
    tp_base_dtype base_dtype;
    bool stats;
} arguments;

#define ROW(kind, name, field, value, ...) OPTION_ROW(kind, name, arguments, field, value, __VA_ARGS__)

static const option_row rows[] = {
    OPTION_GROUP("Input:"),
    ROW(TEXT, "model", model, "DIR", "The model's directory", .letter = 'm'),
    ROW(REPEATED, "adapter", adapters, "DIR[:SCALE]",
        "An adapter, and how strongly it acts (1 as trained); several add up", .letter = 'a',
        .aliases = "adapter-path"),
    ROW(TEXT, "prompt", prompt, "TEXT", "The text to continue; without it and a file, standard input",
        .letter = 'p'),
    ROW(TEXT, "file", file, "FILE", "Read the prompt from a file, without the newline at its end",
        .letter = 'f', .aliases = "prompt-file"),
    ROW(TEXT, "config", config, "FILE", "Read options from a YAML file; the command line beats it",
        .letter = 'c', .line_only = true),
    OPTION_GROUP("Choice of tokens:"),
    ROW(INT, "max-tokens", generate.max_tokens, "N", "The most tokens to generate", .letter = 'n'),
    ROW(REAL, "temperature", generate.temperature, "X",
        "0 takes the likeliest token; 1 draws as the model says", .letter = 't', .aliases = "temp"),
    ROW(INT, "top-k", generate.top_k, "K", "Draw from the K likeliest tokens; 0: all"),
    ROW(REAL, "top-p", generate.top_p, "P", "Draw from the fewest tokens of probability P together"),
    ROW(REAL, "min-p", generate.min_p, "P", "Draw from tokens P times as likely as the likeliest"),
    ROW(REAL, "repetition-penalty", generate.repetition_penalty, "X",
        "Above 1: tokens that were there become less likely"),
    ROW(INT, "seed", generate.seed, "N", "Of the draws"),
    OPTION_GROUP("Ending and output:"),
    ROW(REPEATED, "stop", stop, "TEXT", "End before this text; may be given several times", .letter = 's'),
    ROW(FLAG, "ignore-eos", generate.ignore_stop_ids, NULL, "Go on after the token that ends a text",
        .bare = "true"),
    ROW(FLAG, "show-special", generate.show_special, NULL, "Print special tokens too", .bare = "true"),
    ROW(FLAG, "stats", stats, NULL, "Print counts, speeds and what ended the text to standard error",
        .bare = "true"),
    OPTION_GROUP("Machine:"),
    ROW(CHOICE, "base-dtype", base_dtype, "NAME",
        "Of the model: auto (as stored, on a GPU bf16), stored, f32, bf16 or f16", .choices = base_dtypes),
    SESSION_ROWS(arguments, session),
    DETERMINISTIC_ROW(arguments, session),
};

static const option_table table = {
    "generate",
    "Continue a prompt with a model and its adapters; the text appears on standard output as it comes.",
    rows,
    sizeof rows / sizeof *rows,
    NULL,
    "config"};

/* ---- the prompt ---- */

static int read_stream(FILE *file, const char *name, char **text, size_t *length) {
    size_t capacity = 4096;
    *length = 0;
    *text = cli_alloc(capacity, 1);
    for (size_t n; (n = fread(*text + *length, 1, capacity - *length, file)) > 0;) {
        *length += n;
        if (*length < capacity) continue;
        char *larger = cli_alloc(capacity *= 2, 1);
        memcpy(larger, *text, *length);
        *text = larger;
    }
    if (ferror(file)) return cli_fail(EXIT_FILE, "%s: %s", name, strerror(errno));
    if (*length > 0 && (*text)[*length - 1] == '\n') --*length;
    if (*length > 0 && (*text)[*length - 1] == '\r') --*length;
    return 0;
}

static int read_prompt(const arguments *a, char **text, size_t *length) {
    if (a->prompt && a->file) return cli_fail(EXIT_USAGE, "generate: give --prompt or --file, not both");
    if (a->prompt) {
        *length = strlen(a->prompt);
        *text = cli_strndup(a->prompt, *length);
        return 0;
    }
    if (!a->file) return read_stream(stdin, "standard input", text, length);
    FILE *file = fopen(a->file, "re");
    if (!file) return cli_fail(EXIT_FILE, "%s: %s", a->file, strerror(errno));
    const int code = read_stream(file, a->file, text, length);
    fclose(file);
    return code;
}

/* ---- generation ---- */

static volatile sig_atomic_t interrupted;

static void interrupt(void) {
    interrupted = 1;
}

/* Ends generation when the text cannot be written: main says why. Before the first piece there is nothing
 * that an interruption should leave in order. */
static bool print_piece(void *user, int32_t id, const char *text, size_t length) {
    bool *begun = user;
    (void)id;
    if (!*begun) on_interrupt(interrupt);
    *begun = true;
    fwrite(text, 1, length, stdout);
    return cli_flush() && !interrupted;
}

static void print_stats(const tp_generate_stats *stats) {
    static const char *const ends[] = {[TP_END_LENGTH] = "max-tokens",
                                       [TP_END_TOKEN] = "a token that ends a text",
                                       [TP_END_STOP] = "a stop text",
                                       [TP_END_CALLBACK] = "an interruption"};
    const double p = stats->prompt_seconds, t = stats->seconds;
    fprintf(stderr,
            "Prompt: %lld tokens, %.1f tokens/s\nGeneration: %lld tokens, %.1f tokens/s\nEnded by %s\n",
            (long long)stats->prompt_tokens, p > 0 ? (double)stats->prompt_tokens / p : 0.0,
            (long long)stats->tokens, t > 0 ? (double)stats->tokens / t : 0.0, ends[stats->end]);
}

static void warn_of_length(const tp_model *model, int64_t tokens) {
    tp_model_info info;
    tp_model_get_info(model, &info);
    if (info.max_positions == 0 || tokens <= info.max_positions) return;
    fprintf(stderr, "taper: warning: %lld tokens, and the model was trained on no more than %lld\n",
            (long long)tokens, (long long)info.max_positions);
}

static int run_generator(tp_generator *generator, const tp_model *model, const arguments *a,
                         const char *prompt, size_t length) {
    tp_generate_stats stats;
    bool begun = false;
    tp_status status = tp_generate(generator, prompt, length, &a->generate, print_piece, &begun, &stats);
    if (status != TP_OK) return cli_fail_status(status);
    if (!ferror(stdout)) putchar('\n');
    if (a->stats) print_stats(&stats);
    warn_of_length(model, stats.prompt_tokens + stats.tokens);
    return interrupted ? EXIT_INTERRUPTED : EXIT_OK;
}

static int generate(session *s, const arguments *a, const char *prompt, size_t length) {
    tp_tokenizer *tokenizer;
    tp_generator *generator;
    tp_status status = tp_tokenizer_load(a->model, &tokenizer);
    if (status != TP_OK) return cli_fail_status(status);
    status = tp_generator_create(&generator, s->model, tokenizer, s->adapters, s->adapter_count);
    tp_tokenizer_release(tokenizer);
    if (status != TP_OK) return cli_fail_status(status);
    const int code = run_generator(generator, s->model, a, prompt, length);
    tp_generator_destroy(generator);
    return code;
}

int generate_command(int argc, char **argv) {
    arguments a = {.generate = TP_GENERATE_OPTIONS_INIT, .session = SESSION_OPTIONS_INIT};
    int code = options_parse(&table, argc, argv, &a);
    if (code != OPTIONS_GO) return code;
    code = require("generate", "model", a.model);
    if (code) return code;
    a.generate.stop = a.stop.items;
    a.generate.stop_count = a.stop.count;
    char *prompt;
    size_t length;
    code = read_prompt(&a, &prompt, &length);
    if (code) return code;
    session s;
    code = session_open(&s, &a.session);
    if (code == 0) code = session_load_model(&s, a.model, a.base_dtype);
    if (code == 0) code = session_load_adapters(&s, &a.adapters);
    if (code == 0) code = generate(&s, &a, prompt, length);
    session_close(&s);
    return code;
}
