/* The hash behind everything random: splitmix64 (Steele, Lea, Flood 2014). Values made by it depend on what goes in, never on
 * the machine or on an order. */
#ifndef MOE_OUTLIERS_RANDOM_H
#define MOE_OUTLIERS_RANDOM_H

#include <stdint.h>

static inline uint64_t mo_mix64(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

#endif
