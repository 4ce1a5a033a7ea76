/* A chain of calls: each step gives its tokens to the next, the last one to the text. What a step holds back
 * is only appended to within a call, and what it passed on of it is dropped at the beginning of the next one:
 * so a failure is undone by setting lengths back. */
#include "tokenizer/decode_steps.h"
#include "core/alloc.h"
#include "core/error.h"
#include "io/utf8.h"

#include <string.h>

/* One call of a walk. */
typedef struct call {
    tpi_decode_walk *walk;
    tpi_text *out;
} call;

/* Gives a token, or a piece of the fused one, to a step. */
static tp_status give(call c, size_t step, const char *text, size_t length);

/* --- Bytes --- */

/* Appends what a byte-level spelling stands for: its bytes, or the spelling itself if one of its characters
 * stands for no byte. */
static tp_status append_bytes(const char *spelling, size_t length, tpi_text *out) {
    size_t before = out->length;
    TPI_TRY(tpi_text_reserve(out, length));
    for (size_t i = 0; i < length;) {
        int32_t character;
        i += tpi_text_decode(spelling + i, &character);
        int byte = tpi_byte_of_char(character);
        if (byte < 0) {
            out->length = before;
            return tpi_text_append(out, spelling, length);
        }
        out->data[out->length++] = (char)byte;
    }
    return TP_OK;
}

/* Passes on the held bytes but the last `unfinished`. */
static tp_status pass_bytes(call c, size_t step, size_t unfinished) {
    tpi_decode_state *s = &c.walk->states[step];
    size_t from = s->place.passed, count = s->held.length - from - unfinished;
    if (count == 0) return TP_OK;
    s->place.passed += count;
    s->made.length = 0;
    TPI_TRY(tpi_text_append_lossy(&s->made, s->held.data + from, count));
    return give(c, step + 1, s->made.data, s->made.length);
}

static tp_status take_bytes(call c, size_t step, const char *text, size_t length) {
    tpi_decode_state *s = &c.walk->states[step];
    TPI_TRY(append_bytes(text, length, &s->held));
    return pass_bytes(c, step, tpi_text_unfinished(s->held.data, s->held.length));
}

static tp_status finish_bytes(call c, size_t step) {
    return pass_bytes(c, step, 0);
}

/* --- Byte fallback --- */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte that "<0x0A>" or "<0x0a>" stands for, or -1. As in the reference, "+" is a leading nought. */
static int fallback_byte(const char *token, size_t length) {
    if (length != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>') return -1;
    int high = token[3] == '+' ? 0 : hex_digit(token[3]), low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static tp_status finish_run(call c, size_t step) {
    tpi_decode_state *s = &c.walk->states[step];
    size_t length = s->held.length - s->place.passed;
    if (length == 0) return TP_OK;
    const char *run = s->held.data + s->place.passed;
    s->place.passed = s->held.length;
    if (tpi_utf8_valid(run, length) == length) return give(c, step + 1, run, length);
    for (size_t i = 0; i < length; i++)
        TPI_TRY(give(c, step + 1, TPI_REPLACEMENT, sizeof TPI_REPLACEMENT - 1));
    return TP_OK;
}

static tp_status take_fallback(call c, size_t step, const char *text, size_t length) {
    int byte = fallback_byte(text, length);
    if (byte >= 0) return tpi_text_append(&c.walk->states[step].held, &(char){(char)byte}, 1);
    TPI_TRY(finish_run(c, step));
    return give(c, step + 1, text, length);
}

/* --- Replace --- */

/* Fused, a mark is one character, and so lies within a piece. */
static tp_status take_replace(call c, size_t step, const char *text, size_t length) {
    const tpi_decode_step *replace = &c.walk->decoder->steps[step];
    tpi_decode_state *s = &c.walk->states[step];
    const bool first = replace->fused || !s->place.begun;
    const char *content = replace->drops_first && first ? "" : replace->content;
    const size_t size = strlen(replace->mark);
    s->place.begun = true;
    s->made.length = 0;
    TPI_TRY(tpi_text_reserve(&s->made, length + 1)); /* never NULL */
    for (const char *at; length && (at = memmem(text, length, replace->mark, size));) {
        TPI_TRY(tpi_text_append(&s->made, text, (size_t)(at - text)));
        TPI_TRY(tpi_text_append(&s->made, content, strlen(content)));
        length -= (size_t)(at - text) + size;
        text = at + size;
    }
    TPI_TRY(tpi_text_append(&s->made, text, length));
    return give(c, step + 1, s->made.data, s->made.length);
}

/* --- Strip --- */

/* How many marks the text begins with, and ends with: at most `most`. */
static size_t marks_ahead(const char *mark, const char *text, size_t length, size_t most) {
    size_t size = strlen(mark), n = 0;
    while (n < most && (n + 1) * size <= length && memcmp(text + n * size, mark, size) == 0) n++;
    return n;
}

static size_t marks_behind(const char *mark, const char *text, size_t length, size_t most) {
    size_t size = strlen(mark), n = 0;
    while (n < most && (n + 1) * size <= length && memcmp(text + length - (n + 1) * size, mark, size) == 0)
        n++;
    return n;
}

/* Of the marks that a piece ends with, up to `stop` wait until it is known that they are not the end. They go
 * ahead of a piece that has more than marks, and as many as there are too many of them. */
static tp_status strip_piece(call c, size_t step, const char *text, size_t length) {
    const tpi_decode_step *strip = &c.walk->decoder->steps[step];
    tpi_decode_place *place = &c.walk->states[step].place;
    size_t size = strlen(strip->mark);
    if (!place->begun) {
        size_t cut = marks_ahead(strip->mark, text, length, strip->start - place->cut);
        place->cut += cut;
        text += cut * size;
        length -= cut * size;
    }
    if (length == 0) return TP_OK;
    place->begun = true;
    size_t behind = marks_behind(strip->mark, text, length, strip->stop);
    size_t waiting = place->kept + behind, body = length - behind * size;
    size_t free = body ? place->kept : waiting > strip->stop ? waiting - strip->stop : 0;
    place->kept = waiting - free;
    for (; free > 0; free--) TPI_TRY(give(c, step + 1, strip->mark, size));
    return body ? give(c, step + 1, text, body) : TP_OK;
}

static tp_status take_strip(call c, size_t step, const char *text, size_t length) {
    const tpi_decode_step *strip = &c.walk->decoder->steps[step];
    if (strip->fused) return strip_piece(c, step, text, length);
    size_t size = strlen(strip->mark);
    size_t ahead = marks_ahead(strip->mark, text, length, strip->start) * size;
    size_t behind = marks_behind(strip->mark, text + ahead, length - ahead, strip->stop) * size;
    return give(c, step + 1, text + ahead, length - ahead - behind);
}

/* --- The chain --- */

static tp_status take_fuse(call c, size_t step, const char *text, size_t length) {
    return give(c, step + 1, text, length);
}

static tp_status take_join(call c, size_t step, const char *text, size_t length) {
    tpi_decode_place *place = &c.walk->states[step].place;
    if (place->begun) TPI_TRY(give(c, step + 1, " ", 1));
    place->begun = true;
    return give(c, step + 1, text, length);
}

static const struct {
    tp_status (*take)(call c, size_t step, const char *text, size_t length);
    tp_status (*finish)(call c, size_t step); /* NULL: nothing of what waits is text */
} kinds[] = {
    [TPI_DECODE_JOIN] = {take_join, NULL},           [TPI_DECODE_FUSE] = {take_fuse, NULL},
    [TPI_DECODE_BYTES] = {take_bytes, finish_bytes}, [TPI_DECODE_FALLBACK] = {take_fallback, finish_run},
    [TPI_DECODE_REPLACE] = {take_replace, NULL},     [TPI_DECODE_STRIP] = {take_strip, NULL},
};

/* The recursion is as deep as there are steps. */
static tp_status give(call c, size_t step, const char *text, size_t length) {
    const tpi_decoder *decoder = c.walk->decoder;
    if (step < decoder->count) return kinds[decoder->steps[step].kind].take(c, step, text, length);
    TPI_TRY(tpi_text_reserve(c.out, length + 1));
    TPI_TRY(tpi_text_append(c.out, text, length));
    c.out->data[c.out->length] = 0;
    return TP_OK;
}

/* Where everything stood before a call. */
typedef struct snapshot {
    tpi_decode_place places[TPI_DECODE_MAX_STEPS];
    size_t held[TPI_DECODE_MAX_STEPS], out;
} snapshot;

/* Drops what was passed on, and notes where everything stands. */
static void begin(call c, snapshot *before) {
    for (size_t i = 0; i < c.walk->decoder->count; i++) {
        tpi_decode_state *s = &c.walk->states[i];
        s->held.length -= s->place.passed;
        if (s->place.passed && s->held.length)
            memmove(s->held.data, s->held.data + s->place.passed, s->held.length);
        s->place.passed = 0;
        before->places[i] = s->place;
        before->held[i] = s->held.length;
    }
    before->out = c.out->length;
}

static tp_status end(call c, const snapshot *before, tp_status status) {
    if (status == TP_OK) return TP_OK;
    for (size_t i = 0; i < c.walk->decoder->count; i++) {
        c.walk->states[i].place = before->places[i];
        c.walk->states[i].held.length = before->held[i];
    }
    c.out->length = before->out;
    return status;
}

tp_status tpi_decode_push(tpi_decode_walk *walk, const char *token, size_t length, tpi_text *out) {
    call c = {walk, out};
    snapshot before;
    begin(c, &before);
    return end(c, &before, give(c, 0, token, length));
}

tp_status tpi_decode_finish(tpi_decode_walk *walk, tpi_text *out) {
    call c = {walk, out};
    snapshot before;
    tp_status status = TP_OK;
    begin(c, &before);
    for (size_t i = 0; i < walk->decoder->count && status == TP_OK; i++)
        if (kinds[walk->decoder->steps[i].kind].finish)
            status = kinds[walk->decoder->steps[i].kind].finish(c, i);
    TPI_TRY(end(c, &before, status));
    tpi_decode_drop(walk);
    for (size_t i = 0; i < walk->decoder->count; i++) walk->states[i].place = (tpi_decode_place){0};
    return TP_OK;
}

void tpi_decode_drop(tpi_decode_walk *walk) {
    for (size_t i = 0; i < walk->decoder->count; i++) {
        walk->states[i].held.length = 0;
        walk->states[i].place.passed = walk->states[i].place.kept = 0;
    }
}

void tpi_decode_walk_free(tpi_decode_walk *walk) {
    for (size_t i = 0; i < TPI_DECODE_MAX_STEPS; i++) {
        tpi_text_free(&walk->states[i].held);
        tpi_text_free(&walk->states[i].made);
    }
}

void tpi_decoder_free(tpi_decoder *decoder) {
    for (size_t i = 0; i < decoder->count; i++) {
        tpi_free(decoder->steps[i].mark);
        tpi_free(decoder->steps[i].content);
    }
    tpi_free(decoder->steps);
    *decoder = (tpi_decoder){0};
}
