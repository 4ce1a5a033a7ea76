/* A device's memory, written and read: by its own calls, or on the host as it is. */
#include "core/device.h"

#include <string.h>

tp_status tpi_device_write(tp_device *device, void *to, const void *from, size_t bytes) {
    if (bytes == 0) return TP_OK;
    if (from) return tpi_device_write_pieces(device, to, &(tpi_piece){0, from, bytes}, 1);
    if (device->calls) return device->calls->clear(device->state, to, bytes);
    memset(to, 0, bytes);
    return TP_OK;
}

tp_status tpi_device_write_pieces(tp_device *device, void *to, const tpi_piece *pieces, int n) {
    if (device->calls) return device->calls->write(device->state, to, pieces, n);
    for (int i = 0; i < n; i++) memcpy((char *)to + pieces[i].at, pieces[i].from, pieces[i].bytes);
    return TP_OK;
}

tp_status tpi_device_read(tp_device *device, void *to, const void *from, size_t bytes, uint64_t mark) {
    if (device->calls) return device->calls->read(device->state, to, from, bytes, mark);
    if (bytes) memcpy(to, from, bytes);
    return TP_OK;
}
