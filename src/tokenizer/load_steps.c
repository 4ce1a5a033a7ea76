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
static tp_status read_pattern(tpi_json step, tpi_pattern **out) {
    tpi_json pattern;
    const char *source;
    TPI_TRY(tpi_json_get_object(step, "pattern", &pattern));
    bool regex = tpi_json_exists(tpi_json_find(pattern, "Regex"));
    TPI_TRY(tpi_json_get_string(pattern, regex ? "Regex" : "String", &source));
    return tpi_load_located(pattern, tpi_pattern_create(source, !regex, out));
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
    tp_status status = tpi_grow(&s->steps, &s->capacity, s->count + 1, sizeof *s->steps);
    if (status == TP_OK)
        s->steps[s->count++] = step;
    else
        tpi_pattern_destroy(step.pattern);
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
    return add_split_step(tokenizer, split);
}

static tp_status read_digits(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    bool individual;
    tpi_split_step split = {0};
    TPI_TRY(check_before_bytes(step, tokenizer));
    TPI_TRY(tpi_json_get_bool_or(step, "individual_digits", false, &individual));
    split.behavior = individual ? TPI_SPLIT_ISOLATED : TPI_SPLIT_CONTIGUOUS;
    TPI_TRY(tpi_pattern_create("\\p{N}", false, &split.pattern));
    return add_split_step(tokenizer, split);
}

static tp_status read_byte_level(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    bool add_prefix_space, use_regex;
    TPI_TRY(check_before_bytes(step, tokenizer));
    TPI_TRY(tpi_json_get_bool_or(step, "add_prefix_space", true, &add_prefix_space));
    TPI_TRY(tpi_json_get_bool_or(step, "use_regex", true, &use_regex));
    tokenizer->bpe.byte_level = true;
    if (add_prefix_space) TPI_TRY(add_split_step(tokenizer, (tpi_split_step){0}));
    if (!use_regex) return TP_OK;
    tpi_split_step split = {.behavior = TPI_SPLIT_ISOLATED};
    TPI_TRY(tpi_pattern_create(GPT2_PATTERN, false, &split.pattern));
    return add_split_step(tokenizer, split);
}

tp_status tpi_load_pre_tokenizer(tpi_json value, tp_tokenizer *tokenizer) {
    static const step_type types[] = {
        {"Split", read_split, 0},
        {"Digits", read_digits, 0},
        {"ByteLevel", read_byte_level, 0},
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

/* ByteLevel here trims offsets, and Fuse in a decoder joins what is joined already: no effect on ids or text.
 */
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

static tp_status read_byte_decoder(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    (void)unused;
    if (tokenizer->decodes_bytes)
        return tpi_json_fail(step, TP_EUNSUPPORTED, "a second ByteLevel decoder is not supported");
    tokenizer->decodes_bytes = true;
    return TP_OK;
}

static tp_status read_fuse(tpi_json step, int unused, tp_tokenizer *tokenizer) {
    if (tokenizer->decodes_bytes) return read_nothing(step, unused, tokenizer);
    return tpi_json_fail(step, TP_EUNSUPPORTED, "Fuse is supported behind ByteLevel only");
}

tp_status tpi_load_decoder(tpi_json value, tp_tokenizer *tokenizer) {
    static const step_type types[] = {
        {"ByteLevel", read_byte_decoder, 0},
        {"Fuse", read_fuse, 0},
        {NULL, NULL, 0},
    };
    return read_step(value, types, "decoders", tokenizer);
}
