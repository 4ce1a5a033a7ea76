/* One pass over the matches of a step. A piece waits until the next one is known, which decides whether they
 * are joined; the five behaviours differ in that decision alone. */
#include "tokenizer/pretokenize.h"
#include "core/alloc.h"
#include "core/error.h"

typedef struct piece {
    size_t start, end;
    bool is_match;
} piece;

static tp_status split_from(tpi_split_walk *walk, size_t step, const char *text, size_t length);

static bool joins(tpi_split_behavior behavior, bool match, bool next_match) {
    switch (behavior) {
    case TPI_SPLIT_MERGED_WITH_PREVIOUS:
        return next_match && !match;
    case TPI_SPLIT_MERGED_WITH_NEXT:
        return match && !next_match;
    case TPI_SPLIT_CONTIGUOUS:
        return match == next_match;
    default:
        return false;
    }
}

/* Sends a piece on to the steps behind `step`. */
static tp_status send(tpi_split_walk *walk, size_t step, const char *text, piece ready) {
    if (walk->splitter->steps[step].behavior == TPI_SPLIT_REMOVED && ready.is_match) return TP_OK;
    return split_from(walk, step + 1, text + ready.start, ready.end - ready.start);
}

/* Takes the next piece: joins it to the waiting one, which is empty at first, or sends that on. */
static tp_status take(tpi_split_walk *walk, size_t step, const char *text, piece *waiting, piece next) {
    tpi_split_behavior behavior = walk->splitter->steps[step].behavior;
    if (waiting->end > 0 && joins(behavior, waiting->is_match, next.is_match)) {
        waiting->end = next.end;
        waiting->is_match = next.is_match;
        return TP_OK;
    }
    piece ready = *waiting;
    *waiting = next;
    return send(walk, step, text, ready);
}

static tp_status split_by_pattern(tpi_split_walk *walk, size_t step, const char *text, size_t length) {
    const tpi_split_step *split = &walk->splitter->steps[step];
    tpi_matches matches = tpi_matches_in(text, length);
    piece waiting = {0};
    size_t end = 0; /* of what was taken */
    for (;;) {
        bool found;
        TPI_TRY(tpi_matches_next(&matches, split->pattern, walk->matcher, &found));
        size_t until = found ? matches.start : length;
        if (until > end) TPI_TRY(take(walk, step, text, &waiting, (piece){end, until, split->invert}));
        if (!found) break;
        end = matches.end;
        TPI_TRY(take(walk, step, text, &waiting, (piece){matches.start, end, !split->invert}));
    }
    return send(walk, step, text, waiting);
}

static tp_status split_with_prefix(tpi_split_walk *walk, size_t step, const char *text, size_t length) {
    if (text[0] == ' ') return split_from(walk, step + 1, text, length);
    walk->prefixed.length = 0;
    TPI_TRY(tpi_text_append(&walk->prefixed, " ", 1));
    TPI_TRY(tpi_text_append(&walk->prefixed, text, length));
    return split_from(walk, step + 1, walk->prefixed.data, walk->prefixed.length);
}

/* The recursion is as deep as there are steps. */
static tp_status split_from(tpi_split_walk *walk, size_t step, const char *text, size_t length) {
    if (length == 0) return TP_OK;
    if (step == walk->splitter->count) return walk->word(walk->context, text, length);
    if (!walk->splitter->steps[step].pattern) return split_with_prefix(walk, step, text, length);
    return split_by_pattern(walk, step, text, length);
}

tp_status tpi_split(tpi_split_walk *walk, const char *text, size_t length) {
    return split_from(walk, 0, text, length);
}

void tpi_splitter_free(tpi_splitter *splitter) {
    for (size_t i = 0; i < splitter->count; i++) tpi_pattern_destroy(splitter->steps[i].pattern);
    tpi_free(splitter->steps);
    *splitter = (tpi_splitter){0};
}
