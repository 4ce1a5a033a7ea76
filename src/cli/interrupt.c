/* Ctrl-C: the first asks, the second ends. The handler resets itself, so the second meets the default. */
#include "cli.h"

#include <signal.h>

static void (*volatile stop_function)(void);

static void handle(int number) {
    (void)number;
    stop_function();
}

void on_interrupt(void (*stop)(void)) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART | (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    stop_function = stop;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}
