/* What a training run shows: on a terminal a line that renews itself, with the validations above it; on a
 * pipe one line a report. */
#ifndef TAPER_CLI_PROGRESS_H
#define TAPER_CLI_PROGRESS_H

#include "cli.h"
#include "taper/train.h"

typedef struct progress {
    bool live;         /* stdout is a terminal */
    bool line_shown;   /* a live line stands there, without its newline */
    double last_drawn; /* of the live line, in seconds */
    double last_step;  /* when the last step ended: validation begins then */
    double last_loss;
} progress;

void progress_begin(progress *p);

/* A tp_train_fn. */
void progress_event(void *user, const tp_train_record *record);

/* Leaves the terminal's cursor at the beginning of a line. */
void progress_end(progress *p);

#endif
