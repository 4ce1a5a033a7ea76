/* The tokenizer against Hugging Face's (golden files), against hostile files and texts, and against itself.
 */
#include "tokenizer_helpers.h"

#include "core/alloc.h"
#include "taper/tokenizer.h"
#include "tokenizer/pattern.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN TAPER_TEST_DATA "/golden/tokenizer/"

static tp_tokenizer *parse(const char *json) {
    tp_tokenizer *tokenizer;
    cr_assert_eq(tp_tokenizer_parse(json, strlen(json), &tokenizer), TP_OK, "%s", tp_error_message());
    return tokenizer;
}

static tp_tokenizer *load(const char *path) {
    tp_tokenizer *tokenizer;
    cr_assert_eq(tp_tokenizer_load(path, &tokenizer), TP_OK, "%s", tp_error_message());
    return tokenizer;
}

static bool same_text(const char *a, size_t a_length, const char *b, size_t b_length) {
    return a_length == b_length && memcmp(a, b, a_length) == 0;
}

/* --- The vocabulary --- */

#define MODEL(vocab, merges) "\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"
#define ABC                  "{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4}"
#define SMALL                MODEL(ABC, "[\"a b\",[\"ab\",\"c\"]]")
#define BYTES                                                                                                \
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":"           \
    "\"ByteLevel\"}"

Test(tokenizer, vocabulary) {
    tp_tokenizer *t = parse("{\"added_tokens\":[{\"id\":9,\"content\":\"<e>\",\"special\":true}]," SMALL "}");
    size_t length;
    cr_assert_eq(tp_tokenizer_vocab_size(t), 10);
    cr_assert_eq(tp_tokenizer_id(t, "abc"), 4);
    cr_assert_eq(tp_tokenizer_id(t, "<e>"), 9);
    cr_assert_eq(tp_tokenizer_id(t, "nothing"), -1);
    cr_assert_str_eq(tp_tokenizer_token(t, 9, &length), "<e>");
    cr_assert_eq(length, 3);
    for (int32_t id = 5; id < 9; id++) cr_assert_null(tp_tokenizer_token(t, id, NULL));
    cr_assert_null(tp_tokenizer_token(t, -1, NULL));
    cr_assert_null(tp_tokenizer_token(t, INT32_MAX, NULL));
    cr_assert(tp_tokenizer_is_special(t, 9));
    cr_assert_not(tp_tokenizer_is_special(t, 4));
    cr_assert_not(tp_tokenizer_is_special(t, -5));
    cr_assert_eq(tp_tokenizer_retain(t), t);
    tp_tokenizer_release(t);
    cr_assert_eq(tp_tokenizer_id(t, "ab"), 3);
    tp_tokenizer_release(t);
    tp_tokenizer_release(NULL);
    tp_decode_stream_destroy(NULL);
    tp_ids_free(NULL);
    tp_text_free(NULL);
}

/* --- The pattern dialect --- */

Test(tokenizer, patterns_mean_what_they_mean_to_oniguruma) {
    static const struct {
        const char *pattern, *text;
        size_t start, end; /* of the first match; end 0: none */
    } cases[] = {
        {"\\s+(?!\\S)", "a  b", 1, 2},
        {"\\s", "\u180E\xc2\x85", 3, 5}, /* U+180E is no white space */
        {"\\S", "\xc2\x85\u3000\u180E", 5, 8},
        {"[\\sx]", "\u180Ex", 3, 4},
        {"[^\\sx]", " x\u180E", 2, 5},
        {"\\w", "\u2460\u0301", 3, 5}, /* a mark is a word character, a circled digit is not */
        {"\\w", "\u24B6", 0, 3},
        {"\\W", "a\u0301\u00BD-", 5, 6},
        {"\\h+", "xyz09fFg", 3, 7},
        {"[\\h-]+", "x-af", 1, 4},
        {"[]a]+", "b]a", 1, 3},
        {"[^]a]+", "]ab", 2, 3},
        {"[[:digit:]x]+", "a1x", 1, 3},
        {"[\\[\\]]+", "a[]", 1, 3},
        {"^b$", "a\nb\nc", 2, 3}, /* anchors match at lines */
        {".+", "\n\rab", 1, 4},   /* only a line feed ends a line */
        {"(?i:'S)", "x'\u017F", 1, 4},
        {"\\p{N}{1,3}", "ab1234", 2, 5},
        {"x", "ab", 0, 0},
    };
    tpi_matcher *matcher;
    cr_assert_eq(tpi_matcher_create(&matcher), TP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tpi_regex *pattern;
        bool found;
        tpi_matches matches = tpi_matches_in(cases[i].text, strlen(cases[i].text));
        cr_assert_eq(tpi_pattern_create(cases[i].pattern, false, &pattern), TP_OK, "%s", tp_error_message());
        cr_assert_eq(tpi_matches_next(&matches, pattern, matcher, &found), TP_OK);
        cr_expect_eq(found, cases[i].end > 0, "case %zu", i);
        if (found)
            cr_expect(matches.start == cases[i].start && matches.end == cases[i].end, "case %zu: %zu to %zu",
                      i, matches.start, matches.end);
        tpi_regex_destroy(pattern);
    }
    tpi_matcher_destroy(matcher);
}

/* --- Text that is no UTF-8 --- */

Test(tokenizer, invalid_utf8_is_replaced_by_maximal_subparts) {
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"a\xff"
         "b",
         "a\uFFFDb"},
        {"\x80\x80", "\uFFFD\uFFFD"},
        {"\xc0\xaf", "\uFFFD\uFFFD"},
        {"\xe0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xf0\x9f\x99", "\uFFFD"},
        {"\xf0\x9f\x99x", "\uFFFDx"},
        {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
        {"\xe2\x82\xe2\x82\xac", "\uFFFD\u20AC"},
    };
    tp_tokenizer *t = load(GOLDEN "gpt2");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t *got, *want;
        size_t got_count, want_count;
        cr_assert_eq(tp_tokenizer_encode(t, cases[i].bytes, strlen(cases[i].bytes), false, &got, &got_count),
                     TP_OK);
        cr_assert_eq(tp_tokenizer_encode(t, cases[i].text, strlen(cases[i].text), false, &want, &want_count),
                     TP_OK);
        cr_expect_eq(got_count, want_count, "case %zu", i);
        cr_expect_arr_eq(got, want, want_count * sizeof *want, "case %zu", i);
        tp_ids_free(got);
        tp_ids_free(want);
    }
    tp_tokenizer_release(t);
}

Test(tokenizer, empty_text) {
    tp_tokenizer *t = load(GOLDEN "llama3");
    int32_t *list;
    char *text;
    size_t count, length;
    cr_assert_eq(tp_tokenizer_encode(t, NULL, 0, false, &list, &count), TP_OK);
    cr_assert_not_null(list);
    cr_assert_eq(count, 0);
    tp_ids_free(list);
    cr_assert_eq(tp_tokenizer_encode(t, "", 0, true, &list, &count), TP_OK);
    cr_assert_eq(count, 1);
    cr_assert_eq(list[0], tp_tokenizer_id(t, "<|begin|>"));
    tp_ids_free(list);
    cr_assert_eq(tp_tokenizer_decode(t, NULL, 0, false, &text, &length), TP_OK);
    cr_assert_str_eq(text, "");
    tp_text_free(text);
    cr_assert_eq(tp_tokenizer_encode(t, "", (size_t)INT32_MAX + 1, false, &list, &count), TP_EINVAL);
    cr_assert_null(list);
    tp_tokenizer_release(t);
}

/* --- Hostile files: each an error of one line that names the file and the place --- */

Test(tokenizer, hostile_files) {
    static const struct {
        const char *json;
        tp_status status;
        const char *said; /* in the message */
    } cases[] = {
        {"", TP_EFORMAT, "tokenizer.json"},
        {"{", TP_EFORMAT, "tokenizer.json"},
        {"[]", TP_EFORMAT, "expected an object"},
        {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", TP_EUNSUPPORTED, "WordPiece"},
        {"{\"model\":{\"vocab\":{}}}", TP_EFORMAT, "merges"},
        {"{\"model\":{\"merges\":[]}}", TP_EFORMAT, "vocab"},
        {"{\"new_thing\":1," SMALL "}", TP_EUNSUPPORTED, "new_thing"},
        {"{" MODEL("{\"a\":-1}", "[]") "}", TP_EFORMAT, "model.vocab.a"},
        {"{" MODEL("{\"a\":4294967296}", "[]") "}", TP_EFORMAT, "model.vocab.a"},
        {"{" MODEL("{\"a\":2147483647}", "[]") "}", TP_EFORMAT, "model.vocab.a"},
        {"{" MODEL("{\"a\":1.5}", "[]") "}", TP_EFORMAT, "model.vocab.a"},
        {"{" MODEL("{\"a\":\"1\"}", "[]") "}", TP_EFORMAT, "model.vocab.a"},
        {"{" MODEL("{\"a\":1,\"b\":1}", "[]") "}", TP_EFORMAT, "id 1 already belongs to \"a\""},
        {"{" MODEL("{\"a\":1,\"a\":2}", "[]") "}", TP_EFORMAT, "duplicate key"},
        {"{" MODEL(ABC, "[\"a b\",\"a b\"]") "}", TP_EFORMAT, "merges[1]"},
        {"{" MODEL(ABC, "[\"a b\",[\"a\",\"b\"]]") "}", TP_EFORMAT, "merges[1]"},
        {"{" MODEL(ABC, "[\"a x\"]") "}", TP_EFORMAT, "\"x\" is not in the vocabulary"},
        {"{" MODEL(ABC, "[\"b a\"]") "}", TP_EFORMAT, "\"ba\" is not in the vocabulary"},
        {"{" MODEL(ABC, "[\"ab\"]") "}", TP_EFORMAT, "merges[0]"},
        {"{" MODEL(ABC, "[\"a b c\"]") "}", TP_EFORMAT, "merges[0]"},
        {"{" MODEL(ABC, "[\"a \"]") "}", TP_EFORMAT, "empty part"},
        {"{" MODEL("{\"\":0,\"a\":1}", "[[\"a\",\"\"]]") "}", TP_EFORMAT, "empty part"},
        {"{" MODEL(ABC, "[[\"a\"]]") "}", TP_EFORMAT, "merges[0]"},
        {"{" MODEL(ABC, "[[\"a\",\"b\",\"c\"]]") "}", TP_EFORMAT, "expected two tokens, got 3"},
        {"{" MODEL(ABC, "[7]") "}", TP_EFORMAT, "merges[0]"},
        {"{\"model\":{\"vocab\":{},\"merges\":[],\"dropout\":0.1}}", TP_EUNSUPPORTED, "model.dropout"},
        {"{\"model\":{\"vocab\":{},\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", TP_EUNSUPPORTED,
         "model.end_of_word_suffix"},
        {"{\"model\":{\"vocab\":{},\"merges\":[],\"continuing_subword_prefix\":\"##\"}}", TP_EUNSUPPORTED,
         "model.continuing_subword_prefix"},
        {"{\"normalizer\":{\"type\":\"StripAccents\"}," SMALL "}", TP_EUNSUPPORTED, "normalizer"},
        {"{\"normalizer\":{}," SMALL "}", TP_EFORMAT, "type"},
        {"{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," SMALL "}", TP_EUNSUPPORTED, "Whitespace"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}"
         "," SMALL "}",
         TP_EFORMAT, "pre_tokenizer.pattern"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":"
         "\"Isolated\"}," SMALL "}",
         TP_EUNSUPPORTED, "offset 2"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?m:.)\"},\"behavior\":"
         "\"Isolated\"}," SMALL "}",
         TP_EUNSUPPORTED, "(?m)"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Odd\"}," SMALL
         "}",
         TP_EUNSUPPORTED, "Odd"},
        {"{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":"
         "\"Digits\"}]}"
         "," SMALL "}",
         TP_EUNSUPPORTED, "behind ByteLevel"},
        {"{\"decoder\":{\"type\":\"WordPiece\"}," SMALL "}", TP_EUNSUPPORTED, "decoder"},
        {"{\"added_tokens\":[{\"id\":9}]," SMALL "}", TP_EFORMAT, "added_tokens[0]"},
        {"{\"added_tokens\":[{\"id\":9,\"content\":\"\"}]," SMALL "}", TP_EFORMAT, "added_tokens[0]"},
        {"{\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]," SMALL "}", TP_EFORMAT,
         "id 1 already belongs to \"b\""},
        {"{\"added_tokens\":[{\"id\":7,\"content\":\"a\"}]," SMALL "}", TP_EFORMAT, "already has the id 0"},
        {"{\"added_tokens\":[{\"id\":99999999999,\"content\":\"x\"}]," SMALL "}", TP_EFORMAT,
         "added_tokens[0].id"},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]"
         ","
         "\"special_tokens\":{\"x\":{\"ids\":[77]}}}," SMALL "}",
         TP_EFORMAT, "no token has the id 77"},
        {"{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}," SMALL
         "}",
         TP_EUNSUPPORTED, "single"},
        {"{\"post_processor\":{\"type\":\"RobertaProcessing\",\"cls\":[],\"sep\":[\"a\",0]}," SMALL "}",
         TP_EFORMAT, "post_processor.cls"},
    };
    int64_t live = tpi_alloc_live();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tp_tokenizer *t = (tp_tokenizer *)&live;
        tp_status status = tp_tokenizer_parse(cases[i].json, strlen(cases[i].json), &t);
        cr_expect_eq(status, cases[i].status, "case %zu: %s: %s", i, tp_status_name(status),
                     tp_error_message());
        cr_expect_null(t);
        cr_expect(strstr(tp_error_message(), cases[i].said), "case %zu: \"%s\" lacks \"%s\"", i,
                  tp_error_message(), cases[i].said);
        cr_expect(strncmp(tp_error_message(), "tokenizer.json", 14) == 0, "case %zu: %s", i,
                  tp_error_message());
        cr_expect_null(strchr(tp_error_message(), '\n'));
    }
    cr_assert_eq(tpi_alloc_live(), live);
}

Test(tokenizer, million_brackets) {
    size_t n = 1000000;
    char *json = malloc(n);
    tp_tokenizer *t;
    memset(json, '[', n);
    cr_assert_eq(tp_tokenizer_parse(json, n, &t), TP_EFORMAT);
    for (size_t i = 0; i + 5 <= n; i += 5) memcpy(json + i, "{\"a\":", 5);
    cr_assert_eq(tp_tokenizer_parse(json, n, &t), TP_EFORMAT);
    free(json);
}

Test(tokenizer, missing_file) {
    tp_tokenizer *t;
    cr_assert_eq(tp_tokenizer_load("/nonexistent/tokenizer.json", &t), TP_EIO);
    cr_assert_null(t);
    cr_assert(strstr(tp_error_message(), "/nonexistent/tokenizer.json"));
}

Test(tokenizer, pattern_that_backtracks_is_an_error) {
    tp_tokenizer *t = parse("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a+)+$\"},"
                            "\"behavior\":\"Isolated\"}," SMALL "}");
    char text[64];
    int32_t *list;
    size_t count;
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '!';
    cr_assert_eq(tp_tokenizer_encode(t, text, sizeof text, false, &list, &count), TP_EFORMAT);
    cr_assert(strstr(tp_error_message(), "too many steps"), "%s", tp_error_message());
    cr_assert_null(list);
    tp_tokenizer_release(t);
}

/* A group repeated a million times does not fit the JIT's stack; the interpreter takes over. */
Test(tokenizer, long_repetition_of_a_group) {
    tp_tokenizer *t = parse("{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?:ab|c)+\"},"
                            "\"behavior\":\"Isolated\"}," SMALL "}");
    size_t n = 400000, count;
    char *text = malloc(n);
    int32_t *list;
    for (size_t i = 0; i < n; i++) text[i] = i % 2 ? 'b' : 'a';
    cr_assert_eq(tp_tokenizer_encode(t, text, n, false, &list, &count), TP_OK, "%s", tp_error_message());
    cr_assert_eq(count, n / 2);
    tp_ids_free(list);
    free(text);
    tp_tokenizer_release(t);
}

Test(tokenizer, unknown_token_that_is_missing) {
    tp_tokenizer *t = parse("{\"model\":{\"unk_token\":\"<unk>\",\"vocab\":{\"a\":0},\"merges\":[]}}");
    int32_t *list;
    size_t count;
    cr_assert_eq(tp_tokenizer_encode(t, "aa", 2, false, &list, &count), TP_OK);
    cr_assert_eq(count, 2);
    tp_ids_free(list);
    cr_assert_eq(tp_tokenizer_encode(t, "ab", 2, false, &list, &count), TP_EFORMAT);
    cr_assert(strstr(tp_error_message(), "unk_token"));
    tp_tokenizer_release(t);
}

/* --- Size: one word of a million letters must not take quadratic time --- */

static void encode_run(const tp_tokenizer *t, char letter, size_t n, size_t want) {
    char *text = malloc(n), *back;
    int32_t *list;
    size_t count, length;
    memset(text, letter, n);
    cr_assert_eq(tp_tokenizer_encode(t, text, n, false, &list, &count), TP_OK, "%s", tp_error_message());
    cr_assert_eq(count, want);
    cr_assert_eq(tp_tokenizer_decode(t, list, count, false, &back, &length), TP_OK);
    cr_assert(same_text(back, length, text, n));
    tp_text_free(back);
    tp_ids_free(list);
    free(text);
}

Test(tokenizer, megabyte_of_one_letter, .timeout = 60) {
    tp_tokenizer *t =
        parse("{" BYTES "," MODEL("{\"a\":0,\"aa\":1,\"aaaa\":2,\"aaaaaaaa\":3,\"Ġ\":4,\"aaa\":5}",
                                  "[\"a a\",\"aa aa\",\"aaaa aaaa\",\"aa a\"]") "}");
    encode_run(t, 'a', 1 << 20, 1 << 17);
    encode_run(t, 'a', (1 << 20) + 7, (1 << 17) + 2); /* the rest is aaaa aaa */
    encode_run(t, ' ', 1 << 20, 1 << 20);
    tp_tokenizer_release(t);
}

/* Marks whose order alternates: the canonical ordering must not take quadratic time. */
Test(tokenizer, megabyte_of_combining_marks, .timeout = 60) {
    tp_tokenizer *t = load(GOLDEN "qwen2");
    size_t n = 1 << 20, count;
    char *text = malloc(n);
    int32_t *list;
    for (size_t i = 0; i < n; i += 4) memcpy(text + i, "\u0301\u0323", 4);
    cr_assert_eq(tp_tokenizer_encode(t, text, n, false, &list, &count), TP_OK, "%s", tp_error_message());
    cr_assert_gt(count, 0);
    tp_ids_free(list);
    free(text);
    tp_tokenizer_release(t);
}

/* --- Memory that runs short, at every allocation --- */

static const char swept[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<e>\",\"special\":true},{\"id\":10,\"content\":\"e\u0301\","
    "\"normalized\":true}],"
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"},{"
    "\"type\":"
    "\"Replace\",\"pattern\":{\"String\":\"x\"},\"content\":\"abc\"},{\"type\":\"Prepend\",\"prepend\":\"c\"}"
    "]},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":"
    "true},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}]},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<e>\"}},"
    "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<e>\":{\"ids\":[9]}}},"
    "\"model\":{\"ignore_merges\":true,\"unk_token\":\"a\",\"vocab\":" ABC
    ",\"merges\":[\"a b\",[\"ab\",\"c\"]]}}";

/* Everything the interface does, once. */
static tp_status use_everything(void) {
    static const char text[] = "abcab <e> x\u0301e\u0323\u0301 12 \xff";
    tp_tokenizer *t = NULL;
    tp_decode_stream *stream = NULL;
    int32_t *list = NULL;
    char *back = NULL;
    const char *piece;
    size_t count = 0, length;
    tp_status status = tp_tokenizer_parse(swept, sizeof swept - 1, &t);
    if (status == TP_OK) status = tp_tokenizer_encode(t, text, sizeof text - 1, true, &list, &count);
    if (status == TP_OK) status = tp_tokenizer_decode(t, list, count, false, &back, &length);
    if (status == TP_OK) status = tp_decode_stream_create(t, false, &stream);
    for (size_t i = 0; i < count && status == TP_OK; i++)
        status = tp_decode_stream_push(stream, list[i], &piece, &length);
    if (status == TP_OK) status = tp_decode_stream_flush(stream, &piece, &length);
    tp_decode_stream_destroy(stream);
    tp_text_free(back);
    tp_ids_free(list);
    tp_tokenizer_release(t);
    return status;
}

Test(tokenizer, failing_allocations) {
    sweep_allocations(use_everything);
}

/* After a push that failed the id was not taken: pushing again gives what would have been given. */
Test(tokenizer, stream_after_failure) {
    tp_tokenizer *t = parse("{" BYTES "," MODEL("{\"ð\":0,\"Ł\":1,\"Ļ\":2,\"Ĥ\":3}", "[]") "}");
    tp_decode_stream *stream;
    char out[16] = "";
    cr_assert_eq(tp_decode_stream_create(t, false, &stream), TP_OK);
    for (int32_t id = 0; id < 4; id++) {
        const char *piece;
        for (int64_t n = 1;; n++) {
            tpi_alloc_fail_at(n);
            tp_status status = tp_decode_stream_push(stream, id, &piece, NULL);
            tpi_alloc_fail_at(0);
            if (status == TP_OK) break;
            cr_assert_null(piece);
        }
        cr_assert_eq(piece[0] == 0, id < 3);
        strcat(out, piece);
    }
    cr_assert_str_eq(out, "\xf0\x9f\x99\x82");
    tp_decode_stream_destroy(stream);
    tp_tokenizer_release(t);
}

Test(tokenizer, stream_flush_begins_anew) {
    tp_tokenizer *t = parse("{" BYTES "," MODEL("{\"ð\":0,\"Ł\":1,\"a\":2}", "[]") "}");
    tp_decode_stream *stream;
    const char *piece;
    cr_assert_eq(tp_decode_stream_create(t, false, &stream), TP_OK);
    for (int round = 0; round < 2; round++) {
        cr_assert_eq(tp_decode_stream_push(stream, 0, &piece, NULL), TP_OK);
        cr_assert_str_eq(piece, "");
        cr_assert_eq(tp_decode_stream_push(stream, 1, &piece, NULL), TP_OK);
        cr_assert_str_eq(piece, "");
        cr_assert_eq(tp_decode_stream_flush(stream, &piece, NULL), TP_OK);
        cr_assert_str_eq(piece, "\uFFFD");
        cr_assert_eq(tp_decode_stream_push(stream, 0, &piece, NULL), TP_OK);
        cr_assert_eq(tp_decode_stream_push(stream, 2, &piece, NULL), TP_OK);
        cr_assert_str_eq(piece, "\uFFFDa");
    }
    tp_tokenizer_release(t); /* the stream has its own hold on it */
    cr_assert_eq(tp_decode_stream_push(stream, 2, &piece, NULL), TP_OK);
    cr_assert_str_eq(piece, "a");
    tp_decode_stream_destroy(stream);
}

/* --- One tokenizer, several threads --- */

static void *encode_often(void *tokenizer) {
    static const char text[] = "She'd have gone further, 123 e\u0301\u0323 <|end|>\n\n \U0001F642";
    size_t mismatches = 0, first_count = 0;
    int32_t *first = NULL;
    for (int i = 0; i < 200; i++) {
        int32_t *list;
        size_t count;
        if (tp_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &list, &count) != TP_OK)
            return "failed";
        if (!first) {
            first = list;
            first_count = count;
            continue;
        }
        mismatches += count != first_count || memcmp(list, first, count * sizeof *list) != 0;
        tp_ids_free(list);
    }
    tp_ids_free(first);
    return mismatches ? "differs" : NULL;
}

Test(tokenizer, threads) {
    tp_tokenizer *t = load(GOLDEN "qwen2");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) cr_assert_eq(pthread_create(&threads[i], NULL, encode_often, t), 0);
    for (int i = 0; i < 4; i++) {
        void *problem;
        pthread_join(threads[i], &problem);
        cr_assert_null(problem, "%s", (const char *)problem);
    }
    tp_tokenizer_release(t);
}
