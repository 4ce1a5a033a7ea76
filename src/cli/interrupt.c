/* Ctrl-C or a request to end: the first asks, the second ends, for it meets the default. */
#include "cli.h"

#include <signal.h>

static void (*volatile stop_function)(void);

static void set(void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void handle(int number) {
    (void)number;
    set(SIG_DFL);
    stop_function();
}

void on_interrupt(void (*stop)(void)) {
    stop_function = stop;
    set(handle);
}
