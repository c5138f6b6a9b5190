/* Weights: the checkpoint's index (safetensors), the catalogue of tensors that stages need, and the streamer that
 * brings them to the backend ahead of use, in bounded memory. */
#ifndef MOE_OUTLIERS_WEIGHTS_H
#define MOE_OUTLIERS_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe_outliers/model.h"
#include "moe_outliers/status.h"

struct mo_backend;
struct mo_network;

typedef enum { MO_F32, MO_BF16, MO_F16, MO_U8, MO_OTHER } mo_dtype; /* MO_OTHER: legal in a file, unusable as weights */

size_t mo_dtype_size(mo_dtype dtype);      /* bytes of an element; 0 for MO_OTHER */
const char *mo_dtype_name(mo_dtype dtype); /* as in safetensors: "F32", ...; MO_OTHER: "OTHER" */

/* Look up a safetensors dtype. *bits: of one element (4 and 6 occur); *known: the format's own name, static.
 * false if the format has no such dtype. */
bool mo_dtype_parse(const char *name, mo_dtype *dtype, int *bits, const char **known);

#define MO_MAX_DIMS 8

/* A tensor in a file. */
typedef struct {
  char *name;
  mo_dtype dtype;
  const char *dtype_name; /* as in the file, also for MO_OTHER; static */
  int32_t n_dims;
  int64_t shape[MO_MAX_DIMS];
  int32_t file;   /* index into the checkpoint's files; without files each tensor counts as one */
  int64_t offset; /* of the data in the file, from its start, bytes */
  int64_t bytes;
} mo_tensor;

/* --- one safetensors file ---
 * Layout (huggingface/safetensors, README "Format"): u64 little-endian n; n bytes of JSON
 * {name: {"dtype", "shape", "data_offsets": [begin, end)}, "__metadata__"?}; data. Accepted only if every byte of the
 * data belongs to exactly one tensor. */

/* Parse a header already in memory: `bytes` of JSON; data_bytes: size of the file's data part. name: for error lines.
 * *tensors: malloc'ed array (names malloc'ed too) sorted by offset, offsets relative to the data part, file = 0.
 * MO_INVALID (*tensors is NULL) if anything is off: not JSON, duplicate names, unknown dtype, negative or overflowing
 * shape, size that does not match, overlap, hole, beyond the end. */
MO_CHECKED mo_status mo_safetensors_parse(const char *json, size_t bytes, int64_t data_bytes, const char *name,
                                          mo_tensor **tensors, int64_t *n_tensors);
void mo_tensors_free(mo_tensor *tensors, int64_t n_tensors);

/* --- a checkpoint folder --- */
typedef struct mo_checkpoint mo_checkpoint;

/* Open `directory`: model.safetensors.index.json with its shards, or model.safetensors. Headers only; data is never
 * read through a mapping. Absent files, an index that disagrees with the shards (missing, duplicate or misplaced
 * tensors) are MO_INVALID. */
MO_CHECKED mo_status mo_checkpoint_open(mo_checkpoint **checkpoint, const char *directory);

/* A checkpoint of random weights without files: it has the tensors that the spec needs, and each read makes their
 * bytes, those that mo_synth (synth.h) writes for the same seed and dtype. dtype of numbers: MO_F32, MO_BF16 or
 * MO_F16; MXFP4 is MO_U8. The spec need not outlive it. Out of memory: MO_FAILED. */
MO_CHECKED mo_status mo_checkpoint_open_synthetic(mo_checkpoint **checkpoint, const mo_model_spec *spec, mo_dtype dtype,
                                                  uint64_t seed);
/* The same of a folder on the network (network.h), which has connected or was unpacked and must outlive the checkpoint. What
 * describes the weights is fetched here unless it came with unpack; reads fetch ranges. */
MO_CHECKED mo_status mo_checkpoint_open_network(mo_checkpoint **checkpoint, struct mo_network *network);
void mo_checkpoint_close(mo_checkpoint *checkpoint);

/* NULL if the checkpoint has no such tensor. Owned by the checkpoint. */
const mo_tensor *mo_checkpoint_find(const mo_checkpoint *checkpoint, const char *name);
int64_t mo_checkpoint_tensor_count(const mo_checkpoint *checkpoint);
/* Sorted by name, side by side in memory: tensor i is mo_checkpoint_tensor(checkpoint, 0) + i. */
const mo_tensor *mo_checkpoint_tensor(const mo_checkpoint *checkpoint, int64_t index);
/* For messages: the path of a file and of the folder, "synthetic:SEED" where there are none. */
const char *mo_checkpoint_file(const mo_checkpoint *checkpoint, int32_t file);
const char *mo_checkpoint_directory(const mo_checkpoint *checkpoint);
int64_t mo_checkpoint_ignored(const mo_checkpoint *checkpoint); /* tensors in shards that the index does not name */

/* Read bytes [offset, offset + bytes) of a file of the checkpoint. Thread-safe (pread). A short file or a read error
 * is MO_FAILED naming the file and the range. Of a synthetic checkpoint only ranges within a tensor may be read. */
MO_CHECKED mo_status mo_checkpoint_read(const mo_checkpoint *checkpoint, int32_t file, int64_t offset, int64_t bytes,
                                        void *buffer);

/* Of a checkpoint on the network: true ends reads under way at once, with MO_STOPPED, and later ones too, until false. Those of
 * files cannot be ended. */
void mo_checkpoint_interrupt(const mo_checkpoint *checkpoint, bool interrupted);

/* --- the catalogue: what each stage needs, found in the checkpoint and checked --- */
typedef struct {
  mo_role role;
  int32_t expert; /* -1 unless per expert */
  const mo_tensor *tensor;
  /* Place in the stage's arena block, a multiple of MO_ARENA_ALIGNMENT. Tensors whose sizes are such multiples too lie in
   * the arena as in the file, and are read together. */
  int64_t arena_offset;
} mo_entry;

typedef struct {
  mo_entry *entries; /* sorted by (file, offset): the order of reading */
  int64_t n_entries;
  int64_t bytes;       /* to read */
  int64_t arena_bytes; /* with alignment; at least 256 */
} mo_stage_catalogue;

typedef struct {
  mo_stage_catalogue *stages; /* [n_stages] */
  int64_t n_stages;
  int64_t unused_tensors;   /* in the checkpoint, needed by no stage */
  const mo_tensor **unused; /* [unused_tensors], sorted by name */
} mo_catalogue;

/* Find every needed tensor of every stage; a missing one, a shape that disagrees with config.json, or an unusable
 * dtype is MO_INVALID naming tensor, file, expected and found. The checkpoint must outlive the catalogue. */
MO_CHECKED mo_status mo_catalogue_build(mo_catalogue *catalogue, const mo_model_spec *spec,
                                        const mo_checkpoint *checkpoint);
void mo_catalogue_free(mo_catalogue *catalogue);

/* --- weights as a backend's operations see them --- */
typedef struct {
  const void *data; /* in the arena (backend memory), as stored in the file; NULL = the model has none */
  mo_dtype dtype;
  int64_t rows, cols; /* of the matrix in y = x w^T; a vector: rows = 1. MXFP4: of the decoded matrix */
  bool transposed;    /* stored [cols, rows] */
  const void *scales; /* MXFP4: U8 scale per 32 columns, [rows, cols/32]; else NULL */
} mo_weight;

typedef struct {
  mo_weight one[MO_ROLE_COUNT];                      /* tensors that a stage has once; by role */
  mo_weight *expert_gate, *expert_up;                /* [E] each; NULL where the model has fused gate_up */
  mo_weight *expert_down;                            /* [E]; also where it is stored fused */
  mo_weight *expert_gate_up;                         /* [E] fused, rows interleaved; else NULL */
  mo_weight *expert_gate_up_bias, *expert_down_bias; /* [E] or NULL */
} mo_stage_weights;

/* Views of a stage's tensors in its arena block at `base` (backend memory, not read here). A matrix keeps its
 * stored shape; more dimensions: rows = the first, cols = the product of the others. Tensors of all experts are
 * sliced along their first dimension. Zeroed and MO_FAILED or MO_INVALID on error. Free with mo_stage_weights_free;
 * the block must outlive the views. */
MO_CHECKED mo_status mo_stage_weights_build(mo_stage_weights *weights, const mo_model_spec *spec,
                                            const mo_stage_catalogue *stage, const void *base);
void mo_stage_weights_free(mo_stage_weights *weights);

/* --- checksums --- */

/* Sum over a tensor's little-endian 64-bit words, the last padded with zeros, of word * (an odd number that follows
 * from the word's index), modulo 2^64. Sums of parts add up to the whole's in any order. This one: of bytes [offset,
 * offset + bytes) of a tensor, which lie at `data`. */
uint64_t mo_tensor_sum(const void *data, int64_t offset, int64_t bytes);

/* --- the streamer --- */
enum { MO_STREAM_READERS = 16 }; /* more threads than this were not faster anywhere */

typedef struct {
  const int64_t *stages; /* this rank's stages in the order in which they will be acquired; owned by the caller */
  int64_t n_stages;
  int64_t arena_bytes; /* bound of device memory for weights; at least the largest stage's arena_bytes */
  int64_t chunk_bytes; /* of one read; 0 = 4 MiB, less where host_bytes does not allow it */
  int n_readers;       /* threads; at least 1 */
  int64_t host_bytes;  /* bound of host memory for staging buffers, counted as 1 MiB at least; 0 = none */
  bool verify;         /* compare every tensor in the arena with a second read of its file */
} mo_stream_plan;

/* The staging buffers of a plan: fewer and smaller ones where they would exceed its host_bytes. */
typedef struct {
  int n_readers, n_buffers; /* buffers of each reader */
  int64_t chunk_bytes;
} mo_stream_ring;
mo_stream_ring mo_stream_ring_of(const mo_stream_plan *plan);

/* Host memory that a streamer takes at most beside the arena; needs no stages in the plan. host_memory: as the
 * backend's. */
int64_t mo_stream_host_bytes(const mo_stream_plan *plan, bool host_memory);

typedef struct {
  int64_t bytes_read;
  int64_t bytes_direct;              /* of these, past the page cache */
  double read_seconds, copy_seconds; /* summed over reader threads */
  double wait_seconds;               /* the consumer waited in mo_streamer_acquire */
  double began, ready;               /* CLOCK_MONOTONIC: its first piece was asked for, its last one was there */
} mo_stream_timing;

typedef struct mo_streamer mo_streamer;

/* Start the readers. Weights of the first stages that fit in the arena are fetched at once; a stage's arena block is
 * reused only after its release. Where the backend's memory is the host's, data is read straight into the arena; else
 * it goes through staging buffers and backend upload, and what the page cache does not hold is read past it. The spec,
 * catalogue, checkpoint and backend must outlive the streamer; the plan need not. An arena smaller than the largest
 * planned stage is MO_INVALID; one larger than all of them together is cut to that. No stages: no thread, no arena.
 * One thread makes all calls of a streamer. */
MO_CHECKED mo_status mo_streamer_open(mo_streamer **streamer, const mo_stream_plan *plan, const mo_model_spec *spec,
                                      const mo_catalogue *catalogue, const mo_checkpoint *checkpoint,
                                      struct mo_backend *backend);

/* Wait until the next stage of the plan is loaded whole; stages are acquired in the order of the plan and several may
 * be held (as many as fit). *weights is owned by the streamer until the release. poll: called with `context` every few
 * milliseconds while waiting (NULL: not); a status other than MO_OK ends the wait with it. A reader's error is
 * returned by every later call. A tensor that verify finds to differ is MO_FAILED naming it and its file. A stage out
 * of order, or one that cannot fit beside those still held, is MO_FAILED. */
MO_CHECKED mo_status mo_streamer_acquire(mo_streamer *streamer, int64_t stage, const mo_stage_weights **weights,
                                         mo_status (*poll)(void *context), void *context);

/* Whether an acquire of `stage` would return at once: it is loaded, or the acquire would fail. */
bool mo_streamer_ready(mo_streamer *streamer, int64_t stage);

/* The stage's operations have ended: its block may be reused. Released in the order of acquisition; a violation is
 * MO_FAILED from the next acquire and from the check. */
void mo_streamer_release(mo_streamer *streamer, int64_t stage);

/* How far it is. */
typedef struct {
  int64_t bytes_read;     /* that have arrived in the arena */
  int64_t bytes_verified; /* of the stages acquired so far; 0 without verify */
  double stalled;         /* seconds since a byte arrived last, while readers wait for some; 0 while they do not */
  int32_t file;           /* of the read that has been waited for longest, -1: of none */
  int64_t offset;         /* in that file */
} mo_stream_state;

/* May be called by another thread than the one that makes all other calls. */
mo_stream_state mo_streamer_state(mo_streamer *streamer);

/* Timing of one stage that was acquired. */
mo_stream_timing mo_streamer_timing(const mo_streamer *streamer, int64_t stage);

/* Accounting at the end: every tensor of every planned stage was filled exactly once with exactly its bytes, and no
 * staging buffer was reused before its copy was done. A mismatch is MO_FAILED naming the tensor. */
MO_CHECKED mo_status mo_streamer_check(const mo_streamer *streamer);

/* Stop the readers (also in the middle) and free. NULL is allowed. A reader whose storage does not answer cannot be stopped: if
 * one has not come back after 1.5 s, nothing is freed and the result is false; what the streamer works with must then stay until
 * the process ends. */
bool mo_streamer_close(mo_streamer *streamer);

#endif
