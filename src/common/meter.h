/* Private to the program: how far a long piece of work is, on stderr. On a terminal a bar that is redrawn, elsewhere lines. Who
 * uses it decides when; the times are seconds of a monotonic clock. One thread at a time. */
#ifndef MO_COMMON_METER_H
#define MO_COMMON_METER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  bool bar;      /* stderr is a terminal */
  double spoken; /* the time of the last line, or drawing */
  struct {
    double time;
    int64_t bytes;
  } since[2]; /* the rate is that since the first, which is 10 to 20 s ago */
} mo_meter;

void mo_meter_start(mo_meter *meter, double now);

/* Bytes a second lately; bytes: all until now. */
double mo_meter_rate(mo_meter *meter, double now, int64_t bytes);

/* Seconds that the rest takes at the rate of what is done; NaN if nothing is. */
double mo_meter_left(double seconds, double done, double all);

/* "85 s", "12 min", "3.4 h", "?" for NaN. */
enum { MO_DURATION_BYTES = 24 };
const char *mo_meter_duration(char text[MO_DURATION_BYTES], double seconds);

/* Whether it is time to show something: the bar is redrawn several times a second, lines are 10 s apart. */
bool mo_meter_due(const mo_meter *meter, double now);
/* On a terminal redraw the bar, filled to `share` (0 to 1), with the text behind it; elsewhere print the text as a line. */
void mo_meter_show(mo_meter *meter, double now, double share, const char *text);
/* Take the bar away. */
void mo_meter_clear(const mo_meter *meter);

/* What is drawn, in fewer than `columns` columns, so that it stays one line; the text goes before the bar itself. */
void mo_meter_bar(char *line, size_t size, int columns, double share, const char *text);

#endif
