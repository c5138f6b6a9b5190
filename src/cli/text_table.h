/* A table of texts, printed with aligned columns, as markdown or as CSV. */
#ifndef MO_TEXT_TABLE_H
#define MO_TEXT_TABLE_H

#include <stdbool.h>
#include <stdio.h>

#include "moe_outliers/status.h"

typedef enum { MO_TABLE_ALIGNED, MO_TABLE_MARKDOWN, MO_TABLE_CSV } mo_table_style;

typedef struct {
  const char *name;
  bool left; /* aligned left; numbers are aligned right */
} mo_text_column;

typedef struct {
  const mo_text_column *columns;
  int n_columns;
  char **cells; /* [n_cells], row after row */
  size_t n_cells;
  bool failed; /* out of memory; told when printed */
} mo_text_table;

#define MO_TEXT_TABLE(columns_) \
  { .columns = (columns_), .n_columns = sizeof(columns_) / sizeof(columns_)[0] }

/* Fill the next cell. Control characters become '?'. */
void mo_text_table_add(mo_text_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Fill the next cell with a number in this printf format, or with `none` if it is NaN. */
void mo_text_table_add_number(mo_text_table *table, const char *format, double number, const char *none);
MO_CHECKED mo_status mo_text_table_print(const mo_text_table *table, mo_table_style style, FILE *out);
void mo_text_table_free(mo_text_table *table);

/* Print text with control characters replaced by '?', so that names from a file cannot steer the terminal. */
void mo_print_clean(const char *text, FILE *out);

#endif
