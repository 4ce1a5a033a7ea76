/* Running a plan: launched step by step at first; captured into a CUDA graph and replayed as one launch when
 * it is run again with the same pointers.
 *
 * The pointers are the identity of a captured run: arenas and fresh buffers come from the same size classes
 * in the same order, so a loop meets the same ones again. A few captures are kept for each plan, for a loop
 * that alternates between buffers. */
#include "backend/cuda/device.h"

#include "backend/cuda/groups.h"
#include "backend/cuda/pointwise_chain.h"
#include "core/alloc.h"

#include <stdio.h>
#include <string.h>

#define CAPTURES 4 /* kept for each plan */
#define WORTH    6 /* launches that a capture costs, about */

typedef struct capture {
    void **slots;     /* the pointers; NULL: unused */
    uint64_t binding; /* of the last run with them, whose number tells without comparing them */
    cudaGraphExec_t graph;
    uint64_t runs, last; /* with these pointers; when it was used last */
} capture;

/* What a plan keeps. */
typedef struct replay {
    int device;
    bool refused; /* a step cannot be captured */
    uint64_t clock;
    capture captures[CAPTURES];
} replay;

static void release_capture(capture *c) {
    if (c->graph) cudaGraphExecDestroy(c->graph);
    tpi_free(c->slots);
    *c = (capture){0};
}

static void release_replay(void *data) {
    replay *r = data;
    cudaSetDevice(r->device);
    for (int i = 0; i < CAPTURES; i++) release_capture(&r->captures[i]);
    tpi_free(r);
}

static replay *replay_of(const tpi_cuda_device *device, const tpi_bound *bound) {
    replay *r = bound->prepared->data;
    if (r || !(r = tpi_calloc(1, sizeof *r))) return r;
    r->device = device->kernel.index;
    *bound->prepared = (tpi_prepared){r, release_replay};
    return r;
}

/* The capture with these pointers, in the place of the one that was used least recently if there is none. */
static capture *capture_of(replay *r, const tpi_bound *bound) {
    const size_t bytes = bound->n_slots * sizeof(void *);
    capture *oldest = &r->captures[0];
    for (int i = 0; i < CAPTURES; i++) {
        capture *c = &r->captures[i];
        if (c->slots && (c->binding == bound->binding || memcmp(c->slots, bound->slots, bytes) == 0))
            return c;
        if (c->last < oldest->last) oldest = c;
    }
    release_capture(oldest);
    if (!(oldest->slots = tpi_malloc(bytes))) return NULL;
    memcpy(oldest->slots, bound->slots, bytes);
    return oldest;
}

/* ---- launching ---- */

/* The steps from i on that are one launch. */
static uint32_t launch_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t i,
                             tp_status *status) {
    static tpi_cuda_group *const groups[] = {
        tpi_cuda_adamw_group, tpi_cuda_thin_group,  tpi_cuda_row_group,    tpi_cuda_norm_group,
        tpi_cuda_gated_group, tpi_cuda_layer_group, tpi_cuda_decode_group, tpi_cuda_rope_group};
    uint32_t taken = 0;
    for (size_t k = 0; k < sizeof groups / sizeof *groups && taken == 0; k++)
        taken = groups[k](launch, bound, i, status);
    return taken;
}

static tp_status launch_steps(tpi_cuda_device *device, const tpi_bound *bound) {
    tpi_launch launch = {NULL, bound->slots, bound->threads, &device->kernel};
    for (uint32_t i = 0; i < bound->n_steps;) {
        tp_status status = TP_OK;
        launch.step = &bound->steps[i];
        const uint32_t taken = launch_group(&launch, bound, i, &status);
        TPI_TRY(taken ? status : launch.step->kernel->run(&launch));
        i += taken ? taken : 1;
    }
    return TP_OK;
}

/* What the run found goes to the host. */
static tp_status collect(const tpi_cuda_device *device, const tpi_bound *bound) {
    return bound->can_fail ? tpi_cuda_report(device, tpi_cuda_collect_fault(device), "a run") : TP_OK;
}

/* ---- capturing ---- */

/* Says once why a plan is launched step by step, and gives its captures back. */
static void refuse(tpi_cuda_device *device, replay *r, const char *why) {
    r->refused = true;
    for (int i = 0; i < CAPTURES; i++) release_capture(&r->captures[i]);
    cudaGetLastError();
    snprintf(device->to_say, sizeof device->to_say,
             "cuda:%d: a plan is launched step by step, for it cannot be captured: %s", device->kernel.index,
             why);
}

/* What the runs before have met is compiled now, for code is not loaded while a plan is captured. */
static void prepare_steps(tpi_cuda_device *device, const tpi_bound *bound) {
    tpi_launch launch = {NULL, bound->slots, bound->threads, &device->kernel};
    for (uint32_t i = 0; i < bound->n_steps; i++) {
        launch.step = &bound->steps[i];
        if (launch.step->op == TPI_POINTWISE_CHAIN) tpi_cuda_prepare_chain(&launch);
    }
}

static void capture_steps(tpi_cuda_device *device, replay *r, capture *c, const tpi_bound *bound) {
    cudaGraph_t graph = NULL;
    prepare_steps(device, bound);
    cudaError_t error = cudaStreamBeginCapture(device->kernel.stream, cudaStreamCaptureModeThreadLocal);
    if (error != cudaSuccess) return refuse(device, r, cudaGetErrorString(error));
    tp_status status = launch_steps(device, bound);
    if (status == TP_OK) status = collect(device, bound);
    error = cudaStreamEndCapture(device->kernel.stream, &graph);
    if (status == TP_OK && error == cudaSuccess) error = cudaGraphInstantiate(&c->graph, graph, 0);
    if (status != TP_OK || error != cudaSuccess) {
        c->graph = NULL;
        refuse(device, r, status != TP_OK ? tp_error_message() : cudaGetErrorString(error));
    }
    if (graph) cudaGraphDestroy(graph);
}

/* The plan's capture for these pointers; NULL: it is launched step by step. */
static capture *find_capture(tpi_cuda_device *device, const tpi_bound *bound) {
    replay *r = bound->prepared && bound->n_steps > 0 ? replay_of(device, bound) : NULL;
    capture *c = r && !r->refused ? capture_of(r, bound) : NULL;
    if (c) {
        c->last = ++r->clock;
        c->binding = bound->binding;
        if (++c->runs >= 2 && c->runs * bound->n_steps >= WORTH && !c->graph)
            capture_steps(device, r, c, bound);
    }
    return c && c->graph ? c : NULL;
}

/* Also where a step cannot be launched: those before it may have found a fault, which the next run would find
 * else, and what is queued is waited for. What fails first is told. */
static tp_status run_by_steps(tpi_cuda_device *device, const tpi_bound *bound) {
    char message[512] = "";
    const tp_status status = launch_steps(device, bound);
    if (status != TP_OK) snprintf(message, sizeof message, "%s", tp_error_message());
    const tp_status collected = collect(device, bound);
    const tp_status ended = tpi_cuda_end_run(device, bound->can_fail && collected == TP_OK);
    if (status != TP_OK) return tpi_fail(status, "%s", message);
    return collected != TP_OK ? collected : ended;
}

/* Whether a call that failed has left the device as it was. */
static bool still_works(const tpi_cuda_device *device) {
    cudaGetLastError();
    const cudaError_t error = cudaStreamQuery(device->kernel.stream);
    cudaGetLastError();
    return error == cudaSuccess || error == cudaErrorNotReady;
}

static tp_status run_begun(tpi_cuda_device *device, const tpi_bound *bound) {
    const capture *c = find_capture(device, bound);
    if (!c) return run_by_steps(device, bound);
    const cudaError_t error = cudaGraphLaunch(c->graph, device->kernel.stream);
    if (error == cudaSuccess) return tpi_cuda_end_run(device, bound->can_fail);
    if (!still_works(device)) return tpi_cuda_report(device, error, "a captured run");
    refuse(device, bound->prepared->data, cudaGetErrorString(error)); /* as for want of memory */
    return run_by_steps(device, bound);
}

/* A turn is ended also where nothing was run in it. */
static tp_status run_in_turn(tpi_cuda_device *device, const tpi_bound *bound) {
    tp_status status = tpi_cuda_begin_turn(device);
    if (status == TP_OK) status = run_begun(device, bound);
    const tp_status ended = tpi_cuda_end_turn(device);
    return status == TP_OK ? ended : status;
}

static void say(const tpi_cuda_device *device, const char *line) {
    if (*line && device->warning.warn) device->warning.warn(device->warning.user, line);
}

tp_status tpi_cuda_run(void *state, const tpi_bound *bound, uint64_t *mark) {
    tpi_cuda_device *device = state;
    char line[sizeof device->to_say];
    *line = '\0';
    pthread_mutex_lock(&device->lock);
    cudaGetLastError(); /* of others on this thread: a step's launch is not blamed for it */
    tp_status status =
        tpi_cuda_report(device, cudaSetDevice(device->kernel.index), "the device cannot be used");
    if (status == TP_OK) status = tpi_cuda_begin_run(device);
    if (status == TP_OK) status = run_in_turn(device, bound);
    *mark = device->marks;
    if (*device->to_say) memcpy(line, device->to_say, sizeof line);
    *device->to_say = '\0';
    pthread_mutex_unlock(&device->lock);
    say(device, line);
    return status;
}
