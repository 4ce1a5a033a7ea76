/* One table per list of steps: the type's name, the function that reads it, and an argument. A Sequence is
 * read through the same table, so that nested ones come out flat. */
#include "tokenizer/load_steps.h"
#include "core/alloc.h"
#include "core/error.h"

#include <string.h>

/* GPT-2's pattern (Radford et al. 2019, the published encoder): ByteLevel's own. */
#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

typedef struct step_type {
    const char *name;
    tp_status (*read)(tpi_json step, int argument, tp_tokenizer *tokenizer);
    int argument;
} step_type;

tp_status tpi_load_located(tpi_json value, tp_status status) {
    if (status == TP_OK || status == TP_ENOMEM) return status;
    return tpi_json_fail(value, status, "%s", tp_error_message());
}

/* Reads a step by the table, which ends with a NULL name, or each step of a Sequence under `list`. */
static tp_status read_step(tpi_json step, const step_type *types, const char *list, tp_tokenizer *tokenizer) {
    if (tpi_json_type_of(step) == TPI_JSON_ABSENT || tpi_json_type_of(step) == TPI_JSON_NULL) return TP_OK;
    const char *type;
    TPI_TRY(tpi_json_get_string(step, "type", &type));
    if (strcmp(type, "Sequence") == 0) {
        tpi_json members;
        TPI_TRY(tpi_json_get_array(step, list, &members));
        for (tpi_json v = tpi_json_first(members); tpi_json_exists(v); v = tpi_json_next(v))
            TPI_TRY(read_step(v, types, list, tokenizer));
        return TP_OK;
    }
    for (; types->name; types++)
        if (strcmp(types->name, type) == 0) return types->read(step, types->argument, tokenizer);
    return tpi_json_fail(step, TP_EUNSUPPORTED, "the type %s is not supported", type);
}

/* {"Regex": ...} or {"String": ...}. */
static tp_status read_pattern(tpi_json step, tpi_regex **out) {
    tpi_json pattern;
    const char *source;
    TPI_TRY(tpi_json_get_object(step, "pattern", &pattern));
    bool regex = tpi_json_exists(tpi_json_find(pattern, "Regex"));
    TPI_TRY(tpi_json_get_string(pattern, regex ? "Regex" : "String", &source));
    return tpi_load_located(pattern, tpi_pattern_create(source, !regex, out));
}

/* The member `key`, which is a single character. */
static tp_status read_character(tpi_json step, const char *key, const char **out) {
    int32_t character;
    TPI_TRY(tpi_json_get_string(step, key, out));
    if (**out && !(*out)[tpi_text_decode(*out, &character)]) return TP_OK;
    return tpi_json_fail(tpi_json_find(step, key), TP_EFORMAT, "expected one character, got \"%.64s\"", *out);
}

/* Metaspace's scheme; older files say add_prefix_space instead. */
static tp_status read_prefix(tpi_json step, tpi_prefix *prefix) {
    static const char *const schemes[] = {"always", "first", "never"};
    const char *scheme;
    bool add_prefix_space;
    size_t i = 0;
    TPI_TRY(tpi_json_get_bool_or(step, "add_prefix_space", true, &add_prefix_space));
    TPI_TRY(tpi_json_get_string_or(step, "prepend_scheme", add_prefix_space ? "always" : "never", &scheme));
    while (i < 3 && strcmp(schemes[i], scheme) != 0) i++;
    if (i == 3) return tpi_json_fail(step, TP_EUNSUPPORTED, "the prepend_scheme %s is not supported", scheme);
    *prefix = (tpi_prefix)i;
    if (add_prefix_space || *prefix == TPI_PREFIX_NEVER) return TP_OK;
    return tpi_json_fail(step, TP_EFORMAT, "the prepend_scheme %s contradicts add_prefix_space", scheme);
}

/* --- Normalizer --- */

/* The new last step, empty. */
static tp_status add_normal_step(tp_tokenizer *tokenizer, int kind, tpi_normal_step **step) {
    tpi_normalizer *n = &tokenizer->normalizer;
    TPI_TRY(tpi_grow(&n->steps, &n->capacity, n->count + 1, sizeof *n->steps));
    *step = &n->steps[n->count++];
    **step = (tpi_normal_step){.kind = (tpi_normal_kind)kind};
    return TP_OK;
}

static tp_status read_form(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    tpi_normal_step *added;
    (void)step;
    return add_normal_step(tokenizer, kind, &added);
}

static tp_status read_content(tpi_json step, const char *key, tpi_normal_step *added) {
    const char *content;
    TPI_TRY(tpi_json_get_string(step, key, &content));
    return (added->content = tpi_strdup(content)) ? TP_OK : TP_ENOMEM;
}

static tp_status read_replace(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    tpi_normal_step *added;
    TPI_TRY(add_normal_step(tokenizer, kind, &added));
    TPI_TRY(read_pattern(step, &added->pattern));
    return read_content(step, "content", added);
}

static tp_status read_prepend(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    tpi_normal_step *added;
    TPI_TRY(add_normal_step(tokenizer, kind, &added));
    return read_content(step, "prepend", added);
}

tp_status tpi_load_normalizer(tpi_json value, tp_tokenizer *tokenizer) {
    static const step_type types[] = {
        {"NFC", read_form, TPI_NORMAL_NFC},
        {"NFD", read_form, TPI_NORMAL_NFD},
        {"NFKC", read_form, TPI_NORMAL_NFKC},
        {"NFKD", read_form, TPI_NORMAL_NFKD},
        {"Lowercase", read_form, TPI_NORMAL_LOWERCASE},
        {"Replace", read_replace, TPI_NORMAL_REPLACE},
        {"Prepend", read_prepend, TPI_NORMAL_PREPEND},
        {NULL, NULL, 0},
    };
    return read_step(value, types, "normalizers", tokenizer);
}

/* --- Pre-tokenizer --- */

/* Adds a step and consumes its pattern. */
static tp_status add_split_step(tp_tokenizer *tokenizer, tpi_split_step step) {
    tpi_splitter *s = &tokenizer->splitter;
    tp_status status = s->count < TPI_SPLIT_MAX_STEPS
                           ? tpi_grow(&s->steps, &s->capacity, s->count + 1, sizeof *s->steps)
                           : tpi_fail(TP_EUNSUPPORTED, "more than %d steps", TPI_SPLIT_MAX_STEPS);
    if (status == TP_OK)
        s->steps[s->count++] = step;
    else
        tpi_regex_destroy(step.pattern);
    return status;
}

/* Bytes stand for themselves until the model, so what would see the characters that stand for them is
 * refused. */
static tp_status check_before_bytes(tpi_json step, const tp_tokenizer *tokenizer) {
    if (!tokenizer->bpe.byte_level) return TP_OK;
    return tpi_json_fail(step, TP_EUNSUPPORTED, "a step behind ByteLevel is not supported");
}

static tp_status read_split(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    static const char *const behaviors[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                            "Contiguous"};
    (void)unused;
    tpi_split_step split = {0};
    const char *behavior;
    size_t b = 0;
    TPI_TRY(check_before_bytes(step, tokenizer));
    TPI_TRY(tpi_json_get_string(step, "behavior", &behavior));
    TPI_TRY(tpi_json_get_bool_or(step, "invert", false, &split.invert));
    while (b < 5 && strcmp(behaviors[b], behavior) != 0) b++;
    if (b == 5) return tpi_json_fail(step, TP_EUNSUPPORTED, "the behavior %s is not supported", behavior);
    split.behavior = (tpi_split_behavior)b;
    TPI_TRY(read_pattern(step, &split.pattern));
    return tpi_load_located(step, add_split_step(tokenizer, split));
}

static tp_status read_digits(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    bool individual;
    tpi_split_step split = {0};
    TPI_TRY(check_before_bytes(step, tokenizer));
    TPI_TRY(tpi_json_get_bool_or(step, "individual_digits", false, &individual));
    split.behavior = individual ? TPI_SPLIT_ISOLATED : TPI_SPLIT_CONTIGUOUS;
    TPI_TRY(tpi_pattern_create("\\p{N}", false, &split.pattern));
    return tpi_load_located(step, add_split_step(tokenizer, split));
}

/* Blanks to marks; `mark` is a character. */
static tp_status add_marking(tpi_json step, const char *mark, tpi_prefix prefix, tp_tokenizer *tokenizer) {
    tpi_split_step marking = {.prefix = prefix};
    for (size_t i = 0; i < tokenizer->splitter.count; i++)
        if (!tokenizer->splitter.steps[i].pattern)
            return tpi_json_fail(step, TP_EUNSUPPORTED, "a second step that puts a prefix is not supported");
    memcpy(marking.mark, mark, strlen(mark));
    return tpi_load_located(step, add_split_step(tokenizer, marking));
}

static tp_status read_byte_level(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    bool add_prefix_space, use_regex;
    TPI_TRY(check_before_bytes(step, tokenizer));
    TPI_TRY(tpi_json_get_bool_or(step, "add_prefix_space", true, &add_prefix_space));
    TPI_TRY(tpi_json_get_bool_or(step, "use_regex", true, &use_regex));
    tokenizer->bpe.byte_level = true;
    if (add_prefix_space) TPI_TRY(add_marking(step, " ", TPI_PREFIX_ALWAYS, tokenizer));
    if (!use_regex) return TP_OK;
    tpi_split_step split = {.behavior = TPI_SPLIT_ISOLATED};
    TPI_TRY(tpi_pattern_create(GPT2_PATTERN, false, &split.pattern));
    return tpi_load_located(step, add_split_step(tokenizer, split));
}

static tp_status read_metaspace(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    const char *mark;
    tpi_prefix prefix;
    bool splits;
    tpi_split_step split = {.behavior = TPI_SPLIT_MERGED_WITH_NEXT};
    TPI_TRY(check_before_bytes(step, tokenizer));
    TPI_TRY(read_character(step, "replacement", &mark));
    TPI_TRY(read_prefix(step, &prefix));
    TPI_TRY(tpi_json_get_bool_or(step, "split", true, &splits));
    TPI_TRY(add_marking(step, mark, prefix, tokenizer));
    if (!splits) return TP_OK;
    TPI_TRY(tpi_pattern_create(mark, true, &split.pattern));
    return tpi_load_located(step, add_split_step(tokenizer, split));
}

tp_status tpi_load_pre_tokenizer(tpi_json value, tp_tokenizer *tokenizer) {
    static const step_type types[] = {
        {"Split", read_split, 0},
        {"Digits", read_digits, 0},
        {"Metaspace", read_metaspace, 0},
        {"ByteLevel", read_byte_level, 0}, /* nothing stands behind it */
        {NULL, NULL, 0},
    };
    return read_step(value, types, "pretokenizers", tokenizer);
}

/* --- Post-processor: the template --- */

static tp_status check_id(tpi_json value, const tp_tokenizer *tokenizer, int32_t *id) {
    int64_t wide;
    size_t length;
    TPI_TRY(tpi_json_as_int(value, 0, TPI_VOCAB_MAX_ID, &wide));
    *id = (int32_t)wide;
    if (tpi_vocab_spelling(&tokenizer->vocab, *id, &length)) return TP_OK;
    return tpi_json_fail(value, TP_EFORMAT, "no token has the id %d", *id);
}

/* Appends the ids that `special_tokens` gives to a special token of the template. */
static tp_status append_special(tpi_json template, const char *name, const tp_tokenizer *tokenizer,
                                tpi_ids *to) {
    tpi_json specials, special, ids;
    TPI_TRY(tpi_json_get_object(template, "special_tokens", &specials));
    TPI_TRY(tpi_json_get_object(specials, name, &special));
    TPI_TRY(tpi_json_get_array(special, "ids", &ids));
    for (tpi_json v = tpi_json_first(ids); tpi_json_exists(v); v = tpi_json_next(v)) {
        int32_t id;
        TPI_TRY(check_id(v, tokenizer, &id));
        TPI_TRY(tpi_ids_append(to, &id, 1));
    }
    return TP_OK;
}

/* Of several templates in a Sequence the later ones would wrap the earlier: one is all that occurs. */
static tp_status check_only_template(tpi_json step, const tp_tokenizer *tokenizer) {
    if (tokenizer->prefix.count + tokenizer->suffix.count == 0) return TP_OK;
    return tpi_json_fail(step, TP_EUNSUPPORTED, "a second template is not supported");
}

static tp_status read_template(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    tpi_json single;
    int sequences = 0;
    TPI_TRY(check_only_template(step, tokenizer));
    TPI_TRY(tpi_json_get_array(step, "single", &single));
    for (tpi_json v = tpi_json_first(single); tpi_json_exists(v); v = tpi_json_next(v)) {
        const char *name;
        tpi_json special = tpi_json_find(v, "SpecialToken");
        if (!tpi_json_exists(special)) {
            tpi_json sequence;
            TPI_TRY(tpi_json_get_object(v, "Sequence", &sequence));
            sequences++;
            continue;
        }
        TPI_TRY(tpi_json_get_string(special, "id", &name));
        TPI_TRY(append_special(step, name, tokenizer, sequences ? &tokenizer->suffix : &tokenizer->prefix));
    }
    if (sequences == 1) return TP_OK;
    return tpi_json_fail(single, TP_EUNSUPPORTED, "expected the sequence once, got it %d times", sequences);
}

/* BertProcessing and RobertaProcessing: "cls" before and "sep" behind, each [token, id]. */
static tp_status read_pair(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    static const char *const keys[] = {"cls", "sep"};
    tpi_ids *const to[] = {&tokenizer->prefix, &tokenizer->suffix};
    TPI_TRY(check_only_template(step, tokenizer));
    for (int i = 0; i < 2; i++) {
        tpi_json pair;
        int32_t id;
        TPI_TRY(tpi_json_get_array(step, keys[i], &pair));
        if (tpi_json_count(pair) != 2)
            return tpi_json_fail(pair, TP_EFORMAT, "expected [token, id], got %zu values",
                                 tpi_json_count(pair));
        TPI_TRY(check_id(tpi_json_next(tpi_json_first(pair)), tokenizer, &id));
        TPI_TRY(tpi_ids_append(to[i], &id, 1));
    }
    return TP_OK;
}

/* ByteLevel here trims offsets: no effect on ids. */
static tp_status read_nothing(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)step, (void)unused, (void)tokenizer;
    return TP_OK;
}

tp_status tpi_load_post_processor(tpi_json value, tp_tokenizer *tokenizer) {
    static const step_type types[] = {
        {"TemplateProcessing", read_template, 0},
        {"RobertaProcessing", read_pair, 0},
        {"BertProcessing", read_pair, 0},
        {"ByteLevel", read_nothing, 0},
        {NULL, NULL, 0},
    };
    return read_step(value, types, "processors", tokenizer);
}

/* --- Decoder --- */

/* Adds a step with copies of its texts. */
static tp_status add_decode_step(tpi_json json, tp_tokenizer *tokenizer, tpi_decode_step step,
                                 const char *mark, const char *content) {
    tpi_decoder *d = &tokenizer->decoder;
    if (d->count == TPI_DECODE_MAX_STEPS)
        return tpi_json_fail(json, TP_EUNSUPPORTED, "more than %d steps", TPI_DECODE_MAX_STEPS);
    TPI_TRY(tpi_grow(&d->steps, &d->capacity, d->count + 1, sizeof *d->steps));
    step.fused = d->fused;
    step.mark = tpi_strdup(mark);
    step.content = tpi_strdup(content);
    d->steps[d->count++] = step;
    return step.mark && step.content ? TP_OK : TP_ENOMEM;
}

/* Makes one token of all, whatever they were. */
static tp_status read_fuse(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    tpi_decode_step fuse = {.kind = (tpi_decode_kind)kind};
    TPI_TRY(add_decode_step(step, tokenizer, fuse, "", ""));
    tokenizer->decoder.fused = true;
    return TP_OK;
}

/* What reads a token as a whole would wait for all of a text behind Fuse. */
static tp_status check_unfused(tpi_json step, const tp_tokenizer *tokenizer) {
    if (!tokenizer->decoder.fused) return TP_OK;
    return tpi_json_fail(step, TP_EUNSUPPORTED, "this step is not supported behind Fuse or ByteLevel");
}

static tp_status read_byte_decoder(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    TPI_TRY(check_unfused(step, tokenizer));
    return read_fuse(step, kind, tokenizer);
}

static tp_status read_fallback(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    tpi_decode_step fallback = {.kind = (tpi_decode_kind)kind};
    TPI_TRY(check_unfused(step, tokenizer));
    return add_decode_step(step, tokenizer, fallback, "", "");
}

static tp_status read_decode_replace(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    tpi_json pattern;
    const char *mark, *content;
    int32_t character;
    tpi_decode_step replace = {.kind = (tpi_decode_kind)kind};
    TPI_TRY(tpi_json_get_object(step, "pattern", &pattern));
    if (tpi_json_exists(tpi_json_find(pattern, "Regex")))
        return tpi_json_fail(pattern, TP_EUNSUPPORTED, "a Regex is not supported in a decoder");
    TPI_TRY(tpi_json_get_string(pattern, "String", &mark));
    TPI_TRY(tpi_json_get_string(step, "content", &content));
    if (!*mark) return tpi_json_fail(pattern, TP_EUNSUPPORTED, "an empty pattern is not supported");
    if (mark[tpi_text_decode(mark, &character)]) TPI_TRY(check_unfused(step, tokenizer));
    return add_decode_step(step, tokenizer, replace, mark, content);
}

static tp_status read_strip(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    const char *mark;
    int64_t start, stop;
    TPI_TRY(read_character(step, "content", &mark));
    TPI_TRY(tpi_json_get_int(step, "start", 0, INT32_MAX, &start));
    TPI_TRY(tpi_json_get_int(step, "stop", 0, INT32_MAX, &stop));
    tpi_decode_step strip = {.kind = (tpi_decode_kind)kind, .start = (size_t)start, .stop = (size_t)stop};
    return add_decode_step(step, tokenizer, strip, mark, "");
}

/* Marks become blanks; where pre-tokenizing puts a prefix, the first token's become nothing. */
static tp_status read_metaspace_decoder(tpi_json step, int kind, tp_tokenizer *tokenizer) {
    const char *mark;
    tpi_prefix prefix;
    TPI_TRY(read_character(step, "replacement", &mark));
    TPI_TRY(read_prefix(step, &prefix));
    tpi_decode_step replace = {.kind = (tpi_decode_kind)kind, .drops_first = prefix != TPI_PREFIX_NEVER};
    return add_decode_step(step, tokenizer, replace, mark, " ");
}

/* Without a decoder tokens are joined with blanks. */
tp_status tpi_load_decoder(tpi_json value, tp_tokenizer *tokenizer) {
    static const step_type types[] = {
        {"ByteLevel", read_byte_decoder, TPI_DECODE_BYTES},
        {"ByteFallback", read_fallback, TPI_DECODE_FALLBACK},
        {"Fuse", read_fuse, TPI_DECODE_FUSE},
        {"Replace", read_decode_replace, TPI_DECODE_REPLACE},
        {"Strip", read_strip, TPI_DECODE_STRIP},
        {"Metaspace", read_metaspace_decoder, TPI_DECODE_REPLACE},
        {NULL, NULL, 0},
    };
    bool none = tpi_json_type_of(value) == TPI_JSON_ABSENT || tpi_json_type_of(value) == TPI_JSON_NULL;
    return none ? read_fuse(value, TPI_DECODE_JOIN, tokenizer)
                : read_step(value, types, "decoders", tokenizer);
}
