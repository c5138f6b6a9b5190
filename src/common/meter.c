#include "common/meter.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const double redraw_seconds = 0.2, line_seconds = 10, rate_seconds = 10;

void mo_meter_start(mo_meter *meter, double now) {
  *meter = (mo_meter){.bar = isatty(STDERR_FILENO), .spoken = now};
  for (int i = 0; i < 2; i++) meter->since[i].time = now;
}

double mo_meter_rate(mo_meter *meter, double now, int64_t bytes) {
  if (now - meter->since[1].time >= rate_seconds) {
    meter->since[0] = meter->since[1];
    meter->since[1].time = now;
    meter->since[1].bytes = bytes;
  }
  double seconds = now - meter->since[0].time;
  return seconds > 0 ? (double)(bytes - meter->since[0].bytes) / seconds : 0;
}

double mo_meter_left(double seconds, double done, double all) {
  return done > 0 ? seconds * (all > done ? all - done : 0) / done : NAN;
}

const char *mo_meter_duration(char text[MO_DURATION_BYTES], double seconds) {
  if (!(seconds < 1e9))
    snprintf(text, MO_DURATION_BYTES, "?");
  else if (seconds < 99.5)
    snprintf(text, MO_DURATION_BYTES, "%.0f s", seconds);
  else if (seconds < 99.5 * 60)
    snprintf(text, MO_DURATION_BYTES, "%.0f min", seconds / 60);
  else
    snprintf(text, MO_DURATION_BYTES, "%.1f h", seconds / 3600);
  return text;
}

bool mo_meter_due(const mo_meter *meter, double now) {
  return now - meter->spoken >= (meter->bar ? redraw_seconds : line_seconds);
}

void mo_meter_bar(char *line, size_t size, int columns, double share, const char *text) {
  enum { LEAST = 8, MIDDLE = 16, MOST = 30 };
  int room = columns - (int)strlen(text) - 11; /* beside the brackets, the share and a column for the cursor */
  int width = room >= MOST     ? MOST
              : room >= MIDDLE ? MIDDLE
              : room >= LEAST  ? LEAST
                               : 0; /* steps: the text's length varies */
  int filled = share > 0 ? (int)(share * width) : 0;
  char bar[MOST + 1] = "";
  for (int i = 0; i < width; i++) bar[i] = i < filled ? '#' : '.';
  int percent = share > 0 ? (int)(100 * share) : 0;
  if (width > 0)
    snprintf(line, size, "[%s] %3d %%  %s", bar, percent, text);
  else
    snprintf(line, size, "%3d %%  %s", percent, text);
  if (columns > 0 && strlen(line) >= (size_t)columns) line[columns - 1] = '\0';
}

static int columns_of_terminal(void) {
  struct winsize window;
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : 80;
}

void mo_meter_show(mo_meter *meter, double now, double share, const char *text) {
  char line[512];
  meter->spoken = now;
  if (meter->bar) {
    mo_meter_bar(line, sizeof line, columns_of_terminal(), share, text);
    fprintf(stderr, "\r%s\033[K", line);
  } else {
    fprintf(stderr, "moe-outliers: %s\n", text);
  }
  fflush(stderr);
}

void mo_meter_clear(const mo_meter *meter) {
  if (!meter->bar) return;
  fprintf(stderr, "\r\033[K");
  fflush(stderr);
}
