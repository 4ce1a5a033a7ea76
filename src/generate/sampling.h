/* From logits to a token.
 *
 * Invariant: `seen` marks the prompt's tokens and those chosen so far; the random stream advances by one
 * number a draw, and not at all for greedy choices. */
#ifndef TAPER_GENERATE_SAMPLING_H
#define TAPER_GENERATE_SAMPLING_H

#include "core/random.h"
#include "taper/generate.h"

typedef struct tpi_choice {
    float score;
    int32_t id;
} tpi_choice;

typedef struct tpi_sampler {
    tp_generate_options options;
    tpi_random random;
    int64_t vocab;
    bool *seen;             /* owned, [vocab] */
    float *scores;          /* owned, [vocab] */
    tpi_choice *candidates; /* owned, [vocab] */
} tpi_sampler;

/* TP_EINVAL, by name, for an option that is out of range. */
tp_status tpi_sampling_check(const tp_generate_options *options);

tp_status tpi_sampler_init(tpi_sampler *sampler, const tp_generate_options *options, int64_t vocab);
void tpi_sampler_clear(tpi_sampler *sampler); /* of a zeroed one: nothing */

/* A token that the repetition penalty counts; id in [0, vocab). */
void tpi_sampler_see(tpi_sampler *sampler, int32_t id);

/* Sees a greedy choice that was made elsewhere, with its logit. TP_ENONFINITE as below. */
tp_status tpi_sampler_see_choice(tpi_sampler *sampler, int32_t id, float logit);

/* Chooses from logits [vocab] and sees the choice. TP_ENONFINITE if one is NaN or +inf, or all are -inf. */
tp_status tpi_sampler_next(tpi_sampler *sampler, const float *logits, int32_t *id);

#endif
