/* Private to the bundled libconfig: from text to tokens. */
#ifndef MO_POD_LIBCONFIG_SCANNER_H
#define MO_POD_LIBCONFIG_SCANNER_H

#include <stdbool.h>
#include <stddef.h>

enum { SCANNER_MOST_INCLUDES = 10 }; /* inside one another */

typedef enum {
  TOKEN_END,
  TOKEN_NAME,
  TOKEN_EQUALS,
  TOKEN_COMMA,
  TOKEN_SEMICOLON,
  TOKEN_OPEN_GROUP,
  TOKEN_CLOSE_GROUP,
  TOKEN_OPEN_ARRAY,
  TOKEN_CLOSE_ARRAY,
  TOKEN_OPEN_LIST,
  TOKEN_CLOSE_LIST,
  TOKEN_BOOL,
  TOKEN_INT,
  TOKEN_INT64,
  TOKEN_FLOAT,
  TOKEN_STRING,
  TOKEN_GARBAGE, /* nothing of the language */
  TOKEN_ERROR    /* scanner.error says why */
} token_type;

/* A text: the config, or a file included in it. */
typedef struct {
  char *owned; /* NULL: not ours */
  const char *begin, *at;
  const char *file; /* NULL: the config */
  int line;
} scanner_source;

typedef struct {
  scanner_source sources[SCANNER_MOST_INCLUDES + 1]; /* the last is read */
  int depth;                                         /* its place */
  const char *include_dir;
  /* Takes a file's name over; NULL: out of memory. */
  const char *(*keep_name)(void *context, char *name);
  void *context;
  const char *error;
  /* The token: */
  char *text; /* of a name or string */
  size_t n_text, room;
  long long integer; /* also of a boolean */
  double real;
  bool hex;
} scanner;

token_type scanner_next(scanner *s);
/* Frees all but the names of files. */
void scanner_close(scanner *s);

#endif
