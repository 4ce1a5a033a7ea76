/* Generating text with a model, its tokenizer and any number of adapters.
 *
 * A generator keeps a key and value cache, so each new token costs one row of the model. The same model,
 * adapters, prompt, options and number of threads give the same tokens; in a deterministic context the number
 * of threads plays no part. A generator is used by one thread at a time; several may share a model.
 *
 *     static bool print(void *user, int32_t id, const char *text, size_t length) {
 *         return fwrite(text, 1, length, user) == length;
 *     }
 *     ...
 *     tp_generator *generator;
 *     if (tp_generator_create(&generator, model, tokenizer, NULL, 0) != TP_OK) return 1;
 *     tp_generate_options options = TP_GENERATE_OPTIONS_INIT;
 *     options.temperature = 0.8;
 *     tp_status status = tp_generate(generator, "In the beginning", 16, &options, print, stdout, NULL);
 *     tp_generator_destroy(generator);
 */
#ifndef TAPER_GENERATE_H
#define TAPER_GENERATE_H

#include "taper/model.h"
#include "taper/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_generator tp_generator;

/* How a token is chosen from the logits. The steps run in this order, which is that of Hugging Face
 * transformers: repetition penalty, temperature, top-k, top-p, min-p, and a draw from what remains. */
typedef struct tp_generate_options {
    size_t size;               /* sizeof(tp_generate_options): set by TP_GENERATE_OPTIONS_INIT */
    int64_t max_tokens;        /* ≥ 1: the most tokens to generate */
    double temperature;        /* ≥ 0; 0: the likeliest token, and top-k, top-p and min-p play no part */
    int64_t top_k;             /* > 0: the k likeliest tokens alone (Fan et al. 2018), with ties; 0: all */
    double top_p;              /* in (0, 1]: the fewest tokens that have this probability together, the
                                  likeliest first (Holtzman et al. 2020); 1: all */
    double min_p;              /* in [0, 1]: tokens at least this many times as likely as the likeliest */
    double repetition_penalty; /* > 0: divides the logits above 0 of every token of the prompt and the text,
                                  and multiplies those below (Keskar et al. 2019); 1: none */
    uint64_t seed;             /* of the draws */
    const char *const *stop;   /* texts that end generation, in UTF-8, not empty; they are not given out */
    int stop_count;
    bool ignore_stop_ids; /* go on after a token that ends the text (tp_model_stop_ids) */
    bool show_special;    /* give special tokens out as text */
} tp_generate_options;

#define TP_GENERATE_OPTIONS_INIT                                                                             \
    { sizeof(tp_generate_options), 256, 0.0, 0, 1.0, 0.0, 1.0, 0, NULL, 0, false, false }

/* Why generation ended. */
typedef enum tp_generate_end {
    TP_END_LENGTH,  /* max_tokens */
    TP_END_TOKEN,   /* a token that ends the text */
    TP_END_STOP,    /* a stop text */
    TP_END_CALLBACK /* the callback returned false */
} tp_generate_end;

typedef struct tp_generate_stats {
    int64_t prompt_tokens, tokens;  /* tokens: generated, without the one that ended the text */
    double prompt_seconds, seconds; /* until the prompt was read; from there to the end */
    tp_generate_end end;
} tp_generate_stats;

/* Receives each token with the text that it completes: whole characters, often none, never a part of a stop
 * text. A last call with id -1 gives what was held back, if anything was. `text` is borrowed for the call
 * and not NUL-terminated. Returning false ends generation. */
typedef bool (*tp_generate_fn)(void *user, int32_t id, const char *text, size_t length);

/* A generator over borrowed model and adapters, which must outlive it. `tokenizer` is retained; NULL: prompts
 * are ids, and no text is given out. `adapters` is copied; NULL with count 0. Owned. Fails with TP_EINVAL,
 * TP_ENOMEM. */
TP_API tp_status tp_generator_create(tp_generator **out, const tp_model *model, tp_tokenizer *tokenizer,
                                     const tp_adapter_use *adapters, int adapter_count);

/* NULL does nothing. */
TP_API void tp_generator_destroy(tp_generator *generator);

/* Continues a prompt of `length` bytes of text. The tokenizer's template adds its tokens (begin of text ...),
 * a begin token that the prompt spells out itself not twice. `options`, `callback` and `stats` may be NULL.
 * Fails with TP_EINVAL (an option out of range, by name; a prompt without tokens; no tokenizer),
 * TP_ENONFINITE (a logit is NaN or +inf), TP_ENOMEM, TP_ELIMIT. */
TP_API tp_status tp_generate(tp_generator *generator, const char *prompt, size_t length,
                             const tp_generate_options *options, tp_generate_fn callback, void *user,
                             tp_generate_stats *stats);

/* The same for a prompt of `count` ids, taken as they are. Fails with TP_EINVAL for an id that the model does
 * not have, and for stop texts without a tokenizer, too. */
TP_API tp_status tp_generate_ids(tp_generator *generator, const int32_t *ids, size_t count,
                                 const tp_generate_options *options, tp_generate_fn callback, void *user,
                                 tp_generate_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
