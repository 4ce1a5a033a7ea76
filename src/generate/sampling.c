/* Greedy choice, and draws after temperature, top-k, top-p and min-p.
 *
 * The trick: the candidates are a heap, the likeliest on top, and only those that are kept are taken from it.
 * Building it is linear in the vocabulary, so nothing sorts 150,000 tokens to keep fifty. */
#include "generate/sampling.h"

#include "core/alloc.h"
#include "core/error.h"

#include <math.h>
#include <string.h>

/* ---- options ---- */

static tp_status check_range(const char *name, double value, double low, double high, bool open) {
    if (value > low ? value <= high : value == low && !open) return TP_OK;
    return tpi_fail(TP_EINVAL, "generate: %s is %g, expected %s %g and at most %g", name, value,
                    open ? "above" : "at least", low, high);
}

tp_status tpi_sampling_check(const tp_generate_options *o) {
    if (o->size != sizeof *o)
        return tpi_fail(TP_EINVAL, "generate: options.size is %zu, expected %zu", o->size, sizeof *o);
    if (o->max_tokens < 1)
        return tpi_fail(TP_EINVAL, "generate: max_tokens is %lld, expected at least 1",
                        (long long)o->max_tokens);
    if (o->top_k < 0)
        return tpi_fail(TP_EINVAL, "generate: top_k is %lld, expected at least 0", (long long)o->top_k);
    TPI_TRY(check_range("temperature", o->temperature, 0, 1e6, false));
    TPI_TRY(check_range("top_p", o->top_p, 0, 1, true));
    TPI_TRY(check_range("min_p", o->min_p, 0, 1, false));
    return check_range("repetition_penalty", o->repetition_penalty, 0, 1e6, true);
}

tp_status tpi_sampler_init(tpi_sampler *s, const tp_generate_options *options, int64_t vocab) {
    *s = (tpi_sampler){.options = *options, .random = {options->seed, 0}, .vocab = vocab};
    s->seen = tpi_calloc((size_t)vocab, sizeof *s->seen);
    s->scores = tpi_calloc((size_t)vocab, sizeof *s->scores);
    s->candidates = tpi_calloc((size_t)vocab, sizeof *s->candidates);
    if (s->seen && s->scores && s->candidates) return TP_OK;
    tpi_sampler_clear(s);
    return TP_ENOMEM;
}

void tpi_sampler_clear(tpi_sampler *s) {
    tpi_free(s->seen);
    tpi_free(s->scores);
    tpi_free(s->candidates);
    *s = (tpi_sampler){0};
}

void tpi_sampler_see(tpi_sampler *s, int32_t id) {
    s->seen[id] = true;
}

/* ---- the heap: every candidate comes before its two children ---- */

/* Of equally likely tokens the one with the smaller id is first, as argmax has it. */
static bool before(tpi_choice a, tpi_choice b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
}

static void sift_down(tpi_choice *heap, int64_t n, int64_t at) {
    const tpi_choice moving = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], moving)) break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

static void make_heap(tpi_choice *heap, int64_t n) {
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift_down(heap, n, i);
}

/* Takes the top off a heap of n; it then lies behind the heap's new end, at n - 1. */
static tpi_choice take_top(tpi_choice *heap, int64_t n) {
    const tpi_choice top = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = top;
    if (n > 1) sift_down(heap, n - 1, 0);
    return top;
}

/* ---- the steps ---- */

static void penalise(tpi_sampler *s) {
    const float penalty = (float)s->options.repetition_penalty;
    if (penalty == 1.0f) return;
    for (int64_t i = 0; i < s->vocab; i++)
        if (s->seen[i]) s->scores[i] = s->scores[i] < 0 ? s->scores[i] * penalty : s->scores[i] / penalty;
}

static int64_t likeliest(const float *scores, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (scores[i] > scores[best]) best = i;
    return best;
}

/* The probability of a token as a multiple of the likeliest's. */
static double weight(const tpi_sampler *s, tpi_choice candidate, float top) {
    return exp(((double)candidate.score - (double)top) / s->options.temperature);
}

/* Takes the k likeliest candidates, and those equal to the last of them; returns how many. */
static int64_t take_top_k(tpi_sampler *s) {
    const int64_t k = s->options.top_k;
    int64_t taken = 0;
    float last = 0;
    while (taken < s->vocab && (taken < k || s->candidates[0].score == last))
        last = take_top(s->candidates, s->vocab - taken++).score;
    return taken;
}

/* Top-p and min-p: of the first `limit` candidates, `taken` of which are off the heap already, keeps one
 * while those before it have less than top_p of the probability, and it has min_p of the likeliest's. Returns
 * how many, at least one. */
static int64_t take_likely(tpi_sampler *s, int64_t limit, int64_t taken, double total, float top) {
    double sum = 0;
    int64_t n = 0;
    for (; n < limit && (n == 0 || sum < s->options.top_p * total); n++) {
        tpi_choice *next = n < taken ? &s->candidates[s->vocab - 1 - n] : &s->candidates[0];
        const double w = weight(s, *next, top);
        if (n > 0 && w < s->options.min_p) break;
        if (n >= taken) take_top(s->candidates, s->vocab - n);
        sum += w;
    }
    return n;
}

/* The total weight of the first n candidates, which lie at the array's end. */
static double sum_weights(const tpi_sampler *s, int64_t n, float top) {
    double sum = 0;
    for (int64_t i = s->vocab - n; i < s->vocab; i++) sum += weight(s, s->candidates[i], top);
    return sum;
}

static int32_t draw(tpi_sampler *s, float top) {
    const tp_generate_options *o = &s->options;
    for (int64_t i = 0; i < s->vocab; i++) s->candidates[i] = (tpi_choice){s->scores[i], (int32_t)i};
    make_heap(s->candidates, s->vocab);
    const int64_t taken = o->top_k > 0 ? take_top_k(s) : 0;
    int64_t n = taken ? taken : s->vocab;
    double total = sum_weights(s, n, top);
    if (o->top_p < 1 || o->min_p > 0) {
        n = take_likely(s, n, taken, total, top);
        total = sum_weights(s, n, top);
    }
    double rest = tpi_random_next(&s->random) * 0x1p-32 * total;
    int64_t at = s->vocab - 1;
    for (; at > s->vocab - n; at--) {
        rest -= weight(s, s->candidates[at], top);
        if (rest < 0) break;
    }
    return s->candidates[at].id;
}

static tp_status check_top(int64_t id, float logit) {
    if (isnan(logit))
        return tpi_fail(TP_ENONFINITE, "generate: the logit of token %lld is NaN", (long long)id);
    if (!isfinite(logit))
        return tpi_fail(TP_ENONFINITE, "generate: the largest logit, of token %lld, is %g", (long long)id,
                        (double)logit);
    return TP_OK;
}

tp_status tpi_sampler_see_choice(tpi_sampler *s, int32_t id, float logit) {
    TPI_TRY(check_top(id, logit));
    tpi_sampler_see(s, id);
    return TP_OK;
}

tp_status tpi_sampler_next(tpi_sampler *s, const float *logits, int32_t *id) {
    memcpy(s->scores, logits, (size_t)s->vocab * sizeof *logits);
    for (int64_t i = 0; i < s->vocab; i++)
        if (isnan(logits[i])) return check_top(i, logits[i]);
    penalise(s);
    const int64_t best = likeliest(s->scores, s->vocab);
    const float top = s->scores[best];
    TPI_TRY(check_top(best, top));
    *id = s->options.temperature > 0 ? draw(s, top) : (int32_t)best;
    tpi_sampler_see(s, *id);
    return TP_OK;
}
