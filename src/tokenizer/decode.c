/* Ids to text, whole or token by token: both walk the decoder's steps, so they agree. */
#include "core/alloc.h"
#include "core/error.h"
#include "tokenizer/tokenizer.h"

struct tp_decode_stream {
    tp_tokenizer *tokenizer; /* retained */
    bool skip_special;
    tpi_decode_walk walk;
    tpi_text ready; /* what the last call gave out */
};

/* Takes an id; one without a token, or a special one that is left out, is nothing to the steps. */
static tp_status push(const tp_tokenizer *tokenizer, tpi_decode_walk *walk, int32_t id, bool skip_special,
                      tpi_text *out) {
    size_t length;
    const char *token = tpi_vocab_text(&tokenizer->vocab, id, &length);
    if (!token || (skip_special && tpi_vocab_is_special(&tokenizer->vocab, id))) return TP_OK;
    return tpi_decode_push(walk, token, length, out);
}

/* Makes the text empty, NUL-terminated and not NULL. */
static tp_status clear(tpi_text *text) {
    text->length = 0;
    TPI_TRY(tpi_text_reserve(text, 1));
    text->data[0] = 0;
    return TP_OK;
}

tp_status tp_tokenizer_decode(const tp_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              bool skip_special, char **text, size_t *length) {
    tpi_decode_walk walk = {.decoder = &tokenizer->decoder};
    tpi_text out = {0};
    *text = NULL;
    if (length) *length = 0;
    tp_status status = clear(&out);
    for (size_t i = 0; i < count && status == TP_OK; i++)
        status = push(tokenizer, &walk, ids[i], skip_special, &out);
    if (status == TP_OK) status = tpi_decode_finish(&walk, &out);
    tpi_decode_walk_free(&walk);
    if (status != TP_OK) {
        tpi_text_free(&out);
        return status;
    }
    *text = out.data;
    if (length) *length = out.length;
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
    (*out)->walk.decoder = &tokenizer->decoder;
    return TP_OK;
}

tp_status tp_decode_stream_continue(tp_decode_stream *stream, const int32_t *ids, size_t count) {
    tpi_text unseen = {0};
    tp_status status = TP_OK;
    for (size_t i = 0; i < count && status == TP_OK; i++)
        status = push(stream->tokenizer, &stream->walk, ids[i], stream->skip_special, &unseen);
    tpi_text_free(&unseen);
    tpi_decode_drop(&stream->walk);
    return status;
}

/* Gives out `ready`, or nothing on failure. */
static tp_status give(const tp_decode_stream *stream, tp_status status, const char **text, size_t *length) {
    *text = status == TP_OK ? stream->ready.data : NULL;
    if (length) *length = status == TP_OK ? stream->ready.length : 0;
    return status;
}

tp_status tp_decode_stream_push(tp_decode_stream *stream, int32_t id, const char **text, size_t *length) {
    tp_status status = clear(&stream->ready);
    if (status == TP_OK)
        status = push(stream->tokenizer, &stream->walk, id, stream->skip_special, &stream->ready);
    return give(stream, status, text, length);
}

tp_status tp_decode_stream_flush(tp_decode_stream *stream, const char **text, size_t *length) {
    tp_status status = clear(&stream->ready);
    if (status == TP_OK) status = tpi_decode_finish(&stream->walk, &stream->ready);
    return give(stream, status, text, length);
}

void tp_decode_stream_destroy(tp_decode_stream *stream) {
    if (!stream) return;
    tpi_decode_walk_free(&stream->walk);
    tpi_text_free(&stream->ready);
    tp_tokenizer_release(stream->tokenizer);
    tpi_free(stream);
}
