/* Tokenizers in SentencePiece's style: what each decoder step makes of tokens, streams that hold back what
 * later tokens decide, texts that continue others, files that are refused, and memory that runs short. */
#include "tokenizer_helpers.h"

#include "core/alloc.h"
#include "taper/tokenizer.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN       TAPER_TEST_DATA "/golden/tokenizer/"
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* A file, with what stands before its model. Ids below are places in this vocabulary. */
#define FILE_OF(steps)                                                                                         \
    "{\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true}]," steps                               \
    "\"model\":{\"unk_token\":\"<unk>\",\"byte_fallback\":true,\"fuse_unk\":true,\"vocab\":{\"<unk>\":0,"      \
    "\"<s>\":1,\"<0xE5>\":2,\"<0x8f>\":3,\"<0xAB>\":4,\"<0x41>\":5,\"<0x0A>\":6,\"▁\":7,\"a\":8,\"▁a\":9," \
    "\"▁▁\":10,\"b\":11,\"<0x+5>\":12,\"<0x4G>\":13,\"aa\":14,\"<0xC3>\":15,\"<0x89>\":16},"               \
    "\"merges\":[\"▁ a\",\"▁ ▁\",[\"a\",\"a\"]]}}"
enum { UNK, BEGIN, E5, B8F, AB, B41, B0A, MARK, A, MARK_A, MARKS, B, PLUS_5, B4G, AA, BC3, B89, VOCAB };

#define REPLACE  "{\"type\":\"Replace\",\"pattern\":{\"String\":\"▁\"},\"content\":\" \"}"
#define FALLBACK "{\"type\":\"ByteFallback\"}"
#define FUSE     "{\"type\":\"Fuse\"}"
#define STRIP(content, start, stop)                                                                          \
    "{\"type\":\"Strip\",\"content\":\"" content "\",\"start\":" #start ",\"stop\":" #stop "}"
#define METASPACE(scheme) "{\"type\":\"Metaspace\",\"replacement\":\"▁\"," scheme "\"split\":false}"
#define DECODER(steps)    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" steps "]},"
#define USUAL             DECODER(REPLACE "," FALLBACK "," FUSE "," STRIP(" ", 1, 0))
#define LEGACY                                                                                               \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"▁\"},{"    \
    "\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}]},"
#define MARKED(scheme) "\"pre_tokenizer\":" METASPACE("\"prepend_scheme\":\"" scheme "\",") ","

static tp_tokenizer *parse(const char *json) {
    tp_tokenizer *tokenizer;
    cr_assert_eq(tp_tokenizer_parse(json, strlen(json), &tokenizer), TP_OK, "%s", tp_error_message());
    return tokenizer;
}

/* --- Decoding --- */

/* Pushes tokens and appends what comes, NUL-terminated; with `flush` also what was held back. */
static void push_all(tp_decode_stream *stream, const int32_t *ids, size_t count, bool flush, char *out) {
    for (size_t i = 0; i < count + flush; i++) {
        const char *piece;
        size_t length;
        cr_assert_eq(i < count ? tp_decode_stream_push(stream, ids[i], &piece, &length)
                               : tp_decode_stream_flush(stream, &piece, &length),
                     TP_OK);
        cr_assert_eq(strlen(piece), length);
        strcat(out, piece);
    }
}

/* The whole, and the stream twice: a flush begins anew. */
static void check_decode(tp_tokenizer *t, size_t row, const int32_t *ids, size_t count, const char *want) {
    char *whole, out[256];
    tp_decode_stream *stream;
    cr_assert_eq(tp_tokenizer_decode(t, ids, count, true, &whole, NULL), TP_OK);
    cr_expect_str_eq(whole, want, "case %zu: \"%s\", expected \"%s\"", row, whole, want);
    tp_text_free(whole);
    cr_assert_eq(tp_decode_stream_create(t, true, &stream), TP_OK);
    for (int round = 0; round < 2; round++) {
        out[0] = 0;
        push_all(stream, ids, count, true, out);
        cr_expect_str_eq(out, want, "case %zu: a stream gives \"%s\", expected \"%s\"", row, out, want);
    }
    tp_decode_stream_destroy(stream);
}

Test(tokenizer_pieces, decoder_steps) {
    static const struct {
        const char *file;
        int32_t ids[8]; /* up to -1 */
        const char *want;
    } cases[] = {
        {FILE_OF(USUAL), {-1}, ""},
        {FILE_OF(USUAL), {BEGIN, MARK_A, MARK_A, -1}, "a a"},
        {FILE_OF(USUAL), {MARKS, A, MARK, -1}, " a "}, /* one blank of the text's beginning */
        {FILE_OF(USUAL), {A, MARK_A, -1}, "a a"},
        {FILE_OF(USUAL),
         {E5, B8F, AB, A, -1},
         "\xe5\x8f\xab"
         "a"},
        {FILE_OF(USUAL), {E5, BEGIN, B8F, VOCAB, AB, -1}, "\xe5\x8f\xab"}, /* what is skipped ends no run */
        {FILE_OF(USUAL), {E5, B8F, A, -1}, "\uFFFD\uFFFDa"},
        {FILE_OF(USUAL), {E5, B8F, AB, B41, B8F, -1}, "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"},
        {FILE_OF(USUAL), {B41, B0A, -1}, "A\n"},
        {FILE_OF(USUAL), {PLUS_5, B4G, -1}, "\x05<0x4G>"},
        {FILE_OF(DECODER(FALLBACK "," METASPACE(""))), {MARKS, MARK_A, E5, -1}, " a\uFFFD"},
        {FILE_OF(DECODER(METASPACE("\"add_prefix_space\":false,"))), {MARKS, MARK_A, -1}, "   a"},
        {FILE_OF(DECODER(METASPACE("\"prepend_scheme\":\"never\","))), {MARKS, MARK_A, -1}, "   a"},
        {FILE_OF(DECODER(METASPACE("\"prepend_scheme\":\"first\","))), {A, MARK, -1}, "a "},
        {FILE_OF(DECODER(FUSE "," METASPACE(""))), {MARK_A, MARK_A, -1}, "aa"}, /* all is the first */
        {FILE_OF(DECODER(STRIP("a", 1, 0))), {AA, A, MARK_A, -1}, "a▁a"},       /* each token */
        {FILE_OF(DECODER(STRIP("a", 0, 1))), {AA, B, MARK_A, -1}, "ab▁"},
        {FILE_OF(DECODER(STRIP("a", 1, 1))), {A, AA, B, -1}, "b"},
        {FILE_OF(DECODER(FUSE "," STRIP("a", 3, 0))), {A, A, AA, B, -1}, "ab"},
        {FILE_OF(DECODER(FUSE "," STRIP("a", 3, 0))), {A, B, AA, -1}, "baa"},
        {FILE_OF(DECODER(FUSE "," STRIP("a", 0, 2))), {AA, A, B, A, AA, -1}, "aaaba"},
        {FILE_OF(DECODER(FUSE "," STRIP("a", 0, 2))), {B, A, A, B, A, -1}, "baab"},
        {FILE_OF(DECODER(FUSE "," STRIP("a", 1, 2))), {AA, AA, A, -1}, "aa"},
        {FILE_OF(DECODER(FUSE "," STRIP("a", 2, 9))), {A, AA, B, AA, -1}, "ab"},
        {FILE_OF(DECODER(FUSE "," STRIP("▁", 1, 1))), {MARKS, A, MARKS, -1}, "▁a▁"},
        {FILE_OF(
             "\"decoder\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"aa\"},\"content\":\"<0x41>\"},"),
         {A, A, AA, -1},
         "aa<0x41>"},
        {FILE_OF(DECODER("")), {A, B, -1}, "ab"},
        {FILE_OF("\"decoder\":null,"), {BEGIN, A, B, -1}, "a b"},
    };
    int64_t live = tpi_alloc_live();
    for (size_t i = 0; i < COUNT(cases); i++) {
        tp_tokenizer *t = parse(cases[i].file);
        size_t count = 0;
        while (cases[i].ids[count] >= 0) count++;
        check_decode(t, i, cases[i].ids, count, cases[i].want);
        tp_tokenizer_release(t);
    }
    cr_assert_eq(tpi_alloc_live(), live);
}

Test(tokenizer_pieces, stream_gives_what_later_tokens_cannot_change) {
    static const struct {
        int32_t id;
        const char *piece;
    } steps[] = {{MARK_A, "a"},
                 {MARK_A, " a"},
                 {E5, ""},
                 {B8F, ""},
                 {AB, ""},
                 {B, "\xe5\x8f\xab"
                     "b"},
                 {BC3, ""},
                 {B89, ""},
                 {B0A, ""},
                 {A, "\xc3\x89\na"}};
    tp_tokenizer *t = parse(FILE_OF(USUAL));
    tp_decode_stream *stream;
    cr_assert_eq(tp_decode_stream_create(t, false, &stream), TP_OK);
    for (size_t i = 0; i < COUNT(steps); i++) {
        const char *piece;
        cr_assert_eq(tp_decode_stream_push(stream, steps[i].id, &piece, NULL), TP_OK);
        cr_expect_str_eq(piece, steps[i].piece, "token %zu: \"%s\"", i, piece);
    }
    tp_decode_stream_destroy(stream);
    tp_tokenizer_release(t);
}

/* What continues a text keeps its blank, unless nothing of the text is shown. */
Test(tokenizer_pieces, stream_that_continues) {
    static const struct {
        int32_t before[4]; /* up to -1 */
        const char *want;
    } cases[] = {
        {{-1}, "a\xe5\x8f\xab"},
        {{BEGIN, -1}, "a\xe5\x8f\xab"},
        {{BEGIN, MARK_A, -1}, " a\xe5\x8f\xab"},
        {{MARK_A, E5, B8F, -1}, " a\xe5\x8f\xab"}, /* an unfinished run of the prompt is dropped */
        {{MARK_A, B0A, -1}, " a\xe5\x8f\xab"},
    };
    static const int32_t ids[] = {MARK_A, E5, B8F, AB};
    tp_tokenizer *t = parse(FILE_OF(USUAL));
    tp_decode_stream *stream;
    cr_assert_eq(tp_decode_stream_create(t, true, &stream), TP_OK);
    for (size_t i = 0; i < COUNT(cases); i++) {
        char out[64] = "";
        size_t count = 0;
        while (cases[i].before[count] >= 0) count++;
        cr_assert_eq(tp_decode_stream_continue(stream, cases[i].before, count), TP_OK);
        push_all(stream, ids, COUNT(ids), true, out);
        cr_expect_str_eq(out, cases[i].want, "case %zu: \"%s\"", i, out);
    }
    tp_decode_stream_destroy(stream);
    tp_tokenizer_release(t);
}

/* --- Encoding --- */

static void expect_ids(const char *file, const char *before, const char *text, const int32_t *want) {
    tp_tokenizer *t = parse(file);
    int32_t *first, *ids;
    size_t first_count, count, wanted = 0;
    while (want[wanted] >= 0) wanted++;
    cr_assert_eq(tp_tokenizer_encode(t, before, strlen(before), false, &first, &first_count), TP_OK);
    cr_assert_eq(tp_tokenizer_encode_behind(t, first, first_count, text, strlen(text), &ids, &count), TP_OK);
    cr_expect_eq(count, wanted, "\"%s\" behind \"%s\": %zu ids", text, before, count);
    for (size_t i = 0; i < count && i < wanted; i++)
        cr_expect_eq(ids[i], want[i], "\"%s\" behind \"%s\": id %zu is %d", text, before, i, ids[i]);
    tp_ids_free(first);
    tp_ids_free(ids);
    tp_tokenizer_release(t);
}

/* A completion is put where the whole text has it: without a prefix of its own, but for the one that is due
 * behind an added token. */
Test(tokenizer_pieces, text_behind_a_text) {
    static const struct {
        const char *file, *before, *text;
        int32_t want[6]; /* up to -1 */
    } cases[] = {
        {FILE_OF(LEGACY), "", "a", {MARK_A, -1}},
        {FILE_OF(LEGACY), "b", "a", {A, -1}},
        {FILE_OF(LEGACY), "b", " a", {MARK_A, -1}},
        {FILE_OF(LEGACY), "b<s>", "a", {MARK_A, -1}},
        {FILE_OF(LEGACY), "b", "a<s>a", {A, BEGIN, MARK_A, -1}},
        {FILE_OF(MARKED("first")), "", "a", {MARK_A, -1}},
        {FILE_OF(MARKED("first")), "b", "a", {A, -1}},
        {FILE_OF(MARKED("first")), "b<s>", "a", {A, -1}},
        {FILE_OF(MARKED("first")), "b", " a", {MARK_A, -1}},
        {FILE_OF(MARKED("first")), "", "<s>a", {BEGIN, A, -1}},
        {FILE_OF(MARKED("always")), "", "a<s>a", {MARK_A, BEGIN, MARK_A, -1}},
        {FILE_OF(MARKED("always")), "b", "a<s>a", {A, BEGIN, MARK_A, -1}},
        {FILE_OF(MARKED("never")), "", "a a", {A, MARK_A, -1}},
        {FILE_OF("\"pre_tokenizer\":" METASPACE("\"add_prefix_space\":false,") ","), "", "a", {A, -1}},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        expect_ids(cases[i].file, cases[i].before, cases[i].text, cases[i].want);
}

/* A text is one word to the model: neither it nor a run of byte tokens may take quadratic time. */
Test(tokenizer_pieces, megabyte_without_a_blank, .timeout = 60) {
    static const char *const letters[] = {"lampwasthe", "a", " ", "\U0001F702"};
    static const char *const names[] = {GOLDEN "pieces-legacy", GOLDEN "pieces-first",
                                        GOLDEN "pieces-always"};
    size_t n = 1 << 20, count;
    char *text = malloc(n + 16);
    int32_t *ids;
    for (size_t k = 0; k < COUNT(names) * COUNT(letters); k++) {
        const char *unit = letters[k % COUNT(letters)];
        tp_tokenizer *t;
        tp_decode_stream *stream;
        const char *piece;
        cr_assert_eq(tp_tokenizer_load(names[k / COUNT(letters)], &t), TP_OK, "%s", tp_error_message());
        for (size_t i = 0; i < n; i += strlen(unit)) memcpy(text + i, unit, strlen(unit));
        cr_assert_eq(tp_tokenizer_encode(t, text, n - n % strlen(unit), false, &ids, &count), TP_OK);
        cr_assert_eq(tp_decode_stream_create(t, false, &stream), TP_OK);
        for (size_t i = 0; i < count; i++)
            cr_assert_eq(tp_decode_stream_push(stream, ids[i], &piece, NULL), TP_OK);
        tp_decode_stream_destroy(stream);
        tp_ids_free(ids);
        tp_tokenizer_release(t);
    }
    free(text);
}

/* --- Files that are refused: one line that names the place --- */

Test(tokenizer_pieces, refused_files) {
#define PRE(step) FILE_OF("\"pre_tokenizer\":" step ",")
#define FEW       FUSE "," FUSE "," FUSE "," FUSE "," FUSE "," FUSE
    static const struct {
        const char *json;
        tp_status status;
        const char *said;
    } cases[] = {
        {FILE_OF(DECODER(FUSE "," FALLBACK)), TP_EUNSUPPORTED, "decoder.decoders[1]: this step is not supp"},
        {FILE_OF(DECODER(FUSE ",{\"type\":\"ByteLevel\"}")), TP_EUNSUPPORTED, "behind Fuse"},
        {FILE_OF(DECODER("{\"type\":\"ByteLevel\"},{\"type\":\"ByteLevel\"}")), TP_EUNSUPPORTED,
         "decoders[1]"},
        {FILE_OF(DECODER(FUSE ",{\"type\":\"Replace\",\"pattern\":{\"String\":\"ab\"},\"content\":\"\"}")),
         TP_EUNSUPPORTED, "behind Fuse"},
        {FILE_OF(DECODER("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"\"}")),
         TP_EUNSUPPORTED, "Regex"},
        {FILE_OF(DECODER("{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}")),
         TP_EUNSUPPORTED, "empty pattern"},
        {FILE_OF(DECODER("{\"type\":\"Replace\",\"pattern\":{},\"content\":\"\"}")), TP_EFORMAT, "String"},
        {FILE_OF(DECODER("{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}")), TP_EFORMAT, "content"},
        {FILE_OF(DECODER(STRIP("ab", 1, 0))), TP_EFORMAT, "expected one character"},
        {FILE_OF(DECODER(STRIP("", 1, 0))), TP_EFORMAT, "expected one character"},
        {FILE_OF(DECODER(STRIP(" ", -1, 0))), TP_EFORMAT, "start"},
        {FILE_OF(DECODER("{\"type\":\"Strip\",\"content\":\" \",\"start\":1}")), TP_EFORMAT, "stop"},
        {FILE_OF(DECODER(FEW "," FEW "," FEW)), TP_EUNSUPPORTED, "more than 16 steps"},
        {FILE_OF(DECODER("{\"type\":\"CTC\"}")), TP_EUNSUPPORTED, "the type CTC"},
        {PRE("{\"type\":\"Metaspace\"}"), TP_EFORMAT, "replacement"},
        {PRE("{\"type\":\"Metaspace\",\"replacement\":\"__\"}"), TP_EFORMAT, "expected one character"},
        {PRE(METASPACE("\"prepend_scheme\":\"odd\",")), TP_EUNSUPPORTED, "the prepend_scheme odd"},
        {PRE(METASPACE("\"prepend_scheme\":\"first\",\"add_prefix_space\":false,")), TP_EFORMAT,
         "contradicts add_prefix_space"},
        {PRE("{\"type\":\"Sequence\",\"pretokenizers\":[" METASPACE("") "," METASPACE("") "]}"),
         TP_EUNSUPPORTED, "pretokenizers[1]: a second step that puts a prefix"},
        {PRE("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"}," METASPACE("") "]}"),
         TP_EUNSUPPORTED, "behind ByteLevel"},
        {FILE_OF("\"normalizer\":{\"type\":\"Precompiled\"},"), TP_EUNSUPPORTED, "the type Precompiled"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", TP_EUNSUPPORTED, "expected BPE, got Unigram"},
    };
    int64_t live = tpi_alloc_live();
    for (size_t i = 0; i < COUNT(cases); i++) {
        tp_tokenizer *t;
        tp_status status = tp_tokenizer_parse(cases[i].json, strlen(cases[i].json), &t);
        cr_expect_eq(status, cases[i].status, "case %zu: %s", i, tp_status_name(status));
        cr_expect(strstr(tp_error_message(), cases[i].said), "case %zu: \"%s\" lacks \"%s\"", i,
                  tp_error_message(), cases[i].said);
        cr_expect(strncmp(tp_error_message(), "tokenizer.json", 14) == 0);
        cr_expect_null(strchr(tp_error_message(), '\n'));
    }
    cr_assert_eq(tpi_alloc_live(), live);
}

/* Steps are levels of recursion, so a file cannot have any number of them. */
Test(tokenizer_pieces, too_many_steps_are_refused) {
    static const char digits[] = "{\"type\":\"Digits\",\"individual_digits\":true},";
    size_t n = 100000, size = n * (sizeof digits - 1) + 256;
    char *json = malloc(size), *at = json;
    tp_tokenizer *t;
    at += sprintf(at, "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[");
    for (size_t i = 0; i < n; i++) at = (char *)memcpy(at, digits, sizeof digits - 1) + sizeof digits - 1;
    at += sprintf(at - 1, "]},\"model\":{\"vocab\":{\"1\":0},\"merges\":[]}}") - 1;
    cr_assert_eq(tp_tokenizer_parse(json, (size_t)(at - json), &t), TP_EUNSUPPORTED, "%s",
                 tp_error_message());
    cr_assert(strstr(tp_error_message(), "more than 64 steps"), "%s", tp_error_message());
    free(json);
}

/* --- Memory that runs short, at every allocation --- */

#define SWEPT                                                                                                \
    FILE_OF(LEGACY MARKED("first")                                                                           \
                DECODER(REPLACE "," FALLBACK "," METASPACE("") "," FUSE "," STRIP(" ", 1, 2)))

static tp_status use_everything(void) {
    static const char text[] = "aa b<s> \u53eb\u53eb  ";
    tp_tokenizer *t = NULL;
    tp_decode_stream *stream = NULL;
    int32_t *ids = NULL, *more = NULL;
    char *back = NULL;
    const char *piece;
    size_t count = 0, more_count = 0;
    tp_status status = tp_tokenizer_parse(SWEPT, strlen(SWEPT), &t);
    if (status == TP_OK) status = tp_tokenizer_encode(t, text, sizeof text - 1, true, &ids, &count);
    if (status == TP_OK) status = tp_tokenizer_encode_behind(t, ids, count, " a", 2, &more, &more_count);
    if (status == TP_OK) status = tp_tokenizer_decode(t, ids, count, false, &back, NULL);
    if (status == TP_OK) status = tp_decode_stream_create(t, false, &stream);
    if (status == TP_OK) status = tp_decode_stream_continue(stream, ids, count);
    for (size_t i = 0; i < count && status == TP_OK; i++)
        status = tp_decode_stream_push(stream, ids[i], &piece, NULL);
    if (status == TP_OK) status = tp_decode_stream_flush(stream, &piece, NULL);
    tp_decode_stream_destroy(stream);
    tp_text_free(back);
    tp_ids_free(more);
    tp_ids_free(ids);
    tp_tokenizer_release(t);
    return status;
}

Test(tokenizer_pieces, failing_allocations) {
    sweep_allocations(use_everything);
}

/* After a call that failed nothing was taken or given: calling again gives what would have been given. */
Test(tokenizer_pieces, stream_after_failure) {
    static const int32_t ids[] = {MARK,  AA,  E5,  B8F, AB,  MARKS,  B,   E5,  MARK, A,
                                  MARKS, BC3, B89, BC3, B89, BC3,    B89, BC3, B89,  BC3,
                                  B89,   BC3, B89, BC3, B89, MARK_A, A,   AA,  E5};
    tp_tokenizer *t = parse(SWEPT);
    char *whole, out[128] = "";
    tp_decode_stream *stream;
    cr_assert_eq(tp_tokenizer_decode(t, ids, COUNT(ids), false, &whole, NULL), TP_OK);
    cr_assert_eq(tp_decode_stream_create(t, false, &stream), TP_OK);
    int failures = 0;
    for (size_t i = 0; i <= COUNT(ids); i++) {
        const char *piece;
        for (int64_t n = 1;; n++, failures++) {
            tpi_alloc_fail_at(n);
            tp_status status = i < COUNT(ids) ? tp_decode_stream_push(stream, ids[i], &piece, NULL)
                                              : tp_decode_stream_flush(stream, &piece, NULL);
            tpi_alloc_fail_at(0);
            if (status == TP_OK) break;
            cr_assert_eq(status, TP_ENOMEM);
            cr_assert_null(piece);
        }
        strcat(out, piece);
    }
    cr_expect_str_eq(out, whole, "\"%s\", expected \"%s\"", out, whole);
    cr_assert_gt(failures, 5);
    tp_text_free(whole);
    tp_decode_stream_destroy(stream);
    tp_tokenizer_release(t);
}
