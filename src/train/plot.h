/* The loss curves as a picture. */
#ifndef TAPER_TRAIN_PLOT_H
#define TAPER_TRAIN_PLOT_H

#include "train/log.h"

/* Writes <directory>/loss.svg and loss.png, each atomically: training loss faint and smoothed, validation
 * loss as points. Nothing is written while no curve has two points. TP_EIO, TP_ENOMEM. */
tp_status tpi_plot_write(const tpi_log *log, const char *directory);

/* Round numbers that mark [low, high] with at most `most` intervals: the first of them and their distance, 1,
 * 2 or 5 times a power of ten. */
void tpi_plot_ticks(double low, double high, int most, double *first, double *distance);

#endif
