/* Learning rates. The cosine is that of Loshchilov and Hutter 2017 (SGDR) without restarts. */
#include "train/schedule.h"

#include <math.h>

#define PI 3.14159265358979323846

tpi_schedule tpi_schedule_make(tp_train_schedule kind, double peak, double warmup, int64_t steps) {
    double wanted = warmup < 1.0 ? warmup * (double)steps : warmup;
    int64_t rounded = wanted < (double)steps ? (int64_t)ceil(wanted) : steps;
    return (tpi_schedule){kind, peak, rounded, steps};
}

double tpi_schedule_rate(const tpi_schedule *schedule, int64_t step) {
    if (step < schedule->warmup) return schedule->peak * (double)(step + 1) / (double)schedule->warmup;
    double done = (double)(step - schedule->warmup) / (double)(schedule->steps - schedule->warmup);
    switch (schedule->kind) {
    case TP_SCHEDULE_COSINE:
        return schedule->peak * 0.5 * (1.0 + cos(PI * done));
    case TP_SCHEDULE_LINEAR:
        return schedule->peak * (1.0 - done);
    case TP_SCHEDULE_CONSTANT:
        break;
    }
    return schedule->peak;
}
