/* A tokenizer's life, and the questions about its vocabulary. */
#include "tokenizer/tokenizer.h"
#include "core/alloc.h"

#include <string.h>

void tpi_tokenizer_destroy(tp_tokenizer *tokenizer) {
    tpi_bpe_free(&tokenizer->bpe);
    tpi_vocab_free(&tokenizer->vocab);
    tpi_added_free(&tokenizer->added);
    tpi_normalizer_free(&tokenizer->normalizer);
    tpi_splitter_free(&tokenizer->splitter);
    tpi_decoder_free(&tokenizer->decoder);
    tpi_free(tokenizer->prefix.data);
    tpi_free(tokenizer->suffix.data);
    tpi_free(tokenizer);
}

tp_tokenizer *tp_tokenizer_retain(tp_tokenizer *tokenizer) {
    atomic_fetch_add(&tokenizer->owners, 1);
    return tokenizer;
}

void tp_tokenizer_release(tp_tokenizer *tokenizer) {
    if (tokenizer && atomic_fetch_sub(&tokenizer->owners, 1) == 1) tpi_tokenizer_destroy(tokenizer);
}

int32_t tp_tokenizer_vocab_size(const tp_tokenizer *tokenizer) {
    return (int32_t)tokenizer->vocab.limit;
}

int32_t tp_tokenizer_id(const tp_tokenizer *tokenizer, const char *token) {
    return tpi_vocab_find(&tokenizer->vocab, token, strlen(token));
}

const char *tp_tokenizer_token(const tp_tokenizer *tokenizer, int32_t id, size_t *length) {
    size_t bytes = 0;
    const char *spelling = tpi_vocab_spelling(&tokenizer->vocab, id, &bytes);
    if (length) *length = bytes;
    return spelling;
}

bool tp_tokenizer_is_special(const tp_tokenizer *tokenizer, int32_t id) {
    return tpi_vocab_is_special(&tokenizer->vocab, id);
}
