/* tokenizer.json to a tokenizer. Every key is either read or known to leave the ids alone; any other key is
 * an error that names it, because it might change them. */
#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"
#include "io/json.h"
#include "tokenizer/load_steps.h"
#include "tokenizer/tokenizer.h"

#include <string.h>

/* Refuses members of `object` that are not in `known`, which ends with NULL. */
static tp_status check_keys(tpi_json object, const char *const *known) {
    for (tpi_json v = tpi_json_first(object); tpi_json_exists(v); v = tpi_json_next(v)) {
        size_t i = 0;
        while (known[i] && strcmp(known[i], tpi_json_key(v)) != 0) i++;
        if (!known[i]) return tpi_json_fail(v, TP_EUNSUPPORTED, "this key is not supported");
    }
    return TP_OK;
}

/* --- The model --- */

static tp_status load_vocab(tpi_json vocab, tp_tokenizer *tokenizer) {
    for (tpi_json v = tpi_json_first(vocab); tpi_json_exists(v); v = tpi_json_next(v)) {
        int64_t id;
        const char *token = tpi_json_key(v);
        TPI_TRY(tpi_json_as_int(v, 0, TPI_VOCAB_MAX_ID, &id));
        TPI_TRY(tpi_load_located(v, tpi_vocab_add(&tokenizer->vocab, token, strlen(token), (int32_t)id)));
    }
    tpi_vocab_seal_model(&tokenizer->vocab);
    return TP_OK;
}

/* The parts of "a b" or ["a", "b"]; `left` is not NUL-terminated in the first form. */
static tp_status read_merge(tpi_json merge, const char **left, size_t *left_length, const char **right) {
    if (tpi_json_type_of(merge) == TPI_JSON_ARRAY) {
        if (tpi_json_count(merge) != 2)
            return tpi_json_fail(merge, TP_EFORMAT, "expected two tokens, got %zu", tpi_json_count(merge));
        TPI_TRY(tpi_json_as_string(tpi_json_first(merge), left));
        TPI_TRY(tpi_json_as_string(tpi_json_next(tpi_json_first(merge)), right));
        *left_length = strlen(*left);
        return TP_OK;
    }
    TPI_TRY(tpi_json_as_string(merge, left));
    const char *blank = strchr(*left, ' ');
    if (!blank || strchr(blank + 1, ' '))
        return tpi_json_fail(merge, TP_EFORMAT, "expected two tokens with a blank between, got \"%.64s\"",
                             *left);
    *left_length = (size_t)(blank - *left);
    *right = blank + 1;
    return TP_OK;
}

static tp_status load_merges(tpi_json merges, tp_tokenizer *tokenizer) {
    int32_t rank = 0;
    TPI_TRY(tpi_bpe_reserve(&tokenizer->bpe, tpi_json_count(merges)));
    for (tpi_json v = tpi_json_first(merges); tpi_json_exists(v); v = tpi_json_next(v)) {
        const char *left, *right;
        size_t length = 0;
        TPI_TRY(read_merge(v, &left, &length, &right));
        tp_status status = tpi_bpe_add_merge(&tokenizer->bpe, left, length, right, strlen(right), rank++);
        TPI_TRY(tpi_load_located(v, status));
    }
    return TP_OK;
}

/* Keys that change the ids and are supported only when they have no effect. */
static tp_status check_model(tpi_json model) {
    static const char *const known[] = {"type",
                                        "dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "fuse_unk",
                                        "byte_fallback",
                                        "ignore_merges",
                                        "vocab",
                                        "merges",
                                        NULL};
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type, *affix;
    double dropout;
    TPI_TRY(tpi_json_get_string_or(model, "type", "BPE", &type));
    if (strcmp(type, "BPE") != 0)
        return tpi_json_fail(tpi_json_find(model, "type"), TP_EUNSUPPORTED, "expected BPE, got %s", type);
    TPI_TRY(check_keys(model, known));
    TPI_TRY(tpi_json_get_number_or(model, "dropout", 0, &dropout));
    if (dropout != 0)
        return tpi_json_fail(tpi_json_find(model, "dropout"), TP_EUNSUPPORTED, "expected null, got %g",
                             dropout);
    for (int i = 0; i < 2; i++) {
        TPI_TRY(tpi_json_get_string_or(model, affixes[i], "", &affix));
        if (affix[0])
            return tpi_json_fail(tpi_json_find(model, affixes[i]), TP_EUNSUPPORTED,
                                 "expected null, got \"%.64s\"", affix);
    }
    return TP_OK;
}

static tp_status load_model(tpi_json model, tp_tokenizer *tokenizer) {
    tpi_bpe *bpe = &tokenizer->bpe;
    tpi_json vocab, merges;
    const char *unk;
    TPI_TRY(check_model(model));
    TPI_TRY(tpi_json_get_object(model, "vocab", &vocab));
    TPI_TRY(tpi_json_get_array(model, "merges", &merges));
    TPI_TRY(tpi_json_get_bool_or(model, "fuse_unk", false, &bpe->fuse_unk));
    TPI_TRY(tpi_json_get_bool_or(model, "byte_fallback", false, &bpe->byte_fallback));
    TPI_TRY(tpi_json_get_bool_or(model, "ignore_merges", false, &bpe->ignore_merges));
    TPI_TRY(tpi_json_get_string_or(model, "unk_token", NULL, &unk));
    TPI_TRY(load_vocab(vocab, tokenizer));
    TPI_TRY(load_merges(merges, tokenizer));
    tpi_bpe_index_bytes(bpe);
    int32_t id = unk ? tpi_vocab_find_model(&tokenizer->vocab, unk, strlen(unk)) : TPI_UNK_NONE;
    bpe->unk = unk && id < 0 ? TPI_UNK_MISSING : id;
    return TP_OK;
}

/* --- Added tokens --- */

/* What adding a token needs: the tokenizer, and the means to normalise its spelling. */
typedef struct adding {
    tp_tokenizer *tokenizer;
    tpi_matcher *matcher;
    tpi_normal_scratch scratch;
} adding;

static tp_status enter_spelling(adding *a, const char *content, bool normalized, int32_t index) {
    tpi_added *added = &a->tokenizer->added;
    size_t length = strlen(content);
    if (!normalized) return tpi_trie_add(&added->raw, content, length, index);
    TPI_TRY(tpi_normalize(&a->tokenizer->normalizer, &a->scratch, a->matcher, content, length,
                          TPI_STANDS_FIRST, &content, &length));
    TPI_TRY(tpi_vocab_set_text(&a->tokenizer->vocab, added->tokens[index].id, content, length));
    return length ? tpi_trie_add(&added->normal, content, length, index) : TP_OK;
}

/* The token gets its id, or has it already from the model's vocabulary. */
static tp_status enter_id(tpi_json entry, tpi_vocab *vocab, const char *content, int32_t id) {
    size_t length = strlen(content);
    if (tpi_vocab_find(vocab, content, length) == id) return TP_OK;
    return tpi_load_located(entry, tpi_vocab_add(vocab, content, length, id));
}

static tp_status add_token(adding *a, tpi_json entry) {
    tpi_added *added = &a->tokenizer->added;
    tpi_added_token token = {0};
    const char *content;
    int64_t id;
    bool special, normalized;
    TPI_TRY(tpi_json_get_string(entry, "content", &content));
    TPI_TRY(tpi_json_get_int(entry, "id", 0, TPI_VOCAB_MAX_ID, &id));
    TPI_TRY(tpi_json_get_bool_or(entry, "special", false, &special));
    TPI_TRY(tpi_json_get_bool_or(entry, "normalized", !special, &normalized));
    TPI_TRY(tpi_json_get_bool_or(entry, "lstrip", false, &token.lstrip));
    TPI_TRY(tpi_json_get_bool_or(entry, "rstrip", false, &token.rstrip));
    TPI_TRY(tpi_json_get_bool_or(entry, "single_word", false, &token.single_word));
    if (!content[0]) return tpi_json_fail(entry, TP_EFORMAT, "an added token with an empty content");
    if (strlen(content) > TPI_ADDED_MAX_LENGTH)
        return tpi_json_fail(entry, TP_EUNSUPPORTED, "an added token of %zu bytes, the limit is %d",
                             strlen(content), TPI_ADDED_MAX_LENGTH);
    token.id = (int32_t)id;
    TPI_TRY(enter_id(entry, &a->tokenizer->vocab, content, token.id));
    if (special) tpi_vocab_mark_special(&a->tokenizer->vocab, token.id);
    TPI_TRY(tpi_grow(&added->tokens, &added->capacity, added->count + 1, sizeof *added->tokens));
    added->tokens[added->count] = token;
    return tpi_load_located(entry, enter_spelling(a, content, normalized, (int32_t)added->count++));
}

static tp_status load_added(tpi_json list, tp_tokenizer *tokenizer) {
    adding a = {.tokenizer = tokenizer};
    tp_status status = tpi_matcher_create(&a.matcher);
    for (tpi_json v = tpi_json_first(list); tpi_json_exists(v) && status == TP_OK; v = tpi_json_next(v))
        status = add_token(&a, v);
    tpi_matcher_destroy(a.matcher);
    tpi_normal_scratch_free(&a.scratch);
    return status;
}

/* --- The whole --- */

static tp_status load_root(tpi_json root, tp_tokenizer *tokenizer) {
    static const char *const known[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    tpi_json model, added;
    TPI_TRY(tpi_json_get_object(root, "model", &model));
    TPI_TRY(tpi_json_get_array_or(root, "added_tokens", &added));
    TPI_TRY(check_keys(root, known));
    TPI_TRY(load_model(model, tokenizer));
    TPI_TRY(tpi_load_normalizer(tpi_json_find(root, "normalizer"), tokenizer));
    TPI_TRY(load_added(added, tokenizer));
    TPI_TRY(tpi_load_pre_tokenizer(tpi_json_find(root, "pre_tokenizer"), tokenizer));
    TPI_TRY(tpi_load_post_processor(tpi_json_find(root, "post_processor"), tokenizer));
    return tpi_load_decoder(tpi_json_find(root, "decoder"), tokenizer);
}

static tp_status load_document(const tpi_json_doc *doc, tp_tokenizer **out) {
    tp_tokenizer *tokenizer = tpi_calloc(1, sizeof *tokenizer);
    if (!tokenizer) return TP_ENOMEM;
    atomic_init(&tokenizer->owners, 1);
    tokenizer->bpe.vocab = &tokenizer->vocab;
    tp_status status = load_root(tpi_json_root(doc), tokenizer);
    if (status == TP_OK)
        *out = tokenizer;
    else
        tpi_tokenizer_destroy(tokenizer);
    return status;
}

tp_status tp_tokenizer_load(const char *path, tp_tokenizer **out) {
    tpi_json_doc *doc;
    *out = NULL;
    bool directory = tpi_path_is_directory(path);
    char *file = directory ? tpi_path_join(path, "tokenizer.json") : tpi_strdup(path);
    tp_status status = file ? tpi_json_load(file, &doc) : TP_ENOMEM;
    tpi_free(file);
    if (status != TP_OK) return status;
    status = load_document(doc, out);
    tpi_json_destroy(doc);
    return status;
}

tp_status tp_tokenizer_parse(const char *json, size_t length, tp_tokenizer **out) {
    tpi_json_doc *doc;
    *out = NULL;
    TPI_TRY(tpi_json_parse("tokenizer.json", 1, json, length, &doc));
    tp_status status = load_document(doc, out);
    tpi_json_destroy(doc);
    return status;
}
