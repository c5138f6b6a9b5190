/* A backend: where the activations and the weights live and the operations of the decoder layer run.
 *
 * One struct of function pointers; cpu/ and cuda/ fill it in. Operations are enqueued in order and may be asynchronous;
 * results are on the host only after an operation that says so, or after sync. Activations are rows of backend memory, element
 * type chosen by the backend (activation_bytes each): float32 in fp32 runs; in bf16 runs values are always bf16-representable.
 * "rounds" below: in bf16 runs the result is rounded to bf16, to nearest even.
 *
 * Letters: T rows of the micro-batch (B sequences of S tokens, T = B*S), H hidden, D head_dim, E experts, K top_k,
 * R = T*K routed rows. Matrices row-major. */
#ifndef MOE_OUTLIERS_BACKEND_H
#define MOE_OUTLIERS_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/analysis.h"
#include "moe_outliers/config.h"
#include "moe_outliers/model.h"
#include "moe_outliers/status.h"
#include "moe_outliers/weights.h"

typedef struct mo_backend mo_backend;

typedef struct {
  mo_precision precision;
  int threads; /* compute threads of a CPU backend */
  int device;  /* ordinal of a GPU backend */
} mo_backend_options;

/* What a rank's backend will be asked to do, as far as its memory depends on it. */
typedef struct {
  const mo_model_spec *spec;
  mo_precision precision;
  int threads;     /* compute threads of a CPU backend */
  mo_dtype stored; /* of the checkpoint's matrices (MXFP4 apart); MO_OTHER: several types or unknown */
  int64_t B, S;    /* micro-batches of up to B sequences of S tokens */
} mo_backend_load;

/* Bytes of backend memory that a rank takes beside what it allocs. Bounds, known without a device. */
typedef struct {
  int64_t scratch;  /* of its operations */
  int64_t overhead; /* the process with its libraries; on a GPU its context and the libraries' workspaces */
  int64_t peers;    /* connections to the ranks of neighbouring blocks, where there are several ranks */
} mo_backend_memory;

/* Features whose growth by a layer's experts is followed; of the micro-batch under way. Backend memory. */
typedef struct {
  const int32_t *features; /* [n] */
  int64_t n;
  float *before, *after; /* [T, n] residual stream before and after the layer's experts */
  float *shared;         /* [T, n] the shared expert's part */
} mo_followed;

/* Routing of one micro-batch: which rows each expert gets. Backend memory. */
typedef struct {
  int32_t *expert; /* [T, K] chosen experts, by falling score; ties: the lower index first */
  float *weight;   /* [T, K] */
  int32_t *row;    /* [R] token row of each routed row, grouped by expert, ascending within an expert */
  int32_t *place;  /* [T, K] routed row of (token, slot) */
  int64_t *start;  /* host, [E + 1]: routed rows start[e] .. start[e+1]-1 belong to expert e */
} mo_routing;

typedef struct {
  const char *name;
  bool host_memory; /* weights may be written by the host straight into alloc'ed memory */

  /* Open and close; *backend is owned by the caller. */
  mo_status (*open)(mo_backend **backend, const mo_backend_options *options);
  void (*close)(mo_backend *backend);

  /* What a rank with this load takes; needs no open backend. */
  mo_backend_memory (*memory)(const mo_backend_load *load);
  /* Bytes that are free for this rank at present, 0 if unknown. sharers: ranks on this node that use the same memory. */
  int64_t (*available_memory)(mo_backend *backend, int sharers);
  /* Backend memory, aligned to 256 bytes, contents undefined. */
  mo_status (*alloc)(mo_backend *backend, size_t bytes, void **memory);
  void (*free)(mo_backend *backend, void *memory);
  /* Host memory that uploads read from (pinned where that matters). */
  mo_status (*alloc_host)(mo_backend *backend, size_t bytes, void **memory);
  void (*free_host)(mo_backend *backend, void *memory);

  /* Copy host memory to backend memory; asynchronous: `host` may be reused after upload_wait of the ticket. Thread-safe. */
  mo_status (*upload)(mo_backend *backend, void *destination, const void *host, size_t bytes, int64_t *ticket);
  mo_status (*upload_wait)(mo_backend *backend, int64_t ticket);

  /* Copy rows of activations to host float32 / raw backend memory to the host; both wait for earlier operations. */
  mo_status (*read_activations)(mo_backend *backend, const void *x, int64_t count, float *host);
  /* Host float32 to rows of activations (receiving side of the transport). */
  mo_status (*write_activations)(mo_backend *backend, void *x, int64_t count, const float *host);
  mo_status (*download)(mo_backend *backend, const void *memory, size_t bytes, void *host);
  /* The same of memory that no operation under way writes: waits for none of them. */
  mo_status (*fetch)(mo_backend *backend, const void *memory, size_t bytes, void *host);
  mo_status (*zero)(mo_backend *backend, void *memory, size_t bytes);
  /* *sum = mo_tensor_sum of backend memory at a multiple of 8; waits. Of memory that uploads were waited for. */
  mo_status (*checksum)(mo_backend *backend, const void *memory, size_t bytes, uint64_t *sum);
  /* Wait until all enqueued operations have ended. */
  mo_status (*sync)(mo_backend *backend);

  /* out [T, H] = rows `ids` (host, [T]) of table [V, H]; rounds. */
  mo_status (*embed)(mo_backend *backend, const mo_weight *table, const int32_t *ids, int64_t T, void *out);
  /* out [rows, width] = RMSNorm of x, weight [width] (or `groups` times the same weight side by side: rows are
   * [groups, width]); in place allowed. Rounds as spec says. */
  mo_status (*norm)(mo_backend *backend, const mo_norm_spec *spec, const mo_weight *weight, const void *x, int64_t rows,
                    int64_t width, void *out);
  /* y [M, rows of w] = x [M, cols of w] w^T + bias (NULL: none); rounds once, after the bias. */
  mo_status (*linear)(mo_backend *backend, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M,
                      void *y);
  /* y [M, rows of w] += what linear gives, in fewer passes over memory than linear and add. The sum rounds; a backend may
   * leave out the rounding before it. */
  mo_status (*linear_add)(mo_backend *backend, const mo_weight *w, const mo_weight *bias, const void *x, int64_t M,
                          void *y);
  /* x clamped to +-limit, in place. */
  mo_status (*clamp)(mo_backend *backend, void *x, int64_t count, float limit);
  /* x [T, heads, D] rotated in place; position of row t is t % S; cos, sin and the products round. */
  mo_status (*rope)(mo_backend *backend, const mo_model_spec *spec, void *x, int64_t T, int64_t S, int64_t heads);
  /* x [T, heads*D] normed in place, each head or, where the spec says so, the whole row, then rotated: the same bytes as norm
   * and rope, in fewer passes over memory. */
  mo_status (*norm_rope)(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight, void *x, int64_t T,
                         int64_t S, int64_t heads);
  /* out [T, heads*D] = causal attention of each sequence; q [T, heads*D], k, v [T, kv_heads*D]; window 0 = all keys; sinks
   * [heads] or NULL. Softmax in float32; rounds the output (and, where the backend can, scores and probabilities). top: backend
   * memory, float32 [T, heads], or NULL: the largest probability of a key, before it is rounded; a sink has a share in the sum
   * and is no key. */
  mo_status (*attention)(mo_backend *backend, const mo_model_spec *spec, int64_t window, const mo_weight *sinks,
                         const void *q, const void *k, const void *v, int64_t B, int64_t S, void *out, float *top);
  /* left [rows, a] and right [rows, b] = the columns of x [rows, a + b]. */
  mo_status (*split)(mo_backend *backend, const void *x, int64_t rows, int64_t a, int64_t b, void *left, void *right);
  /* x [rows, width] *= sigmoid(gate) [rows, width], or [rows, 1] where gate_width is 1; sigmoid and product round. */
  mo_status (*sigmoid_gate)(mo_backend *backend, void *x, const void *gate, int64_t rows, int64_t width,
                            int64_t gate_width);
  /* Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464; transformers models/qwen3_next), vh value heads, kh key heads,
   * C = 2*kh*k_dim + vh*v_dim channels.
   * delta_conv: qkvz [T, 2*kh*k_dim + 2*vh*v_dim] in groups per key head (q, k, values, z), ba [T, 2*vh] likewise (b, a) ->
   * mixed [T, C] = silu of the causal depthwise convolution over each sequence, in the order q, k, v; rounds after both;
   * beta [T, vh] = sigmoid(b), rounds; decay [T, vh] = -exp(A_log) * softplus(a + dt_bias); beta and decay are float32. */
  mo_status (*delta_conv)(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights,
                          const void *qkvz, const void *ba, int64_t B, int64_t S, void *mixed, float *beta,
                          float *decay);
  /* out [T, vh*v_dim]: the gated delta rule over each sequence, queries and keys l2-normalised, state in float32; rounds. */
  mo_status (*delta_rule)(mo_backend *backend, const mo_model_spec *spec, const void *mixed, const float *beta,
                          const float *decay, int64_t B, int64_t S, void *out);
  /* x [T, vh, v_dim] = RMSNorm(x) * w * silu(z), z from qkvz; rounds after the norm, after w and at the end. */
  mo_status (*delta_norm)(mo_backend *backend, const mo_model_spec *spec, const mo_weight *weight, const void *qkvz,
                          int64_t T, void *x);
  /* x [count] += y [count]; rounds. */
  mo_status (*add)(mo_backend *backend, void *x, const void *y, int64_t count);
  /* Columns features[0..n-1] (backend memory) of x [T, H] = 0. */
  mo_status (*zero_features)(mo_backend *backend, void *x, int64_t T, int64_t H, const int32_t *features, int64_t n);
  /* out [T, n], float32 = columns features[0..n-1] of x [T, H]. All in backend memory. */
  mo_status (*take_features)(mo_backend *backend, const void *x, int64_t T, int64_t H, const int32_t *features,
                             int64_t n, float *out);
  /* sums [rows] = sums over the rows of x [rows, width], in double and in an order that depends on the width alone. */
  mo_status (*row_sums)(mo_backend *backend, const float *x, int64_t rows, int64_t width, double *sums);
  /* out [count] = silu(gate) * up; rounds after silu and after the product. */
  mo_status (*glu)(mo_backend *backend, const void *gate, const void *up, int64_t count, void *out);
  /* Choose experts for each row of x [T, H] and group the rows by expert; start[] is on the host on return. */
  mo_status (*route)(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                     int64_t T, mo_routing *routing);
  /* out [R, H]: for each expert e in [first, last) and its rows: down(activation(gate x, up x)), not yet weighted, with the
   * model's biases and activation (silu, or the clamped form of gpt_oss). x [T, H]. */
  mo_status (*experts)(mo_backend *backend, const mo_model_spec *spec, const mo_stage_weights *weights, const void *x,
                       const mo_routing *routing, int64_t first, int64_t last, void *out);
  /* y [T, H] = sum over a token's experts, in ascending order of expert index, of weight * expert output; products and
   * partial sums round. peaks: NULL, or backend memory [R] for the largest |value| of each routed row of expert_out, NaN
   * apart; 0 if there is none. */
  mo_status (*combine)(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                       const mo_routing *routing, int64_t T, float *peaks, void *y);
  /* x [T, H] += what combine gives; rounds. The same bytes as combine and add, in fewer passes over memory. */
  mo_status (*combine_add)(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                           const mo_routing *routing, int64_t T, float *peaks, void *x);
  /* peaks [rows] (backend memory) = the largest |value| of each row of x [rows, width], as combine's. */
  mo_status (*row_peaks)(mo_backend *backend, const void *x, int64_t rows, int64_t width, float *peaks);

  /* What experts add to the squares of features of the residual stream: growth (backend memory, double [E, n], or [E + 1, n]
   * with the shared expert last) += over an expert's tokens, its part of the sum * (before + after). Summed in double per
   * sequence, in an order that depends on the sequence alone, then by ascending sequence. */
  mo_status (*expert_growth)(mo_backend *backend, const mo_model_spec *spec, const void *expert_out,
                             const mo_routing *routing, int64_t B, int64_t S, const mo_followed *followed,
                             double *growth);

  /* Reduce site activations x [B*S, H], which stay as they are until site_results, the next of these two calls. positions:
   * backend memory, uint64 [N, H, ceil(S/64)], bits or-ed for sequences first_sequence.. row_counts: NULL, or backend memory
   * [B*S] for the outlier values of each row. */
  mo_status (*site_statistics)(mo_backend *backend, const void *x, int64_t B, int64_t S, int64_t H, float threshold,
                               uint64_t *positions, int64_t first_sequence, int32_t *row_counts);
  /* What the last site_statistics reduced: host memory owned by the backend until its next call. Waits for that alone, not
   * for operations enqueued since. */
  mo_status (*site_results)(mo_backend *backend, mo_site_statistics *statistics);

  /* Statistics of a layer's experts: row_counts [T] as site_statistics filled it at ln_mlp, peaks [R] as combine did, shared
   * [T] likewise of the shared expert's output (NULL: the layer has none). All may change once operations enqueued later
   * run. */
  mo_status (*expert_statistics)(mo_backend *backend, const mo_model_spec *spec, int64_t T, const int32_t *row_counts,
                                 const mo_routing *routing, const float *peaks, const float *shared);
  /* What the last expert_statistics found: host memory owned by the backend until its next call. Waits for that alone. */
  mo_status (*expert_results)(mo_backend *backend, mo_expert_statistics *statistics);

  /* nll (host, [B, S-1]) of the next token from hidden rows x [B*S, H] (already normed): logits x lm_head^T rounded, then
   * log-sum-exp; ids (host, [B, S]). The logits of the whole batch never exist at once. top: host, [B, S-1], or NULL: the
   * probability of the likeliest token. Waits. */
  mo_status (*nll)(mo_backend *backend, const mo_weight *lm_head, const void *x, const int32_t *ids, int64_t B,
                   int64_t S, float *nll, float *top);
} mo_backend_table;

/* Every backend's struct begins with its table. */
struct mo_backend {
  const mo_backend_table *table;
  mo_precision precision;
  int activation_bytes;
};

extern const mo_backend_table mo_backend_cpu;
/* The cpu backend with its contract policed: private weights memory behind delayed uploads, outputs poisoned with NaN before
 * each operation, inputs compared after it. For tests (engine.device = "check"). */
extern const mo_backend_table mo_backend_check;

/* The tables' memory entries, also of a backend that is not built in: plans are made anywhere. */
mo_backend_memory mo_backend_memory_cpu(const mo_backend_load *load);
mo_backend_memory mo_backend_memory_cuda(const mo_backend_load *load);

#ifdef MO_HAVE_CUDA
extern const mo_backend_table mo_backend_cuda;
/* CUDA devices that this process sees; 0 also where there is no driver. */
int mo_backend_cuda_count(void);
/* To be called in a process that has peers, before any other call of CUDA and before other threads may read the environment:
 * then each stream has a queue of the GPU. Where two share one, operations wait behind a transfer that waits for a peer. */
void mo_backend_cuda_meet_peers(void);
/* The UUID of a visible device, of the instance where it is a MIG instance. */
MO_CHECKED mo_status mo_backend_cuda_id(int device, uint8_t id[16]);
#endif

/* The table for a choice of the config; a backend that is not built in is MO_INVALID. */
MO_CHECKED mo_status mo_backend_choose(mo_device_choice device, const mo_backend_table **table);

#endif
