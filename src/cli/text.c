/* Small texts: the name that was meant, sizes, times, JSON strings. */
#include "cli.h"

#include <math.h>
#include <string.h>
#include <time.h>

#define LONGEST_NAME 63

/* Insertions, deletions, replacements and swaps of neighbours that make b of a (Damerau's distance, optimal
 * string alignment). The three rows that the recurrence looks at take turns. */
static size_t edit_distance(const char *a, const char *b) {
    const size_t n = strlen(a), m = strlen(b);
    size_t rows[3][LONGEST_NAME + 1];
    if (n > LONGEST_NAME || m > LONGEST_NAME) return SIZE_MAX;
    for (size_t j = 0; j <= m; j++) rows[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *second = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && second[j - 2] + 1 < best) best = second[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[n % 3][m];
}

const char *nearest(const char *text, const char *const *names, size_t count) {
    const char *best = NULL;
    size_t best_distance = strlen(text) / 3 + 2; /* what is further off was hardly meant */
    for (size_t i = 0; i < count; i++) {
        const size_t distance = edit_distance(text, names[i]);
        if (distance >= best_distance || distance >= strlen(names[i])) continue;
        best = names[i];
        best_distance = distance;
    }
    return best;
}

char *size_text(uint64_t bytes, char text[SIZE_TEXT]) {
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
    double value = (double)bytes;
    int unit = 0;
    for (; value >= 999.5 && unit < 6; unit++) value /= 1000;
    snprintf(text, SIZE_TEXT, "%.*f %s", unit == 0 ? 0 : value < 9.995 ? 2 : 1, value, units[unit]);
    return text;
}

char *time_text(double seconds, char text[TIME_TEXT]) {
    const long long s = seconds > 0 && seconds < 1e12 ? llround(seconds) : 0;
    snprintf(text, TIME_TEXT, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    return text;
}

void print_json_string(FILE *file, const char *text) {
    fputc('"', file);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(file, "\\%c", *c);
        else if (*c < 0x20)
            fprintf(file, "\\u%04x", *c);
        else
            fputc(*c, file);
    }
    fputc('"', file);
}

double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
