/* taper devices: what taper can compute on. */
#include "session.h"

static void print_device(const tp_device *device) {
    uint64_t free_bytes, total;
    printf("%-8s  %s", tp_device_name(device), tp_device_description(device));
    if (tp_device_memory(device, &free_bytes, &total))
        printf(", %.1f of %.1f GiB free", (double)free_bytes / 0x1p30, (double)total / 0x1p30);
    printf("\n");
}

/* Where there is no GPU, the last line says why. */
static int list_devices(const session *s) {
    int count;
    print_device(tp_device_cpu(s->context));
    if (tp_device_cuda_count(&count) != TP_OK) printf("%-8s  %s\n", "no GPU", tp_error_message());
    for (int i = 0; i < count; i++) {
        const tp_device *gpu = tp_device_cuda(s->context, i);
        if (gpu)
            print_device(gpu);
        else
            printf("cuda:%-3d  %s\n", i, tp_error_message());
    }
    return EXIT_OK;
}

int devices_command(int argc, char **argv) {
    session_options options = SESSION_OPTIONS_INIT;
    const option_table table = {"devices", "List the devices that taper can compute on.", NULL, 0, NULL,
                                NULL};
    int code = options_parse(&table, argc, argv, &options);
    if (code != OPTIONS_GO) return code;
    session s;
    code = session_open(&s, &options);
    if (code == 0) code = list_devices(&s);
    session_close(&s);
    return code;
}
