/* Rotary frequencies: radians a position for each pair of features.
 *
 * Plain: theta^(-2i/D) (Su et al. 2021). Linear scaling divides them by `factor` (Chen et al. 2023, position
 * interpolation). Llama 3's divides those whose wavelength exceeds original_positions / low_factor, keeps
 * those below original_positions / high_factor, and blends between (Llama 3.1 model card). */
#ifndef TAPER_MODELS_ROPE_H
#define TAPER_MODELS_ROPE_H

#include "io/json.h"

typedef enum tpi_rope_type { TPI_ROPE_PLAIN, TPI_ROPE_LINEAR, TPI_ROPE_LLAMA3 } tpi_rope_type;

typedef struct tpi_rope {
    tpi_rope_type type;
    double theta;
    double factor, low_factor, high_factor, original_positions;
} tpi_rope;

/* Reads rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5) of a config.json. */
tp_status tpi_rope_read(tpi_json root, tpi_rope *out);

/* out[i] for i < count is the frequency of pair i of 2 · count features. */
void tpi_rope_frequencies(const tpi_rope *rope, int64_t count, float *out);

#endif
