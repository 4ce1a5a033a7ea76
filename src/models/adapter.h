/* An adapter in memory: pairs of matrices for some of a model's linear layers.
 *
 * Invariants: pairs are in the order of the model's linear layers, at most one a layer; parameters[2i] and
 * [2i + 1] are A and B of pair i, and own them. */
#ifndef TAPER_MODELS_ADAPTER_H
#define TAPER_MODELS_ADAPTER_H

#include "models/model.h"
#include "models/targets.h"
#include "nn/update.h"

typedef struct tpi_pair {
    int linear; /* number of the linear layer */
    int64_t rank;
    double alpha, scaling;
} tpi_pair;

struct tp_adapter {
    const tp_model *model; /* borrowed */
    char *base_model;      /* owned */
    int64_t rank;          /* of the pairs that no pattern names; alpha likewise */
    double alpha, dropout;
    bool rslora;
    int count;
    tpi_pair *pairs;          /* owned */
    tp_parameter *parameters; /* [2 · count]; names and tensors owned */
    int *pair_of;             /* [model's linear layers]: number of the pair, -1: none */
};

/* Which layers, and what they get: what tp_adapter_options and adapter_config.json both say. All borrowed. */
typedef struct tpi_adapter_spec {
    const char *base_model;
    int64_t rank;
    double alpha, dropout;
    bool rslora;
    const tpi_target *targets, *exclude;
    int target_count, exclude_count;
    const bool *layers; /* [model's layers]: those that are adapted; NULL: all */
    const tp_adapter_pattern *rank_pattern, *alpha_pattern;
    int rank_pattern_count, alpha_pattern_count;
    bool strict; /* every target, exclusion and pattern must match a layer */
} tpi_adapter_spec;

/* An adapter whose parameters have names and no tensors yet. TP_EINVAL for values out of range and targets
 * that match nothing. */
tp_status tpi_adapter_allocate(tp_adapter **out, const tp_model *model, const tpi_adapter_spec *spec);

/* Linear layer of pair `i`, and shapes of its A and B. */
const tp_linear *tpi_adapter_linear(const tp_adapter *adapter, int i);
void tpi_adapter_shapes(const tp_adapter *adapter, int i, int64_t a_shape[2], int64_t b_shape[2]);

/* Most adapters that act at once. */
#define TPI_MAX_USES 16

/* The updates of one linear layer: those of `uses` that have a pair for it and a scale other than 0. Returns
 * their number. */
int tpi_adapter_updates(const tp_adapter_use *uses, int count, int linear, tpi_update updates[TPI_MAX_USES]);

/* TP_EINVAL unless there are at most TPI_MAX_USES, all of this model and with finite scales. */
tp_status tpi_adapter_check_uses(const tp_model *model, const tp_adapter_use *uses, int count);

#endif
