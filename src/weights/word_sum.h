/* Private: what the backends' checksum operations and mo_tensor_sum share. Also for CUDA. */
#ifndef MO_WEIGHTS_WORD_SUM_H
#define MO_WEIGHTS_WORD_SUM_H

#include <stdint.h>

#ifdef __CUDACC__
#define MO_HOST_DEVICE __host__ __device__
#else
#define MO_HOST_DEVICE
#endif

/* The odd factor of word `index`: the index mixed well (the finaliser of MurmurHash3), so that words in each other's
 * places and pieces moved by a power of two show. */
static inline MO_HOST_DEVICE uint64_t mo_word_factor(uint64_t index) {
  uint64_t x = index + 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
  return (x ^ x >> 33) | 1;
}

#endif
