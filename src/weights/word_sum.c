#include "weights/word_sum.h"

#include <string.h>

#include "moe_outliers/weights.h"

/* Little-endian, as all of this program. */
static uint64_t padded_word(const unsigned char *data, int64_t first, int64_t n) {
  uint64_t word = 0;
  memcpy((unsigned char *)&word + first, data, (size_t)n);
  return word;
}

uint64_t mo_tensor_sum(const void *data, int64_t offset, int64_t bytes) {
  const unsigned char *p = data;
  int64_t at = offset, end = offset + bytes;
  uint64_t sum = 0;
  if (at < end && at % 8 != 0) {
    int64_t first = at % 8, n = 8 - first < bytes ? 8 - first : bytes;
    sum += padded_word(p, first, n) * mo_word_factor((uint64_t)(at / 8));
    at += n;
    p += n;
  }
  for (; end - at >= 8; at += 8, p += 8) sum += padded_word(p, 0, 8) * mo_word_factor((uint64_t)(at / 8));
  if (at < end) sum += padded_word(p, 0, end - at) * mo_word_factor((uint64_t)(at / 8));
  return sum;
}
