/* What this machine offers: the CPU, and a GPU where there is one; each is put to work once. */
#include "taper/eager.h"

#include <math.h>
#include <stdio.h>

static void log_line(void *user, tp_log_level level, const char *line) {
    (void)level;
    fprintf(user, "  %s\n", line);
}

/* Multiplies on the device and compares with what must come out. */
static tp_status try_device(tp_device *device) {
    const int64_t shape[] = {64, 64};
    tp_tensor *ones = NULL, *product = NULL;
    float value = 0.0f;
    tp_status status = tp_tensor_ones(device, TP_F32, 2, shape, &ones);
    if (status == TP_OK) status = tp_tensor_matmul(ones, ones, &product);
    tp_tensor *corner = NULL, *cell = NULL;
    if (status == TP_OK) status = tp_tensor_slice(product, 0, 63, 64, &corner);
    if (status == TP_OK) status = tp_tensor_slice(corner, 1, 63, 64, &cell);
    if (status == TP_OK) status = tp_tensor_read(cell, TP_F32, &value, sizeof value);
    tp_tensor *all[] = {ones, product, corner, cell};
    for (int i = 0; i < 4; i++) tp_tensor_release(all[i]);
    return status == TP_OK && fabsf(value - 64.0f) > 0.0f ? TP_EDEVICE : status;
}

int main(void) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.verbose = "kernel"; /* a line for each kernel that runs */
    options.log = log_line;
    options.log_user = stdout;
    tp_context *ctx;
    if (tp_context_create(&ctx, &options) != TP_OK) {
        fprintf(stderr, "%s\n", tp_error_message());
        return 1;
    }
    tp_device *devices[] = {tp_device_cpu(ctx), tp_device_cuda_if_available(ctx, 0)};
    int count = tp_device_is_cuda(devices[1]) ? 2 : 1; /* else the second is the CPU again */
    int failed = 0;
    for (int i = 0; i < count; i++) {
        printf("%s: %s\n", tp_device_name(devices[i]), tp_device_description(devices[i]));
        tp_status status = try_device(devices[i]);
        printf("  %s\n", status == TP_OK ? "works" : tp_error_message());
        failed += status != TP_OK;
    }
    tp_context_destroy(ctx);
    return failed;
}
