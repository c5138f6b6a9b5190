#include "text_table.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static void clean(char *text) {
  for (; *text; text++)
    if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
}

void mo_print_clean(const char *text, FILE *out) {
  for (; *text; text++) fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, out);
}

void mo_text_table_add(mo_text_table *table, const char *format, ...) {
  if (table->failed) return;
  char *text = NULL;
  va_list args;
  va_start(args, format);
  int n = vasprintf(&text, format, args);
  va_end(args);
  if (n < 0) text = NULL;
  char **cells = mo_realloc(table->cells, table->n_cells + 1, sizeof cells[0]);
  if (cells) table->cells = cells;
  if (!text || !cells) {
    table->failed = true;
    free(text);
    return;
  }
  clean(text);
  cells[table->n_cells++] = text;
}

void mo_text_table_add_number(mo_text_table *table, const char *format, double number, const char *none) {
  char text[64];
  snprintf(text, sizeof text, format, number);
  mo_text_table_add(table, "%s", isnan(number) ? none : text);
}

/* Characters of UTF-8 text; continuation bytes start none. */
static int width(const char *text) {
  int n = 0;
  for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
  return n;
}

static int column_width(const mo_text_table *table, int column) {
  int widest = width(table->columns[column].name);
  for (size_t i = (size_t)column; i < table->n_cells; i += (size_t)table->n_columns)
    if (width(table->cells[i]) > widest) widest = width(table->cells[i]);
  return widest;
}

static void print_padded(const char *text, int wide, bool left, FILE *out) {
  int blanks = wide - width(text);
  if (!left) fprintf(out, "%*s", blanks, "");
  fputs(text, out);
  if (left) fprintf(out, "%*s", blanks, "");
}

static void print_csv_cell(const char *text, FILE *out) {
  if (!strpbrk(text, ",\"")) {
    fputs(text, out);
    return;
  }
  fputc('"', out);
  for (; *text; text++) {
    if (*text == '"') fputc('"', out);
    fputc(*text, out);
  }
  fputc('"', out);
}

static void print_markdown_cell(const char *text, FILE *out) {
  for (; *text; text++) {
    if (*text == '|') fputc('\\', out);
    fputc(*text, out);
  }
}

static void print_cell(const mo_text_table *table, mo_table_style style, int column, int wide, const char *text,
                       FILE *out) {
  bool first = column == 0, left = table->columns[column].left;
  switch (style) {
    case MO_TABLE_CSV:
      if (!first) fputc(',', out);
      print_csv_cell(text, out);
      break;
    case MO_TABLE_MARKDOWN:
      fputs(first ? "| " : " | ", out);
      print_markdown_cell(text, out);
      break;
    case MO_TABLE_ALIGNED:
      if (!first) fputs("  ", out);
      /* no blanks at the end of a line */
      if (left && column == table->n_columns - 1)
        fputs(text, out);
      else
        print_padded(text, wide, left, out);
  }
}

static void print_rule(const mo_text_table *table, mo_table_style style, const int *widths, FILE *out) {
  for (int c = 0; c < table->n_columns; c++) {
    if (style == MO_TABLE_MARKDOWN) fputs(table->columns[c].left ? "|---" : "|---:", out);
    if (style != MO_TABLE_ALIGNED) continue;
    if (c > 0) fputs("  ", out);
    for (int i = 0; i < widths[c]; i++) fputc('-', out);
  }
  if (style != MO_TABLE_CSV) fputs(style == MO_TABLE_MARKDOWN ? "|\n" : "\n", out);
}

mo_status mo_text_table_print(const mo_text_table *table, mo_table_style style, FILE *out) {
  if (table->failed) return MO_FAIL(MO_FAILED, "out of memory (report): free some memory");
  int *widths = mo_alloc((size_t)table->n_columns, sizeof widths[0]);
  if (!widths) return MO_FAILED;
  const char *end = style == MO_TABLE_MARKDOWN ? " |\n" : "\n";
  for (int c = 0; c < table->n_columns; c++) {
    widths[c] = column_width(table, c);
    print_cell(table, style, c, widths[c], table->columns[c].name, out);
  }
  fputs(end, out);
  print_rule(table, style, widths, out);
  for (size_t i = 0; i < table->n_cells; i++) {
    int c = (int)(i % (size_t)table->n_columns);
    print_cell(table, style, c, widths[c], table->cells[i], out);
    if (c == table->n_columns - 1) fputs(end, out);
  }
  free(widths);
  return MO_OK;
}

void mo_text_table_free(mo_text_table *table) {
  for (size_t i = 0; i < table->n_cells; i++) free(table->cells[i]);
  free(table->cells);
  table->cells = NULL;
  table->n_cells = 0;
}
