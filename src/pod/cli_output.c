/* What the commands print. */
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pod/commands.h"
#include "pod/ledger_json.h"
#include "pod/life.h"

static char *format_text(const char *format, va_list args) {
  char *text = NULL;
  if (vasprintf(&text, format, args) < 0) return NULL;
  for (char *c = text; *c; c++)
    if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
  return text;
}

void pod_say(const pod_settings *settings, const char *format, ...) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  va_list args;
  va_start(args, format);
  char *text = format_text(format, args);
  va_end(args);
  if (!text) return;
  pod_redact(settings, text);
  pod_clean(text);
  pthread_mutex_lock(&lock);
  fprintf(stderr, "moe-pod: %s\n", text);
  fflush(stderr);
  pthread_mutex_unlock(&lock);
  free(text);
}

/* --- what is running --- */

enum { MOST_SAID = 256 };
static struct {
  pthread_mutex_t mutex;
  char ids[MOST_SAID][128]; /* or names, of what has no id yet */
  int n;
} said = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* Whether it was there; it is from now on. */
static bool add_said(const char *id) {
  bool found = false;
  pthread_mutex_lock(&said.mutex);
  for (int i = 0; i < said.n && !found; i++) found = strcmp(said.ids[i], id) == 0;
  if (!found && said.n < MOST_SAID) snprintf(said.ids[said.n++], sizeof said.ids[0], "%s", id);
  pthread_mutex_unlock(&said.mutex);
  return found;
}

void pod_note_ended(const char *id) { (void)add_said(id); }

/* One whose time is over has most likely been ended by its watchdog. */
void pod_say_run(const pod_settings *settings, const pod_run *run) {
  double over = run->deadline + pod_seconds_of(POD_MARGIN);
  if (!run->id[0] && run->created > 0 && !add_said(run->name))
    pod_say(settings,
            "a pod named %s may have been created for %s: `moe-pod list` shows it, the same command goes on with it",
            run->name, run->key);
  if (!run->id[0] || pod_ended_by_hand(settings, run->id)) return;
  if (pod_now() < over)
    pod_say_running(settings, run->id, run->name, run->price);
  else if (!add_said(run->id))
    pod_say(settings, "its time is over, but nobody has seen it end: %s (%s), $%.2f per hour; moe-pod terminate %s",
            run->id, run->name, run->price, run->id);
}

void pod_say_what_runs(const pod_settings *settings) {
  pod_ledger *ledger = NULL;
  pod_run *runs = NULL;
  int n = 0;
  bool busy = false;
  /* What cannot be read was the command's to complain of. */
  if (pod_ledger_busy(settings, &busy) == MO_OK && !busy && pod_ledger_open(&ledger, settings, false) == MO_OK &&
      pod_ledger_all(ledger, &runs, &n) == MO_OK)
    for (int i = 0; i < n; i++) pod_say_run(settings, &runs[i]);
  free(runs);
  pod_ledger_close(ledger);
}

void pod_say_running(const pod_settings *settings, const char *id, const char *name, double price) {
  char cost[48] = "price unknown";
  if (add_said(id)) return;
  if (price > 0) snprintf(cost, sizeof cost, "$%.2f per hour", price);
  pod_say(settings, "still running: %s (%s), %s; it is ended by: moe-pod terminate %s", id, name, cost, id);
}

mo_status pod_print_json(json_t *json) {
  if (!json) return MO_FAIL(MO_FAILED, "out of memory (JSON): free some memory");
  errno = 0;
  int failed = json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
  json_decref(json);
  if (!failed && putchar('\n') != EOF) return MO_OK;
  return MO_FAIL(MO_FAILED, "result cannot be written: %s (standard output): give it a place with room",
                 errno ? strerror(errno) : "write failed");
}

/* --- tables --- */

static void add_cell(pod_table *table, char *text) {
  if (table->status != MO_OK || !text) {
    if (table->status == MO_OK) table->status = MO_FAIL(MO_FAILED, "out of memory (table): free some memory");
    free(text);
    return;
  }
  char **cells = mo_realloc(table->cells, (size_t)table->n + 1, sizeof *cells);
  if (!cells) {
    table->status = MO_FAILED;
    free(text);
    return;
  }
  table->cells = cells;
  table->cells[table->n++] = text;
}

void pod_table_begin(pod_table *table, int columns, const char *const *heads) {
  *table = (pod_table){.columns = columns};
  for (int i = 0; i < columns; i++) add_cell(table, strdup(heads[i]));
}

void pod_table_cell(pod_table *table, const char *format, ...) {
  va_list args;
  va_start(args, format);
  add_cell(table, format_text(format, args));
  va_end(args);
}

static bool is_number(const char *text) {
  if (strcmp(text, "-") == 0) return true;
  if (*text == '$') text++;
  return isdigit((unsigned char)*text) && text[strspn(text, "0123456789.")] == '\0';
}

/* Places on a terminal: bytes of UTF-8 that begin a character. */
static int width_of(const char *text) {
  int width = 0;
  for (; *text; text++) width += ((unsigned char)*text & 0xc0) != 0x80;
  return width;
}

static void print_row(const pod_table *table, int first, const int *widths, const bool *right) {
  for (int c = 0; c < table->columns && first + c < table->n; c++) {
    const char *text = table->cells[first + c];
    int fill = widths[c] - width_of(text);
    if (c) fputs("  ", stdout);
    if (right[c]) printf("%*s", fill, "");
    fputs(text, stdout);
    if (!right[c] && c + 1 < table->columns) printf("%*s", fill, "");
  }
  putchar('\n');
}

mo_status pod_table_print(pod_table *table) {
  enum { MOST_COLUMNS = 32 };
  int widths[MOST_COLUMNS] = {0};
  bool right[MOST_COLUMNS];
  mo_status status = table->status;
  for (int c = 0; c < MOST_COLUMNS; c++) right[c] = table->n > table->columns;
  for (int i = 0; i < table->n; i++) {
    int c = i % table->columns, width = width_of(table->cells[i]);
    if (width > widths[c]) widths[c] = width;
    if (i >= table->columns && !is_number(table->cells[i])) right[c] = false;
  }
  for (int i = 0; status == MO_OK && i < table->n; i += table->columns) print_row(table, i, widths, right);
  for (int i = 0; i < table->n; i++) free(table->cells[i]);
  free(table->cells);
  *table = (pod_table){0};
  return status;
}
