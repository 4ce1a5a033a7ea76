/* Fuzzes the tokenizer: the input is a tokenizer.json, a NUL byte, and a text to encode. Whatever they hold,
 * nothing may crash or leak, ids are below the vocabulary's size, and the stream gives what decoding the
 * whole gives. Without a NUL byte the input is a text for tokenizers that are known to be good: one of bytes,
 * one in SentencePiece's style. */
#include "taper/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static const char of_bytes[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<e>\",\"lstrip\":true,\"rstrip\":true},{\"id\":10,"
    "\"content\":\"\u00e9\","
    "\"normalized\":true,\"single_word\":true}],\"normalizer\":{\"type\":\"NFKC\"},\"pre_tokenizer\":{"
    "\"type\":"
    "\"ByteLevel\",\"add_prefix_space\":true},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"unk_token\":"
    "\"a\","
    "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4},\"merges\":[\"a b\",\"ab c\"]}}";

static const char of_pieces[] =
    "{\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true}],\"pre_tokenizer\":{\"type\":"
    "\"Metaspace\","
    "\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"split\":false},\"decoder\":{\"type\":\"Sequence\","
    "\"decoders\":["
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\" "
    "\"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
    "{\"type\":\"Strip\",\"content\":\" "
    "\",\"start\":1,\"stop\":2}]},\"model\":{\"unk_token\":\"<unk>\",\"byte_fallback\":true,"
    "\"fuse_unk\":true,\"vocab\":{\"<unk>\":0,\"<s>\":1,\"_\":2,\"a\":3,\"_a\":4,\"__\":5,\"<0xC3>\":6,\"<"
    "0xA9>\":7,"
    "\"<0x0A>\":8},\"merges\":[\"_ a\",\"_ _\"]}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds) {
    if (!holds) abort();
}

/* What the stream gives piece by piece is the prefix of `whole`, and all of it in the end. */
static void check_stream(tp_tokenizer *tokenizer, const int32_t *ids, size_t count, const char *whole,
                         size_t length) {
    tp_decode_stream *stream;
    size_t given = 0;
    if (tp_decode_stream_create(tokenizer, false, &stream) != TP_OK) return;
    for (size_t i = 0; i <= count; i++) {
        const char *piece;
        size_t bytes;
        require((i < count ? tp_decode_stream_push(stream, ids[i], &piece, &bytes)
                           : tp_decode_stream_flush(stream, &piece, &bytes)) == TP_OK);
        require(bytes <= length - given && memcmp(whole + given, piece, bytes) == 0);
        given += bytes;
    }
    require(given == length);
    tp_decode_stream_destroy(stream);
}

static void check_text(tp_tokenizer *tokenizer, const char *text, size_t size) {
    int32_t *ids;
    char *back;
    size_t count, length;
    if (tp_tokenizer_encode(tokenizer, text, size, true, &ids, &count) != TP_OK) return;
    for (size_t i = 0; i < count; i++) require(tp_tokenizer_token(tokenizer, ids[i], NULL) != NULL);
    require(tp_tokenizer_decode(tokenizer, ids, count, false, &back, &length) == TP_OK);
    check_stream(tokenizer, ids, count, back, length);
    tp_text_free(back);
    tp_ids_free(ids);
}

static void check_good(const char *json, size_t length, const char *text, size_t size) {
    tp_tokenizer *tokenizer;
    require(tp_tokenizer_parse(json, length, &tokenizer) == TP_OK);
    check_text(tokenizer, text, size);
    tp_tokenizer_release(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *bytes = (const char *)data;
    const char *nul = size ? memchr(bytes, 0, size) : NULL;
    tp_tokenizer *tokenizer;
    if (!nul) {
        check_good(of_bytes, sizeof of_bytes - 1, bytes, size);
        check_good(of_pieces, sizeof of_pieces - 1, bytes, size);
        return 0;
    }
    if (tp_tokenizer_parse(bytes, (size_t)(nul - bytes), &tokenizer) != TP_OK) return 0;
    check_text(tokenizer, nul + 1, size - (size_t)(nul + 1 - bytes));
    tp_tokenizer_release(tokenizer);
    return 0;
}
