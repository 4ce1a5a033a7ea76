/* A recording as text, as a Graphviz graph, or as JSON: one walk, three ways to write a node. */
#include "graph/graph.h"
#include "core/text.h"

/* The first failure sticks. */
typedef struct writer {
    tpi_text text;
    tp_status status;
} writer;

static void put(writer *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void put(writer *w, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (w->status == TP_OK) w->status = tpi_text_print(&w->text, format, args);
    va_end(args);
}

static uint32_t input_id(const tp_lazy *node, int k) {
    return node->id - tpi_node_distances(node)[k];
}

static void put_text(writer *w, const tp_lazy *node, const char *shape) {
    put(w, "%%%u = %s(", node->id, tpi_ops[node->record.op].name);
    for (int k = 0; k < node->record.n_in; k++) put(w, "%s%%%u", k ? ", " : "", input_id(node, k));
    put(w, ") : %s%s\n", tp_dtype_name((tp_dtype)node->record.dtype), shape);
}

static void put_dot(writer *w, const tp_lazy *node, const char *shape) {
    put(w, "  n%u [label=\"%s\\n%s%s\"];\n", node->id, tpi_ops[node->record.op].name,
        tp_dtype_name((tp_dtype)node->record.dtype), shape);
    for (int k = 0; k < node->record.n_in; k++) put(w, "  n%u -> n%u;\n", input_id(node, k), node->id);
}

static void put_json(writer *w, const tp_lazy *node, const char *shape) {
    put(w, "%s\n  {\"id\": %u, \"op\": \"%s\", \"dtype\": \"%s\", \"shape\": %s, \"inputs\": [",
        node->id ? "," : "", node->id, tpi_ops[node->record.op].name,
        tp_dtype_name((tp_dtype)node->record.dtype), shape);
    for (int k = 0; k < node->record.n_in; k++) put(w, "%s%u", k ? ", " : "", input_id(node, k));
    put(w, "]}");
}

tp_status tp_graph_trace(tp_graph *graph, tp_trace_format format, char **out) {
    static const struct {
        const char *begin, *end;
        void (*node)(writer *w, const tp_lazy *node, const char *shape);
    } formats[] = {{"", "", put_text}, {"digraph taper {\n", "}\n", put_dot}, {"[", "\n]\n", put_json}};
    writer w = {0};
    *out = NULL;
    if (!graph) return tpi_fail(TP_EINVAL, "tp_graph_trace: graph is NULL");
    if ((unsigned)format >= sizeof formats / sizeof formats[0])
        return tpi_fail(TP_EINVAL, "tp_graph_trace: format %d does not exist", (int)format);
    put(&w, "%s", formats[format].begin);
    for (size_t i = 0; i < graph->tape.count; i++) {
        const tp_lazy *node = graph->tape.nodes[i];
        char shape[TPI_SHAPE_TEXT];
        formats[format].node(&w, node, tpi_shape_text(node->record.rank, tpi_node_shape(node), shape));
    }
    put(&w, "%s", formats[format].end);
    if (w.status != TP_OK)
        tpi_text_free(&w.text);
    else
        *out = w.text.data;
    return w.status;
}
