/* The command `taper`: a table of subcommands. */
#include "cli.h"

#include <signal.h>
#include <string.h>

typedef struct command {
    const char *name, *alias; /* alias may be NULL */
    const char *summary;
    int (*run)(int argc, char **argv);
} command;

static int help_command(int argc, char **argv);

static const command commands[] = {
    {"train", NULL, "Fine-tune a model with LoRA, or train all of it", train_command},
    {"generate", NULL, "Continue a prompt", generate_command},
    {"merge", "fuse", "Write a model with adapters merged into its weights", merge_command},
    {"info", NULL, "Say what a model is, what can be adapted, and what memory it takes", info_command},
    {"devices", NULL, "List the devices that taper can compute on", devices_command},
    {"help", NULL, "Show this, or the options of a subcommand", help_command},
};

#define COMMANDS (sizeof commands / sizeof *commands)

static int print_help(void) {
    puts("Usage: taper COMMAND [OPTION...]\n"
         "Fine-tune transformer language models with low-rank adapters, and generate text with them.\n");
    for (size_t i = 0; i < COMMANDS; i++) printf("  %-10s  %s\n", commands[i].name, commands[i].summary);
    puts("\nThe options of a command: taper help COMMAND. The version: taper --version.\n\nExit codes:");
#define X(name, number, meaning) printf("  %-10d  %s\n", number, meaning);
    EXIT_CODE_LIST(X)
#undef X
    return EXIT_OK;
}

static const command *find_command(const char *name) {
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(name, commands[i].name) == 0 ||
            (commands[i].alias && strcmp(name, commands[i].alias) == 0))
            return &commands[i];
    return NULL;
}

static int unknown_command(const char *name) {
    const char *names[COMMANDS];
    for (size_t i = 0; i < COMMANDS; i++) names[i] = commands[i].name;
    const char *guess = nearest(name, names, COMMANDS);
    if (guess) return cli_fail(EXIT_USAGE, "unknown command \"%s\"; did you mean \"%s\"?", name, guess);
    return cli_fail(EXIT_USAGE, "unknown command \"%s\"; see: taper help", name);
}

static int help_command(int argc, char **argv) {
    if (argc < 2 || strcmp(argv[1], "--help") == 0) return print_help();
    const command *c = find_command(argv[1]);
    if (!c) return unknown_command(argv[1]);
    char *help[] = {argv[1], (char[]){"--help"}, NULL};
    return c->run(2, help);
}

static int run(int argc, char **argv) {
    if (argc < 2) {
        print_help();
        return cli_fail(EXIT_USAGE, "no command given");
    }
    if (strcmp(argv[1], "--version") == 0) return puts("taper " TAPER_VERSION) < 0 ? EXIT_FILE : EXIT_OK;
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return print_help();
    const command *c = find_command(argv[1]);
    return c ? c->run(argc - 1, argv + 1) : unknown_command(argv[1]);
}

int main(int argc, char **argv) {
    /* A reader that is gone and a file that may not grow are failed writes, and no reason to lose a run. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    const int code = cli_close_stdout(run(argc, argv));
    cli_free_all();
    return code;
}
