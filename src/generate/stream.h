/* From tokens to the text that may be shown: whole characters, and no part of a stop text.
 *
 * Invariant: `held` is decoded text, of which the last call gave out the first `shown` bytes. What lies
 * behind them is the longest end of the text that a stop text begins with. */
#ifndef TAPER_GENERATE_STREAM_H
#define TAPER_GENERATE_STREAM_H

#include "taper/generate.h"

typedef struct tpi_stream {
    tp_decode_stream *decoder; /* owned; NULL without a tokenizer */
    const char *const *stop;   /* borrowed */
    int stop_count;
    char *held; /* owned */
    size_t length, capacity, shown;
    bool stopped; /* a stop text was met */
} tpi_stream;

/* Fails with TP_EINVAL for a stop text that is empty or not UTF-8, or any without a tokenizer; TP_ENOMEM. */
tp_status tpi_stream_init(tpi_stream *stream, tp_tokenizer *tokenizer, const tp_generate_options *options);
void tpi_stream_clear(tpi_stream *stream); /* of a zeroed one: nothing */

/* Lets the text continue a prompt, before the first token: it begins no text. TP_ENOMEM. */
tp_status tpi_stream_continue(tpi_stream *stream, const int32_t *ids, size_t count);

/* Takes a token and gives the text to show, borrowed until the next call. */
tp_status tpi_stream_push(tpi_stream *stream, int32_t id, const char **text, size_t *length);

/* Gives what is still held back. */
tp_status tpi_stream_finish(tpi_stream *stream, const char **text, size_t *length);

#endif
