/* taper generate: a prompt continued on stdout, token by token. */
#include "session.h"
#include "taper/generate.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct arguments {
    const char *model, *prompt, *file, *config;
    text_list adapters, stop;
    tp_generate_options generate;
    session_options session;
    bool stats;
} arguments;

#define AT(field) offsetof(arguments, field)

static const option_row rows[] = {
    {.kind = OPTION_HEADING, .help = "Input:"},
    {.kind = OPTION_TEXT,
     .name = "model",
     .letter = 'm',
     .offset = AT(model),
     .value = "DIR",
     .help = "The model's directory"},
    {.kind = OPTION_REPEATED,
     .name = "adapter",
     .letter = 'a',
     .offset = AT(adapters),
     .value = "DIR[:SCALE]",
     .aliases = "adapter-path",
     .help = "An adapter, and how strongly it acts (1 as trained); several add up"},
    {.kind = OPTION_TEXT,
     .name = "prompt",
     .letter = 'p',
     .offset = AT(prompt),
     .value = "TEXT",
     .help = "The text to continue; without it and a file, standard input"},
    {.kind = OPTION_TEXT,
     .name = "file",
     .letter = 'f',
     .offset = AT(file),
     .value = "FILE",
     .aliases = "prompt-file",
     .help = "Read the prompt from a file, without the newline at its end"},
    {.kind = OPTION_TEXT,
     .name = "config",
     .letter = 'c',
     .offset = AT(config),
     .value = "FILE",
     .line_only = true,
     .help = "Read options from a YAML file; the command line beats it"},
    {.kind = OPTION_HEADING, .help = "Choice of tokens:"},
    {.kind = OPTION_INT,
     .name = "max-tokens",
     .letter = 'n',
     .offset = AT(generate.max_tokens),
     .value = "N",
     .help = "The most tokens to generate"},
    {.kind = OPTION_REAL,
     .name = "temperature",
     .letter = 't',
     .offset = AT(generate.temperature),
     .value = "X",
     .aliases = "temp",
     .help = "0 takes the likeliest token; 1 draws as the model says"},
    {.kind = OPTION_INT,
     .name = "top-k",
     .offset = AT(generate.top_k),
     .value = "K",
     .help = "Draw from the K likeliest tokens; 0: all"},
    {.kind = OPTION_REAL,
     .name = "top-p",
     .offset = AT(generate.top_p),
     .value = "P",
     .help = "Draw from the fewest tokens of probability P together"},
    {.kind = OPTION_REAL,
     .name = "min-p",
     .offset = AT(generate.min_p),
     .value = "P",
     .help = "Draw from tokens P times as likely as the likeliest"},
    {.kind = OPTION_REAL,
     .name = "repetition-penalty",
     .offset = AT(generate.repetition_penalty),
     .value = "X",
     .help = "Above 1: tokens that were there become less likely"},
    {.kind = OPTION_INT, .name = "seed", .offset = AT(generate.seed), .value = "N", .help = "Of the draws"},
    {.kind = OPTION_HEADING, .help = "Ending and output:"},
    {.kind = OPTION_REPEATED,
     .name = "stop",
     .letter = 's',
     .offset = AT(stop),
     .value = "TEXT",
     .help = "End before this text; may be given several times"},
    {.kind = OPTION_FLAG,
     .name = "ignore-eos",
     .offset = AT(generate.ignore_stop_ids),
     .bare = "true",
     .help = "Go on after the token that ends a text"},
    {.kind = OPTION_FLAG,
     .name = "show-special",
     .offset = AT(generate.show_special),
     .bare = "true",
     .help = "Print special tokens too"},
    {.kind = OPTION_FLAG,
     .name = "stats",
     .offset = AT(stats),
     .bare = "true",
     .help = "Print counts and speeds to standard error"},
    {.kind = OPTION_HEADING, .help = "Machine:"},
    SESSION_ROWS(arguments, session),
};

static const option_table table = {
    "generate",
    "Continue a prompt with a model and its adapters; the text appears on standard output as it comes.",
    rows,
    sizeof rows / sizeof *rows,
    sizeof(arguments),
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

/* Ends generation when the text cannot be written: main says why. */
static bool print_piece(void *user, int32_t id, const char *text, size_t length) {
    (void)user, (void)id;
    fwrite(text, 1, length, stdout);
    return cli_flush() && !interrupted;
}

static void print_stats(const tp_generate_stats *stats) {
    const double p = stats->prompt_seconds, t = stats->seconds;
    fprintf(stderr, "Prompt: %lld tokens, %.1f tokens/s\nGeneration: %lld tokens, %.1f tokens/s\n",
            (long long)stats->prompt_tokens, p > 0 ? (double)stats->prompt_tokens / p : 0.0,
            (long long)stats->tokens, t > 0 ? (double)stats->tokens / t : 0.0);
}

static int run_generator(tp_generator *generator, const arguments *a, const char *prompt, size_t length) {
    tp_generate_stats stats;
    on_interrupt(interrupt);
    tp_status status = tp_generate(generator, prompt, length, &a->generate, print_piece, NULL, &stats);
    if (status != TP_OK) return cli_fail_status(status);
    if (!ferror(stdout)) putchar('\n');
    if (a->stats) print_stats(&stats);
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
    const int code = run_generator(generator, a, prompt, length);
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
    if (code == 0) code = session_load_model(&s, a.model);
    if (code == 0) code = session_load_adapters(&s, &a.adapters);
    if (code == 0) code = generate(&s, &a, prompt, length);
    session_close(&s);
    return code;
}
