#include <string.h>

#include "pipeline/journal.h"

static const uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9,
                      P4 = 0x85EBCA77C2B2AE63, P5 = 0x27D4EB2F165667C5;

static uint64_t rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static uint64_t load64(const unsigned char *p) {
  uint64_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

static uint64_t load32(const unsigned char *p) {
  uint32_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

static uint64_t round64(uint64_t sum, uint64_t x) { return rotate(sum + x * P2, 31) * P1; }

static uint64_t merge(uint64_t hash, uint64_t sum) { return (hash ^ round64(0, sum)) * P1 + P4; }

/* The whole blocks of 32 bytes. */
static uint64_t hash_blocks(const unsigned char **p, const unsigned char *end, uint64_t seed) {
  uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
  for (; end - *p >= 32; *p += 32) {
    a = round64(a, load64(*p));
    b = round64(b, load64(*p + 8));
    c = round64(c, load64(*p + 16));
    d = round64(d, load64(*p + 24));
  }
  uint64_t hash = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
  return merge(merge(merge(merge(hash, a), b), c), d);
}

uint64_t mo_checksum(const void *data, size_t bytes, uint64_t seed) {
  const unsigned char *p = data, *end = p + bytes;
  uint64_t hash = bytes >= 32 ? hash_blocks(&p, end, seed) : seed + P5;
  hash += bytes;
  for (; end - p >= 8; p += 8) hash = rotate(hash ^ round64(0, load64(p)), 27) * P1 + P4;
  if (end - p >= 4) {
    hash = rotate(hash ^ load32(p) * P1, 23) * P2 + P3;
    p += 4;
  }
  for (; p < end; p++) hash = rotate(hash ^ *p * P5, 11) * P1;
  hash = (hash ^ hash >> 33) * P2;
  hash = (hash ^ hash >> 29) * P3;
  return hash ^ hash >> 32;
}
