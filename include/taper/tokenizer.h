/* Tokenizers: text to token ids and back, read from a Hugging Face tokenizer.json.
 *
 * BPE is read, of bytes (GPT-2, Qwen, Llama 3, SmolLM ...) and in SentencePiece's style, of characters with
 * bytes to fall back on (Llama 1 and 2, TinyLlama, Mistral ...). Ids and texts equal those of the Hugging
 * Face `tokenizers` library; what changes them and is not supported is an error that names the key.
 * `truncation` and `padding` in the file are ignored: they are policy of the caller, not of the vocabulary.
 * An added token keeps the id that the file gives it. Limits: ids up to 2^22, added tokens of 1024 bytes.
 *
 * A tokenizer is immutable once loaded, so several threads may use one at the same time. A decode stream
 * belongs to one thread.
 *
 *     tp_tokenizer *tokenizer;
 *     int32_t *ids;
 *     char *text;
 *     size_t count, length;
 *     if (tp_tokenizer_load("models/tiny", &tokenizer) != TP_OK) return 1;
 *     if (tp_tokenizer_encode(tokenizer, "In the beginning", 16, true, &ids, &count) != TP_OK) return 1;
 *     if (tp_tokenizer_decode(tokenizer, ids, count, true, &text, &length) != TP_OK) return 1;
 *     puts(text);
 *     tp_text_free(text);
 *     tp_ids_free(ids);
 *     tp_tokenizer_release(tokenizer);
 */
#ifndef TAPER_TOKENIZER_H
#define TAPER_TOKENIZER_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_tokenizer tp_tokenizer;
typedef struct tp_decode_stream tp_decode_stream;

/* Reads a tokenizer.json, or the one in a model directory. *out is owned by the caller: release it.
 * Fails with TP_EIO (not readable), TP_EFORMAT (malformed), TP_EUNSUPPORTED (valid, but would change the ids)
 * or TP_ENOMEM. */
TP_API tp_status tp_tokenizer_load(const char *path, tp_tokenizer **out);

/* The same from `length` bytes of JSON in memory, borrowed for the call. */
TP_API tp_status tp_tokenizer_parse(const char *json, size_t length, tp_tokenizer **out);

/* One more owner; returns `tokenizer`. Each owner releases once; the last release frees. Releasing NULL does
 * nothing. Both may be called from any thread. */
TP_API tp_tokenizer *tp_tokenizer_retain(tp_tokenizer *tokenizer);
TP_API void tp_tokenizer_release(tp_tokenizer *tokenizer);

/* Largest id + 1, added tokens included: the least number of rows of a fitting embedding. */
TP_API int32_t tp_tokenizer_vocab_size(const tp_tokenizer *tokenizer);

/* The id of a token as the file spells it ("<|endoftext|>", and "Ġthe" for " the"), or -1. */
TP_API int32_t tp_tokenizer_id(const tp_tokenizer *tokenizer, const char *token);

/* The spelling of a token, or NULL if no token has this id: what the file says, not what it decodes to.
 * Borrowed from the tokenizer; NUL-terminated. `length` gets its bytes and may be NULL. */
TP_API const char *tp_tokenizer_token(const tp_tokenizer *tokenizer, int32_t id, size_t *length);

/* Whether the file marks this added token as special (control: begin, end, role markers ...). */
TP_API bool tp_tokenizer_is_special(const tp_tokenizer *tokenizer, int32_t id);

/* Text to ids. `text` is `length` bytes, borrowed, any content: each maximal invalid UTF-8 sequence counts as
 * U+FFFD. Added tokens in the text become their ids, special or not. With `add_special` the file's template
 * puts its tokens around (begin of text ...). *ids is owned by the caller (tp_ids_free) and never NULL on
 * success, also when *count is 0.
 * Fails with TP_EINVAL (text of 2^31 bytes or more), TP_EFORMAT (a pattern exceeds the match limit),
 * TP_ENOMEM. */
TP_API tp_status tp_tokenizer_encode(const tp_tokenizer *tokenizer, const char *text, size_t length,
                                     bool add_special, int32_t **ids, size_t *count);

/* The same for a text that goes on behind tokens of one, and without the template. What a tokenizer puts
 * before a text, as SentencePiece's style does with a blank, is put where it would be in the whole: where
 * `before` is empty, and where it is due behind an added token and `before` ends with one. */
TP_API tp_status tp_tokenizer_encode_behind(const tp_tokenizer *tokenizer, const int32_t *before,
                                            size_t before_count, const char *text, size_t length,
                                            int32_t **ids, size_t *count);

/* Ids to text, in valid UTF-8: each maximal invalid byte sequence gives U+FFFD, and so does each byte of a
 * run of SentencePiece's byte tokens ("<0xE2>") that is not UTF-8 as a whole. An id that names no token gives
 * nothing (models pad their vocabulary); `skip_special` leaves special tokens out. *text is owned by the
 * caller (tp_text_free), and NUL-terminated; *length, which may be NULL, gets its bytes. */
TP_API tp_status tp_tokenizer_decode(const tp_tokenizer *tokenizer, const int32_t *ids, size_t count,
                                     bool skip_special, char **text, size_t *length);

/* Release what tp_tokenizer_encode and tp_tokenizer_decode gave. NULL does nothing. */
TP_API void tp_ids_free(int32_t *ids);
TP_API void tp_text_free(char *text);

/* A decoder for text that arrives token by token. What it gives out, put together, equals
 * tp_tokenizer_decode of all ids; no piece ends within a character. The stream retains the tokenizer. */
TP_API tp_status tp_decode_stream_create(tp_tokenizer *tokenizer, bool skip_special, tp_decode_stream **out);

/* Lets the text continue tokens that came before, a prompt's: nothing is given out for them, and what follows
 * is not the beginning of a text, which may lose a blank. After a failure (TP_ENOMEM) flush the stream. */
TP_API tp_status tp_decode_stream_continue(tp_decode_stream *stream, const int32_t *ids, size_t count);

/* Takes one id and gives the text that is now complete, often "": a run of byte tokens is complete when it
 * has ended. *text is borrowed, NUL-terminated, and valid until the stream's next call; *length may be NULL.
 * After a failure (TP_ENOMEM) the id was not taken. */
TP_API tp_status tp_decode_stream_push(tp_decode_stream *stream, int32_t id, const char **text,
                                       size_t *length);

/* Gives what was held back, an incomplete character as U+FFFD, and makes the stream ready for a new text. */
TP_API tp_status tp_decode_stream_flush(tp_decode_stream *stream, const char **text, size_t *length);

TP_API void tp_decode_stream_destroy(tp_decode_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
