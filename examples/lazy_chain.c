/* A chain of operations: recorded first, planned as a whole, evaluated once; the second time its plan is
 * there already. */
#include "taper/graph.h"
#include "taper/ops.h"

#include <stdio.h>
#include <stdlib.h>

static void check(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "%s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

/* softmax(silu(x · w + bias)): no check between the calls, since an error sticks in the graph. */
static tp_lazy *record(tp_graph *g, tp_tensor *x, tp_tensor *w, tp_tensor *bias) {
    tp_lazy *h =
        tp_lazy_linear(tp_lazy_from_tensor(g, x), tp_lazy_from_tensor(g, w), tp_lazy_from_tensor(g, bias));
    return tp_lazy_softmax(tp_lazy_silu(h), -1);
}

int main(void) {
    tp_context *ctx;
    tp_graph *g;
    check(tp_context_create(&ctx, NULL));
    check(tp_graph_create(&g, ctx));
    tp_device *cpu = tp_device_cpu(ctx);

    tp_tensor *x, *w, *bias;
    check(tp_tensor_randn(cpu, 2, (int64_t[]){4, 16}, 1, &x));
    check(tp_tensor_randn(cpu, 2, (int64_t[]){16, 8}, 2, &w));
    check(tp_tensor_zeros(cpu, TP_F32, 1, (int64_t[]){8}, &bias));

    for (int round = 0; round < 2; round++) {
        tp_lazy *y = record(g, x, w, bias);
        printf("recorded %zu nodes; y will be [%lld, %lld], evaluated: %s\n", tp_graph_size(g),
               (long long)tp_lazy_size(y, 0), (long long)tp_lazy_size(y, 1),
               tp_lazy_is_evaluated(y) ? "yes" : "no");
        if (round == 0) {
            char *plan;
            check(tp_graph_explain(g, &y, 1, &plan));
            printf("the plan: %s", plan);
            tp_free(plan);
        }
        tp_tensor *out;
        check(tp_lazy_eval(y, &out));
        const float *values = tp_tensor_data(out);
        double sum = 0.0;
        for (int i = 0; i < 8; i++) sum += (double)values[i];
        printf("the first row sums to %.4f\n", sum);
        tp_tensor_release(out);
        tp_graph_reset(g); /* the nodes are gone, the plan stays cached */
    }

    tp_context_stats stats;
    tp_context_get_stats(ctx, &stats);
    printf("plans made: %llu, found in the cache: %llu\n", (unsigned long long)stats.plan_misses,
           (unsigned long long)stats.plan_hits);

    tp_tensor_release(x);
    tp_tensor_release(w);
    tp_tensor_release(bias);
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
    return stats.plan_misses == 1 ? 0 : 1;
}
