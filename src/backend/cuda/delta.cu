/* Gated DeltaNet of the CUDA backend: convolution, gates, and norm; formulas and rounding points as in cpu/delta.c. */
#include "backend/cuda/delta.cuh"
#include "backend/cuda/pack.cuh"

namespace {

mo_delta_sizes sizes_of(const mo_model_spec *spec, int64_t B, int64_t S) {
  mo_delta_sizes d;
  d.kh = (int)spec->delta.k_heads;
  d.vh = (int)spec->delta.v_heads;
  d.kd = (int)spec->delta.k_dim;
  d.vd = (int)spec->delta.v_dim;
  d.per_key = d.vh / d.kh;
  d.keys = d.kh * d.kd;
  d.values = d.vh * d.vd;
  d.channels = 2 * d.keys + d.values;
  d.group = 2 * d.kd + 2 * d.per_key * d.vd;
  d.B = B;
  d.S = S;
  return d;
}

/* Where channel c of (q | k | v) stands in a row of qkvz. */
__device__ __forceinline__ int channel_place(const mo_delta_sizes &d, int c) {
  if (c < d.keys) return c / d.kd * d.group + c % d.kd;
  c -= d.keys;
  if (c < d.keys) return c / d.kd * d.group + d.kd + c % d.kd;
  c -= d.keys;
  int width = d.per_key * d.vd;
  return c / width * d.group + 2 * d.kd + c % width;
}

/* Where z of value head h begins in a row of qkvz. */
__device__ __forceinline__ int z_place(const mo_delta_sizes &d, int h) {
  return h / d.per_key * d.group + 2 * d.kd + d.per_key * d.vd + h % d.per_key * d.vd;
}

/* y sigmoid(x); in bf16 runs to about 2^-20, which the rounding to bf16 covers. */
template <typename T>
__device__ __forceinline__ float sigmoid_times(float x, float y) {
  return sizeof(T) == 2 ? __fdividef(y, 1.0f + __expf(-x)) : y / (1.0f + expf(-x));
}

/* --- convolution and gates --- */

constexpr int CONV_TOKENS = 16; /* of a thread */
constexpr int WIDE_TOKENS = 64; /* the same, where packs of channels stay together */
constexpr int WIDE_THREADS = 128;

/* w [channels, kernel]. A thread: one channel of CONV_TOKENS tokens. */
template <typename T>
__global__ void __launch_bounds__(256)
    convolve(const mo_delta_sizes d, int kernel, const float *w, const T *qkvz, T *mixed) {
  const int c = blockIdx.y * 256 + threadIdx.x;
  if (c >= d.channels) return;
  const int64_t width = (int64_t)d.kh * d.group, first = (int64_t)blockIdx.x * CONV_TOKENS;
  const T *x = qkvz + channel_place(d, c);
  w += (int64_t)c * kernel;
  for (int64_t t = first; t < first + CONV_TOKENS && t < d.B * d.S; t++) {
    int64_t s = t % d.S;
    float sum = 0;
    for (int j = s + 1 < kernel ? kernel - 1 - (int)s : 0; j < kernel; j++)
      sum += w[j] * to_float(x[(t + j - kernel + 1) * width]);
    sum = rounded<T>(sum);
    mixed[t * d.channels + c] = from_float<T>(sum / (1.0f + expf(-sum)));
  }
}

/* Four tokens of a pack of channels, from token s of n on. */
template <typename T>
__device__ __forceinline__ void load_batch(uint4 (&batch)[4], const T *x, int64_t width, int s, int n) {
#pragma unroll
  for (int u = 0; u < 4; u++) batch[u] = s + u < n ? *(const uint4 *)(x + (s + u) * width) : make_uint4(0, 0, 0, 0);
}

/* The same for a kernel of four taps; a thread: one pack of channels of WIDE_TOKENS tokens of a sequence. It asks for
 * the next four tokens before it computes these. */
template <typename T>
__global__ void __launch_bounds__(WIDE_THREADS, 4)
    convolve_wide(const mo_delta_sizes d, int runs, const float *w, const T *qkvz, T *mixed) {
  constexpr int N = mo_pack<T>::width;
  const int c = (blockIdx.y * WIDE_THREADS + threadIdx.x) * N, s0 = (int)(blockIdx.x % runs) * WIDE_TOKENS;
  if (c >= d.channels) return;
  const int64_t width = (int64_t)d.kh * d.group, row = blockIdx.x / runs * d.S + s0;
  const int n = (int)min((int64_t)WIDE_TOKENS, d.S - s0);
  const T *x = qkvz + row * width + channel_place(d, c);
  mixed += row * d.channels + c;
  float taps[4][N];
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) taps[j][i] = w[(c + i) * 4 + j];
  float window[4][N] = {}; /* token s at s % 4 */
#pragma unroll
  for (int j = 1; j < 4; j++)
    if (s0 + j >= 4) load(x + (j - 4) * width, window[j]);
  uint4 batch[4], next[4];
  load_batch(next, x, width, 0, n);
  for (int s = 0; s < n; s += 4) {
#pragma unroll
    for (int u = 0; u < 4; u++) batch[u] = next[u];
    load_batch(next, x, width, s + 4, n);
#pragma unroll
    for (int u = 0; u < 4; u++) {
      float out[N];
      unpack(batch[u], window[u], x);
#pragma unroll
      for (int i = 0; i < N; i++) {
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) sum += taps[j][i] * window[(u + j + 1) % 4][i];
        sum = rounded<T>(sum);
        out[i] = sigmoid_times<T>(sum, sum);
      }
      if (s + u < n) store(mixed + (int64_t)(s + u) * d.channels, out);
    }
  }
}

/* beta and decay [T, vh]; a thread each. */
template <typename T>
__global__ void gates(const mo_delta_sizes d, const float *a_log, const float *dt_bias, const T *ba, float *beta,
                      float *decay) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= d.B * d.S * d.vh) return;
  const int h = (int)(i % d.vh);
  const T *group = ba + i / d.vh * 2 * d.vh + h / d.per_key * 2 * d.per_key;
  float b = to_float(group[h % d.per_key]), x = to_float(group[d.per_key + h % d.per_key]) + dt_bias[h];
  float softplus = x > 20 ? x : log1pf(expf(x));
  beta[i] = rounded<T>(1.0f / (1.0f + expf(-b)));
  decay[i] = -expf(a_log[h]) * softplus;
}

template <typename T>
mo_status conv(mo_cuda *cuda, const mo_delta_sizes &d, int kernel, const float *w, const void *qkvz, const void *ba,
               void *mixed, float *beta, float *decay) {
  const float *a_log = w + (int64_t)d.channels * kernel, *dt_bias = a_log + d.vh;
  constexpr int N = mo_pack<T>::width;
  if (kernel == 4 && d.kd % N == 0 && d.vd % N == 0) {
    const int runs = (int)((d.S + WIDE_TOKENS - 1) / WIDE_TOKENS);
    const int packs = d.channels / N;
    dim3 grid((unsigned)(d.B * runs), (unsigned)((packs + WIDE_THREADS - 1) / WIDE_THREADS));
    convolve_wide<T><<<grid, WIDE_THREADS, 0, cuda->stream>>>(d, runs, w, (const T *)qkvz, (T *)mixed);
  } else {
    dim3 grid((unsigned)((d.B * d.S + CONV_TOKENS - 1) / CONV_TOKENS), (unsigned)((d.channels + 255) / 256));
    convolve<T><<<grid, 256, 0, cuda->stream>>>(d, kernel, w, (const T *)qkvz, (T *)mixed);
  }
  MO_LAUNCHED("delta_conv");
  unsigned blocks = (unsigned)((d.B * d.S * d.vh + 255) / 256);
  gates<T><<<blocks, 256, 0, cuda->stream>>>(d, a_log, dt_bias, (const T *)ba, beta, decay);
  MO_LAUNCHED("delta_conv gates");
  return MO_OK;
}

/* --- norm and gate --- */

/* x [T, vh, vd] in place; a warp per token and head. */
template <typename T>
__global__ void __launch_bounds__(256)
    norm_gate(const mo_delta_sizes d, float eps, const float *w, const T *qkvz, T *x) {
  const int lane = threadIdx.x % 32;
  const int64_t i = (int64_t)blockIdx.x * 8 + threadIdx.x / 32;
  if (i >= d.B * d.S * d.vh) return;
  const T *z = qkvz + i / d.vh * d.kh * d.group + z_place(d, (int)(i % d.vh));
  T *o = x + i * d.vd;
  float sum = 0;
  for (int j = lane; j < d.vd; j += 32) sum += to_float(o[j]) * to_float(o[j]);
  float scale = 1.0f / sqrtf(mo_warp_sum(sum) / (float)d.vd + eps);
  for (int j = lane; j < d.vd; j += 32) {
    float normed = rounded<T>(rounded<T>(to_float(o[j]) * scale) * w[j]), gate = to_float(z[j]);
    o[j] = from_float<T>(normed * (gate / (1.0f + expf(-gate))));
  }
}

/* The same where LANES packs are a row; so many lanes share it. */
template <typename T, int LANES>
__global__ void __launch_bounds__(256)
    norm_gate_wide(const mo_delta_sizes d, float eps, const float *w, const T *qkvz, T *x) {
  constexpr int N = mo_pack<T>::width;
  const int64_t i = (int64_t)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
  const bool inside = i < d.B * d.S * d.vh; /* lanes outside still take part in the warp's sums */
  const int place = threadIdx.x % LANES * N;
  const T *gate = qkvz + i / d.vh * d.kh * d.group + z_place(d, (int)(i % d.vh)) + place;
  T *at = x + i * d.vd + place;
  float o[N] = {}, z[N] = {};
  if (inside) {
    load(at, o);
    load(gate, z);
  }
  float weight[N], sum = 0; /* weights are asked for with the row, not after its sum */
#pragma unroll
  for (int j = 0; j < N; j++) weight[j] = w[place + j];
#pragma unroll
  for (int j = 0; j < N; j++) sum += o[j] * o[j];
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  const float scale = 1.0f / sqrtf(sum / (float)d.vd + eps);
#pragma unroll
  for (int j = 0; j < N; j++) o[j] = sigmoid_times<T>(z[j], rounded<T>(rounded<T>(o[j] * scale) * weight[j]) * z[j]);
  if (inside) store(at, o);
}

template <typename T, int LANES>
void launch_norm(mo_cuda *cuda, const mo_delta_sizes &d, float eps, const float *w, const void *qkvz, void *x) {
  const int64_t rows = d.B * d.S * d.vh, of_block = 256 / LANES;
  const unsigned blocks = (unsigned)((rows + of_block - 1) / of_block);
  norm_gate_wide<T, LANES><<<blocks, 256, 0, cuda->stream>>>(d, eps, w, (const T *)qkvz, (T *)x);
}

template <typename T>
mo_status apply_norm(mo_cuda *cuda, const mo_delta_sizes &d, float eps, const float *w, const void *qkvz, void *x) {
  constexpr int N = mo_pack<T>::width;
  const bool whole = d.kd % N == 0; /* then z begins at a pack */
  const unsigned blocks = (unsigned)((d.B * d.S * d.vh + 7) / 8);
  if (whole && d.vd == 16 * N)
    launch_norm<T, 16>(cuda, d, eps, w, qkvz, x);
  else if (whole && d.vd == 32 * N)
    launch_norm<T, 32>(cuda, d, eps, w, qkvz, x);
  else
    norm_gate<T><<<blocks, 256, 0, cuda->stream>>>(d, eps, w, (const T *)qkvz, (T *)x);
  MO_LAUNCHED("delta_norm");
  return MO_OK;
}

}  // namespace

extern "C" mo_status cuda_delta_conv(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights,
                                     const void *qkvz, const void *ba, int64_t B, int64_t S, void *mixed, float *beta,
                                     float *decay) {
  mo_cuda *cuda = mo_cuda_of(backend);
  const mo_delta_sizes d = sizes_of(spec, B, S);
  const int64_t taps = d.channels * spec->delta.kernel;
  void *block;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)(taps + 2 * d.vh) * sizeof(float), &block));
  float *w = (float *)block;
  MO_TRY(mo_cuda_vector(cuda, &weights->one[MO_DELTA_CONV], 0, taps, false, cuda->stream, w));
  MO_TRY(mo_cuda_vector(cuda, &weights->one[MO_DELTA_A_LOG], 0, d.vh, false, cuda->stream, w + taps));
  MO_TRY(mo_cuda_vector(cuda, &weights->one[MO_DELTA_DT_BIAS], 0, d.vh, false, cuda->stream, w + taps + d.vh));
  return MO_BY_TYPE(cuda, conv, cuda, d, (int)spec->delta.kernel, w, qkvz, ba, mixed, beta, decay);
}

extern "C" mo_status cuda_delta_rule(mo_backend *backend, const mo_model_spec *spec, const void *mixed,
                                     const float *beta, const float *decay, int64_t B, int64_t S, void *out) {
  mo_cuda *cuda = mo_cuda_of(backend);
  const mo_delta_sizes d = sizes_of(spec, B, S);
  if (mo_cuda_delta_rule_mma_fits(cuda, &d))
    return mo_cuda_delta_rule_mma(cuda, &d, (const bf16 *)mixed, beta, decay, (bf16 *)out);
  return mo_cuda_delta_rule_float(cuda, &d, mixed, beta, decay, out);
}

extern "C" mo_status cuda_delta_norm(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight,
                                     const void *qkvz, int64_t T, void *x) {
  mo_cuda *cuda = mo_cuda_of(backend);
  const mo_delta_sizes d = sizes_of(spec, 1, T);
  void *w;
  MO_TRY(mo_cuda_scratch(cuda, MO_SCRATCH_VECTOR, (size_t)d.vd * sizeof(float), &w));
  MO_TRY(mo_cuda_vector(cuda, weight, 0, d.vd, false, cuda->stream, (float *)w));
  return MO_BY_TYPE(cuda, apply_norm, cuda, d, spec->norm.eps, (const float *)w, qkvz, x);
}
