/* Events: the end of an evaluation, seen from other threads.
 *
 * Invariant: an event goes from pending to done once, and keeps its status and message. Reference counted. */
#ifndef TAPER_CORE_EVENT_H
#define TAPER_CORE_EVENT_H

#include "taper/status.h"

typedef struct tp_event tp_event;

tp_status tpi_event_create(tp_event **out);
tp_event *tpi_event_retain(tp_event *event);

/* Ends it with the status, and with the calling thread's message if that is an error; wakes and calls back.
 */
void tpi_event_finish(tp_event *event, tp_status status);

#endif
