/* Fuzzes the tokenizer: the input is a tokenizer.json, a NUL byte, and a text to encode. Whatever they hold,
 * nothing may crash or leak, ids are below the vocabulary's size, and the stream gives what decoding the
 * whole gives. Without a NUL byte the input is a text for a tokenizer that is known to be good. */
#include "taper/tokenizer.h"

#include <stdlib.h>
#include <string.h>

static const char good[] =
    "{\"added_tokens\":[{\"id\":9,\"content\":\"<e>\",\"lstrip\":true,\"rstrip\":true},{\"id\":10,"
    "\"content\":\"\u00e9\","
    "\"normalized\":true,\"single_word\":true}],\"normalizer\":{\"type\":\"NFKC\"},\"pre_tokenizer\":{"
    "\"type\":"
    "\"ByteLevel\",\"add_prefix_space\":true},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"unk_token\":"
    "\"a\","
    "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4},\"merges\":[\"a b\",\"ab c\"]}}";

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *bytes = (const char *)data;
    const char *nul = size ? memchr(bytes, 0, size) : NULL;
    const char *text = nul ? nul + 1 : bytes;
    tp_tokenizer *tokenizer;
    tp_status status = nul ? tp_tokenizer_parse(bytes, (size_t)(nul - bytes), &tokenizer)
                           : tp_tokenizer_parse(good, sizeof good - 1, &tokenizer);
    require(nul || status == TP_OK);
    if (status != TP_OK) return 0;
    check_text(tokenizer, text, size - (size_t)(text - bytes));
    tp_tokenizer_release(tokenizer);
    return 0;
}
