/* taper devices: what taper can compute on. */
#include "session.h"

static void print_device(const tp_device *device) {
    printf("%-8s  %s\n", tp_device_name(device), tp_device_description(device));
}

static int list_devices(const session *s) {
    print_device(tp_device_cpu(s->context));
    for (int i = 0;; i++) {
        const tp_device *gpu = tp_device_cuda_if_available(s->context, i);
        if (!tp_device_is_cuda(gpu)) return EXIT_OK;
        print_device(gpu);
    }
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
