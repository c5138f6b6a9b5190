#include "weights/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "moe_outliers/random.h"

/* Elements that are made at once: each block has a key of its own, within it 32-bit arithmetic is enough. */
#define BLOCK 4096

typedef union {
  float f32[BLOCK];
  uint16_t u16[BLOCK];
  uint32_t u32[BLOCK];
  unsigned char u8[4 * BLOCK];
} block;

/* How the values of a tensor are spread: uniform with mean and standard deviation, `spikes` on top. */
typedef struct {
  float mean, deviation;
  bool spikes;
} spread;

static spread spread_of(const mo_tensor_need *need, bool zero_centred) {
  switch (need->role) {
    case MO_INPUT_NORM:
    case MO_POST_NORM:
      return (spread){zero_centred ? 0 : 1, 0.05f, true};
    case MO_FINAL_NORM:
    case MO_Q_NORM:
    case MO_K_NORM:
      return (spread){zero_centred ? 0 : 1, 0.05f, false};
    case MO_DELTA_NORM:
      return (spread){1, 0.05f, false};
    case MO_EMBED:
    case MO_SINKS:
    case MO_DELTA_A_LOG:
    case MO_DELTA_DT_BIAS:
      return (spread){0, 1, false};
    case MO_ROUTER_CORRECTION:
      return (spread){0, 0.01f, false};
    default:
      return (spread){0, need->n_dims < 2 ? 0.02f : 1 / sqrtf((float)need->shape[need->n_dims - 1]), false};
  }
}

static uint64_t hash_name(uint64_t seed, const char *name) {
  uint64_t h = mo_mix64(seed);
  for (; *name; name++) h = mo_mix64(h ^ (unsigned char)*name);
  return h;
}

static mo_random_tensor describe(const mo_model_spec *spec, const mo_tensor_need *need, mo_dtype dtype, uint64_t seed) {
  spread sp = spread_of(need, spec->norm.zero_centred);
  mo_random_tensor t = {
      .need = *need,
      .dtype = need->mxfp4 ? MO_U8 : dtype,
      .key = hash_name(seed, need->name),
      .mean = sp.mean,
      .width = sp.deviation * 3.4641016f, /* a uniform value of this width has that deviation */
      .spike_shift = spec->norm.zero_centred ? 1 : 0,
      .spikes = sp.spikes,
  };
  t.bytes = (int64_t)mo_dtype_size(t.dtype);
  for (int d = 0; d < need->n_dims; d++) t.bytes *= need->shape[d];
  return t;
}

mo_status mo_random_tensors(const mo_model_spec *spec, mo_dtype dtype, uint64_t seed, mo_random_tensor **tensors,
                            int64_t *n_tensors) {
  mo_random_tensor *all = NULL;
  int64_t n_all = 0;
  mo_status status = MO_OK;
  for (int64_t stage = 0; status == MO_OK && stage < mo_model_stages(spec); stage++) {
    mo_tensor_need *needs = NULL;
    int64_t n = 0;
    status = mo_model_tensors(spec, stage, &needs, &n);
    mo_random_tensor *grown = status == MO_OK ? mo_realloc(all, (size_t)(n_all + n), sizeof *grown) : NULL;
    if (grown)
      all = grown;
    else
      status = MO_FAILED;
    for (int64_t i = 0; grown && i < n; i++)
      if (!spec->tied || needs[i].role != MO_LM_HEAD) all[n_all++] = describe(spec, &needs[i], dtype, seed);
    free(needs);
  }
  if (status != MO_OK) {
    free(all);
    return status;
  }
  *tensors = all;
  *n_tensors = n_all;
  return MO_OK;
}

/* lowbias32 (Wellons 2018) of a counter, the key going in at two places. Its operations are those that vector units have. */
static inline uint32_t hash32(uint32_t counter, uint64_t key) {
  uint32_t x = counter + (uint32_t)key;
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15 ^ (uint32_t)(key >> 32)) * 0x846ca68bu;
  return x ^ x >> 16;
}

static inline float uniform(uint32_t bits, float mean, float scale) { return mean + (float)(int32_t)bits * scale; }

static inline uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline uint16_t to_f16(float x) { /* normal range only: smaller magnitudes become 0 */
  uint32_t u;
  memcpy(&u, &x, 4);
  uint32_t sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t rounded = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  return (uint16_t)(sign | (magnitude < 0x38800000u ? 0 : rounded));
}

static void fill_f32(uint64_t key, float mean, float scale, float *restrict out) {
  for (uint32_t i = 0; i < BLOCK; i++) out[i] = uniform(hash32(i, key), mean, scale);
}

static void fill_bf16(uint64_t key, float mean, float scale, uint16_t *restrict out) {
  for (uint32_t i = 0; i < BLOCK; i++) out[i] = to_bf16(uniform(hash32(i, key), mean, scale));
}

static void fill_f16(uint64_t key, float mean, float scale, uint16_t *restrict out) {
  for (uint32_t i = 0; i < BLOCK; i++) out[i] = to_f16(uniform(hash32(i, key), mean, scale));
}

/* MXFP4, four bytes of a hash: blocks hold any code, scales are 2^-8 .. 2^-5. */
static void fill_mxfp4(uint64_t key, bool scales, uint32_t *restrict out) {
  uint32_t mask = scales ? 0x03030303u : 0xffffffffu, base = scales ? 0x77777777u : 0;
  for (uint32_t i = 0; i < BLOCK / 4; i++) out[i] = (hash32(i, key) & mask) + base;
}

static void add_spikes(const mo_random_tensor *t, uint64_t key, block *out) {
  uint64_t spikes = mo_mix64(key);
  for (uint32_t i = 0; i < BLOCK; i++) {
    if (hash32(i, spikes) % 97 != 0) continue;
    float x = (uniform(hash32(i, key), t->mean, t->width * 0x1p-32f) + t->spike_shift) * 12;
    if (t->dtype == MO_F32)
      out->f32[i] = x;
    else
      out->u16[i] = t->dtype == MO_BF16 ? to_bf16(x) : to_f16(x);
  }
}

static void fill_block(const mo_random_tensor *t, int64_t index, block *out) {
  uint64_t key = mo_mix64(t->key + (uint64_t)index);
  float scale = t->width * 0x1p-32f; /* of a whole 32-bit number */
  switch (t->dtype) {
    case MO_F32:
      fill_f32(key, t->mean, scale, out->f32);
      break;
    case MO_BF16:
      fill_bf16(key, t->mean, scale, out->u16);
      break;
    case MO_F16:
      fill_f16(key, t->mean, scale, out->u16);
      break;
    case MO_U8:
    case MO_OTHER:
      fill_mxfp4(key, t->need.n_dims != 4, out->u32);
      break;
  }
  if (t->spikes) add_spikes(t, key, out);
}

void mo_random_fill(const mo_random_tensor *tensor, int64_t offset, int64_t bytes, void *out) {
  int64_t block_bytes = BLOCK * (int64_t)mo_dtype_size(tensor->dtype);
  char *to = out;
  block made; /* whole blocks only, and aligned: pieces begin and end anywhere */
  while (bytes > 0) {
    int64_t skip = offset % block_bytes, n = block_bytes - skip < bytes ? block_bytes - skip : bytes;
    fill_block(tensor, offset / block_bytes, &made);
    memcpy(to, made.u8 + skip, (size_t)n);
    to += n;
    offset += n;
    bytes -= n;
  }
}
