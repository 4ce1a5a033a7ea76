/* One pass over the matches of a step. A piece waits until the next one is known, which decides whether they
 * are joined; the five behaviours differ in that decision alone. */
#include "tokenizer/pretokenize.h"
#include "core/alloc.h"
#include "core/error.h"

#include <string.h>

typedef struct piece {
    size_t start, end;
    bool is_match;
} piece;

/* What a step cuts. */
typedef struct whole {
    const char *text;
    size_t length;
    tpi_standing standing;
} whole;

static tp_status split_from(tpi_split_walk *walk, size_t step, const char *text, size_t length,
                            tpi_standing standing);

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
static tp_status send(tpi_split_walk *walk, size_t step, whole of, piece ready) {
    if (walk->splitter->steps[step].behavior == TPI_SPLIT_REMOVED && ready.is_match) return TP_OK;
    return split_from(walk, step + 1, of.text + ready.start, ready.end - ready.start,
                      ready.start ? TPI_STANDS_BEHIND : of.standing);
}

/* Takes the next piece: joins it to the waiting one, which is empty at first, or sends that on. */
static tp_status take(tpi_split_walk *walk, size_t step, whole of, piece *waiting, piece next) {
    tpi_split_behavior behavior = walk->splitter->steps[step].behavior;
    if (waiting->end > 0 && joins(behavior, waiting->is_match, next.is_match)) {
        waiting->end = next.end;
        waiting->is_match = next.is_match;
        return TP_OK;
    }
    piece ready = *waiting;
    *waiting = next;
    return send(walk, step, of, ready);
}

static tp_status split_by_pattern(tpi_split_walk *walk, size_t step, whole of) {
    const tpi_split_step *split = &walk->splitter->steps[step];
    tpi_matches matches = tpi_matches_in(of.text, of.length);
    piece waiting = {0};
    size_t end = 0; /* of what was taken */
    for (;;) {
        bool found;
        TPI_TRY(tpi_matches_next(&matches, split->pattern, walk->matcher, &found));
        size_t until = found ? matches.start : of.length;
        if (until > end) TPI_TRY(take(walk, step, of, &waiting, (piece){end, until, split->invert}));
        if (!found) break;
        end = matches.end;
        TPI_TRY(take(walk, step, of, &waiting, (piece){matches.start, end, !split->invert}));
    }
    return send(walk, step, of, waiting);
}

static bool has_prefix(const tpi_split_step *step, tpi_standing standing) {
    if (step->prefix == TPI_PREFIX_FIRST) return standing == TPI_STANDS_FIRST;
    return step->prefix == TPI_PREFIX_ALWAYS && standing != TPI_STANDS_CONTINUED;
}

/* Makes blanks marks, and puts one before a piece that has none and gets one. */
static tp_status split_marked(tpi_split_walk *walk, size_t step, whole of) {
    const tpi_split_step *marking = &walk->splitter->steps[step];
    const char *mark = marking->mark, *text = of.text, *end = of.text + of.length;
    size_t size = strlen(mark);
    bool marked = text[0] == ' ' || (of.length >= size && memcmp(text, mark, size) == 0);
    walk->marked.length = 0;
    TPI_TRY(tpi_text_append(&walk->marked, mark, !marked && has_prefix(marking, of.standing) ? size : 0));
    for (const char *blank; (blank = memchr(text, ' ', (size_t)(end - text))); text = blank + 1) {
        TPI_TRY(tpi_text_append(&walk->marked, text, (size_t)(blank - text)));
        TPI_TRY(tpi_text_append(&walk->marked, mark, size));
    }
    TPI_TRY(tpi_text_append(&walk->marked, text, (size_t)(end - text)));
    return split_from(walk, step + 1, walk->marked.data, walk->marked.length, of.standing);
}

/* The recursion is as deep as there are steps. */
static tp_status split_from(tpi_split_walk *walk, size_t step, const char *text, size_t length,
                            tpi_standing standing) {
    whole of = {text, length, standing};
    if (length == 0) return TP_OK;
    if (step == walk->splitter->count) return walk->word(walk->context, text, length);
    return walk->splitter->steps[step].pattern ? split_by_pattern(walk, step, of)
                                               : split_marked(walk, step, of);
}

tp_status tpi_split(tpi_split_walk *walk, const char *text, size_t length, tpi_standing standing) {
    return split_from(walk, 0, text, length, standing);
}

void tpi_splitter_free(tpi_splitter *splitter) {
    for (size_t i = 0; i < splitter->count; i++) tpi_regex_destroy(splitter->steps[i].pattern);
    tpi_free(splitter->steps);
    *splitter = (tpi_splitter){0};
}
