/* taper: lazy tensors, LoRA fine-tuning and text generation in C.
 *
 * This header includes all others. Read them in this order: status, context, tensor, graph, ops, program;
 * eager and lora for the two ways to compute; model, adapter, tokenizer, train, generate for language models.
 *
 *     tp_context *ctx;
 *     tp_graph *g;
 *     tp_tensor *out;
 *     const int64_t shape[] = {2, 2};
 *     const float values[] = {1, 2, 3, 4};
 *     if (tp_context_create(&ctx, NULL) != TP_OK || tp_graph_create(&g, ctx) != TP_OK) return 1;
 *     tp_lazy *x = tp_lazy_from_slice(g, tp_device_cpu(ctx), TP_F32, 2, shape, values);
 *     if (tp_lazy_eval(tp_lazy_softmax(tp_lazy_matmul(x, x), -1), &out) != TP_OK) return 1;
 *     tp_tensor_release(out);
 *     tp_graph_destroy(g);
 *     tp_context_destroy(ctx);
 */
#ifndef TAPER_TAPER_H
#define TAPER_TAPER_H

#include "taper/adapter.h"
#include "taper/context.h"
#include "taper/eager.h"
#include "taper/generate.h"
#include "taper/graph.h"
#include "taper/lora.h"
#include "taper/model.h"
#include "taper/ops.h"
#include "taper/program.h"
#include "taper/status.h"
#include "taper/tensor.h"
#include "taper/tokenizer.h"
#include "taper/train.h"

#endif
