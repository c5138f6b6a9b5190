/* SHA-256 (FIPS 180-4), so that the client needs no library for it. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pod/files.h"

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void add_block(unsigned state[8], const unsigned char *block) {
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
           block[4 * i + 3];
  for (int i = 16; i < 64; i++) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
  }
  for (int i = 0; i < 8; i++) v[i] = state[i];
  for (int i = 0; i < 64; i++) {
    uint32_t e = v[4], a = v[0];
    uint32_t one = v[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + constants[i] + w[i];
    uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
    memmove(v + 1, v, 7 * sizeof *v);
    v[4] += one;
    v[0] = one + two;
  }
  for (int i = 0; i < 8; i++) state[i] += v[i];
}

void pod_sha256_begin(pod_sha256 *sum) {
  static const unsigned start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  memset(sum, 0, sizeof *sum);
  memcpy(sum->state, start, sizeof start);
}

void pod_sha256_add(pod_sha256 *sum, const void *data, size_t bytes) {
  const unsigned char *from = data;
  size_t held = (size_t)(sum->bytes % 64);
  sum->bytes += bytes;
  while (bytes > 0) {
    size_t n = 64 - held < bytes ? 64 - held : bytes;
    memcpy(sum->block + held, from, n);
    held += n;
    from += n;
    bytes -= n;
    if (held < 64) return;
    add_block(sum->state, sum->block);
    held = 0;
  }
}

void pod_sha256_end(pod_sha256 *sum, char hex[POD_SHA256_BYTES]) {
  unsigned long long bits = sum->bytes * 8;
  static const unsigned char padding[64] = {0x80};
  unsigned char length[8];
  for (int i = 0; i < 8; i++) length[i] = (unsigned char)(bits >> (56 - 8 * i));
  pod_sha256_add(sum, padding, 1 + (119 - (size_t)(sum->bytes % 64)) % 64);
  pod_sha256_add(sum, length, sizeof length);
  for (int i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08x", sum->state[i]);
}

mo_status pod_sha256_file(char hex[POD_SHA256_BYTES], const char *path) {
  enum { BYTES = 1 << 18 };
  char *buffer = mo_alloc(BYTES, 1);
  if (!buffer) return MO_FAILED;
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = descriptor < 0 ? -1 : 0;
  pod_sha256 sum;
  pod_sha256_begin(&sum);
  while (descriptor >= 0 && (n = read(descriptor, buffer, BYTES)) > 0) pod_sha256_add(&sum, buffer, (size_t)n);
  int error = errno;
  if (descriptor >= 0) close(descriptor);
  free(buffer);
  pod_sha256_end(&sum, hex);
  return n == 0 ? MO_OK : MO_FAIL(MO_FAILED, "cannot read (%s): %s: check the path", path, strerror(error));
}
