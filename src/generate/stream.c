/* Holding back text that may be the beginning of a stop text.
 *
 * The trick: only an end of the text that some stop text begins with is held, so text appears as soon as no
 * stop text can begin in it. As stop texts begin with a whole character, so does what is held. */
#include "generate/stream.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/utf8.h"

#include <string.h>

static tp_status check_stops(const tp_generate_options *o, bool has_text) {
    if (o->stop_count < 0 || (o->stop_count > 0 && !o->stop))
        return tpi_fail(TP_EINVAL, "generate: stop is NULL or stop_count negative (%d)", o->stop_count);
    if (o->stop_count > 0 && !has_text)
        return tpi_fail(TP_EINVAL, "generate: a stop text needs a tokenizer, and the generator has none");
    for (int i = 0; i < o->stop_count; i++) {
        const char *stop = o->stop[i];
        if (!stop || !*stop || stop[tpi_utf8_valid(stop, strlen(stop))])
            return tpi_fail(TP_EINVAL, "generate: stop text %d is empty or not UTF-8", i);
    }
    return TP_OK;
}

tp_status tpi_stream_init(tpi_stream *s, tp_tokenizer *tokenizer, const tp_generate_options *options) {
    *s = (tpi_stream){.stop = options->stop, .stop_count = options->stop_count};
    TPI_TRY(check_stops(options, tokenizer != NULL));
    return tokenizer ? tp_decode_stream_create(tokenizer, !options->show_special, &s->decoder) : TP_OK;
}

void tpi_stream_clear(tpi_stream *s) {
    if (s->decoder) tp_decode_stream_destroy(s->decoder);
    tpi_free(s->held);
    *s = (tpi_stream){0};
}

/* Where in `held` the first stop text begins; `length` if there is none. */
static size_t find_stop(const tpi_stream *s) {
    size_t first = s->length;
    for (int i = 0; s->length > 0 && i < s->stop_count; i++) {
        const char *at = memmem(s->held, s->length, s->stop[i], strlen(s->stop[i]));
        if (at && (size_t)(at - s->held) < first) first = (size_t)(at - s->held);
    }
    return first;
}

/* The length of the longest end of `held` that is a beginning of a stop text. */
static size_t partial_stop(const tpi_stream *s) {
    size_t longest = 0;
    for (int i = 0; i < s->stop_count; i++) {
        size_t n = strlen(s->stop[i]) - 1;
        if (n > s->length) n = s->length;
        while (n > longest && memcmp(s->held + s->length - n, s->stop[i], n) != 0) n--;
        if (n > longest) longest = n;
    }
    return longest;
}

/* Drops what the call before gave out, and adds `text`. */
static tp_status hold(tpi_stream *s, const char *text, size_t length) {
    size_t wanted;
    if (!tpi_add_size(s->length, length, &wanted)) return tpi_fail(TP_ENOMEM, "generate: text too long");
    TPI_TRY(tpi_grow(&s->held, &s->capacity, wanted, 1));
    s->length -= s->shown;
    if (s->shown > 0) memmove(s->held, s->held + s->shown, s->length);
    s->shown = 0;
    if (length > 0) memcpy(s->held + s->length, text, length);
    s->length += length;
    return TP_OK;
}

static tp_status show(tpi_stream *s, const char *piece, size_t piece_length, bool last, const char **text,
                      size_t *length) {
    TPI_TRY(hold(s, piece, piece_length));
    const size_t stop = find_stop(s);
    s->stopped = stop < s->length;
    if (s->stopped) s->length = stop;
    s->shown = s->stopped || last ? s->length : s->length - partial_stop(s);
    *text = s->shown ? s->held : "";
    *length = s->shown;
    return TP_OK;
}

tp_status tpi_stream_continue(tpi_stream *s, const int32_t *ids, size_t count) {
    return s->decoder ? tp_decode_stream_continue(s->decoder, ids, count) : TP_OK;
}

tp_status tpi_stream_push(tpi_stream *s, int32_t id, const char **text, size_t *length) {
    const char *piece = "";
    size_t piece_length = 0;
    if (s->decoder) TPI_TRY(tp_decode_stream_push(s->decoder, id, &piece, &piece_length));
    return show(s, piece, piece_length, false, text, length);
}

tp_status tpi_stream_finish(tpi_stream *s, const char **text, size_t *length) {
    const char *piece = "";
    size_t piece_length = 0;
    if (s->decoder && !s->stopped) TPI_TRY(tp_decode_stream_flush(s->decoder, &piece, &piece_length));
    return show(s, piece, piece_length, true, text, length);
}
