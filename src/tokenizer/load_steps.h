/* Reading the lists of steps in a tokenizer.json. Invariant: a function that fails leaves what it has read so
 * far in the tokenizer, which is then destroyed as a whole. Absent and null steps are no steps. */
#ifndef TAPER_TOKENIZER_LOAD_STEPS_H
#define TAPER_TOKENIZER_LOAD_STEPS_H

#include "io/json.h"
#include "tokenizer/tokenizer.h"

tp_status tpi_load_normalizer(tpi_json value, tp_tokenizer *tokenizer);
tp_status tpi_load_pre_tokenizer(tpi_json value, tp_tokenizer *tokenizer);
tp_status tpi_load_post_processor(tpi_json value, tp_tokenizer *tokenizer);
tp_status tpi_load_decoder(tpi_json value, tp_tokenizer *tokenizer);

/* Puts the file and the key before the current message; passes success and lack of memory through. */
tp_status tpi_load_located(tpi_json value, tp_status status);

#endif
