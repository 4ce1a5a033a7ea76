/* adapter_config.json of PEFT: read into the terms of tpi_adapter_spec, and written.
 *
 * Invariant: a configuration that was read means here what it means in PEFT; what cannot be honoured was an
 * error. Semantics: PEFT's LoraConfig and BaseTuner (https://github.com/huggingface/peft). */
#ifndef TAPER_ADAPTERS_PEFT_CONFIG_H
#define TAPER_ADAPTERS_PEFT_CONFIG_H

#include "io/json.h"
#include "models/adapter.h"

typedef struct tpi_peft_config {
    tpi_json_doc *doc;     /* owned: the texts in `spec` are its */
    tpi_adapter_spec spec; /* its arrays are owned here */
} tpi_peft_config;

/* Unknown keys are logged as warnings through the model's context. */
tp_status tpi_peft_config_load(const char *path, const tp_model *model, tpi_peft_config *out);
void tpi_peft_config_free(tpi_peft_config *config);

tp_status tpi_peft_config_write(const char *path, const tp_adapter *adapter);

#endif
