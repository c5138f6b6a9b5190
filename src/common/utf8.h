#ifndef MO_COMMON_UTF8_H
#define MO_COMMON_UTF8_H

#include <stddef.h>

/* Bytes of the well-formed character (RFC 3629) at s, which ends with a zero byte somewhere; 0: there is none. */
size_t mo_utf8_length(const unsigned char *s);

#endif
