/* Private to the program: pieces of JSON text, written to a stream. The caller looks at ferror(out). */
#ifndef MO_COMMON_JSON_H
#define MO_COMMON_JSON_H

#include <stdio.h>

/* A string in quotes, in ASCII: other characters are escaped as \uXXXX, bytes that are not UTF-8 become U+FFFD. */
void mo_json_put_text(FILE *out, const char *text);

/* A number that reads back as exactly this one, always with a point or an exponent. JSON has no word for an infinity,
 * but a number too large for a double reads back as one: 1e999. NaN is null. */
void mo_json_put_real(FILE *out, double value);

#endif
