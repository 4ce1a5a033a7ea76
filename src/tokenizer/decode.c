/* Ids to text. A byte-level token is bytes, of which a character may need several tokens: the stream holds
 * back the bytes that may still become one. Decoding a whole is pushing everything and flushing. */
#include "core/alloc.h"
#include "core/error.h"
#include "tokenizer/tokenizer.h"

#include <string.h>

struct tp_decode_stream {
    tp_tokenizer *tokenizer; /* retained */
    bool skip_special;
    bool begun;     /* a token came before */
    tpi_text held;  /* bytes of an unfinished character */
    tpi_text ready; /* what the last call gave out */
};

/* Appends what a byte-level spelling stands for: its bytes, or the spelling itself if one of its characters
 * stands for no byte. `out` has the room. */
static void append_bytes(const char *spelling, size_t length, tpi_text *out) {
    size_t before = out->length;
    for (size_t i = 0; i < length;) {
        int32_t character;
        i += tpi_text_decode(spelling + i, &character);
        int byte = tpi_byte_of_char(character);
        if (byte < 0) {
            memcpy(out->data + before, spelling, length);
            out->length = before + length;
            return;
        }
        out->data[out->length++] = (char)byte;
    }
}

/* Appends the bytes of a token to `out`; on failure nothing. `first`: no token came before it. */
static tp_status append_token(const tp_tokenizer *tokenizer, int32_t id, bool skip_special, bool first,
                              tpi_text *out, bool *appended) {
    size_t length;
    const char *spelling = tpi_vocab_text(&tokenizer->vocab, id, &length);
    *appended = spelling && !(skip_special && tpi_vocab_is_special(&tokenizer->vocab, id));
    if (!*appended) return TP_OK;
    TPI_TRY(tpi_text_reserve(out, length + 1));
    if (tokenizer->decodes_bytes) {
        append_bytes(spelling, length, out);
    } else {
        if (!first) out->data[out->length++] = ' ';
        memcpy(out->data + out->length, spelling, length);
        out->length += length;
    }
    return TP_OK;
}

static tp_status terminate(tpi_text *text) {
    TPI_TRY(tpi_text_reserve(text, 1));
    text->data[text->length] = 0;
    return TP_OK;
}

tp_status tp_tokenizer_decode(const tp_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              bool skip_special, char **text, size_t *length) {
    tpi_text bytes = {0}, clean = {0};
    tp_status status = TP_OK;
    bool begun = false, appended;
    *text = NULL;
    if (length) *length = 0;
    for (size_t i = 0; i < count && status == TP_OK; i++) {
        status = append_token(tokenizer, ids[i], skip_special, !begun, &bytes, &appended);
        begun |= appended;
    }
    if (status == TP_OK) status = tpi_text_append_lossy(&clean, bytes.data, bytes.length);
    if (status == TP_OK) status = terminate(&clean);
    tpi_text_free(&bytes);
    if (status != TP_OK) {
        tpi_text_free(&clean);
        return status;
    }
    *text = clean.data;
    if (length) *length = clean.length;
    return TP_OK;
}

void tp_text_free(char *text) {
    tpi_free(text);
}

tp_status tp_decode_stream_create(tp_tokenizer *tokenizer, bool skip_special, tp_decode_stream **out) {
    *out = tpi_calloc(1, sizeof **out);
    if (!*out) return TP_ENOMEM;
    (*out)->tokenizer = tp_tokenizer_retain(tokenizer);
    (*out)->skip_special = skip_special;
    return TP_OK;
}

/* Makes the first `count` held bytes the text to give out, and keeps the rest. On failure nothing changes. */
static tp_status give(tp_decode_stream *stream, size_t count, const char **text, size_t *length) {
    stream->ready.length = 0;
    TPI_TRY(tpi_text_append_lossy(&stream->ready, stream->held.data, count));
    TPI_TRY(terminate(&stream->ready));
    stream->held.length -= count;
    if (stream->held.length) memmove(stream->held.data, stream->held.data + count, stream->held.length);
    *text = stream->ready.data;
    if (length) *length = stream->ready.length;
    return TP_OK;
}

tp_status tp_decode_stream_push(tp_decode_stream *stream, int32_t id, const char **text, size_t *length) {
    size_t before = stream->held.length;
    bool appended = false;
    *text = NULL;
    if (length) *length = 0;
    tp_status status =
        append_token(stream->tokenizer, id, stream->skip_special, !stream->begun, &stream->held, &appended);
    size_t unfinished = tpi_text_unfinished(stream->held.data, stream->held.length);
    if (status == TP_OK) status = give(stream, stream->held.length - unfinished, text, length);
    if (status == TP_OK)
        stream->begun |= appended;
    else
        stream->held.length = before;
    return status;
}

tp_status tp_decode_stream_flush(tp_decode_stream *stream, const char **text, size_t *length) {
    *text = NULL;
    if (length) *length = 0;
    TPI_TRY(give(stream, stream->held.length, text, length));
    stream->begun = false;
    return TP_OK;
}

void tp_decode_stream_destroy(tp_decode_stream *stream) {
    if (!stream) return;
    tp_tokenizer_release(stream->tokenizer);
    tpi_text_free(&stream->held);
    tpi_text_free(&stream->ready);
    tpi_free(stream);
}
