/* The result file (HDF5, format version 1): written by all ranks together under `PATH.partial`, renamed to PATH when
 * complete; read back by `report`.
 *
 * Layout, see docs/results.md. Every dataset carries a `description` attribute and `units` where it has any; strings
 * are UTF-8 of variable length; classification and site are HDF5 enums; tables are compound datasets. */
#ifndef MOE_OUTLIERS_RESULTS_H
#define MOE_OUTLIERS_RESULTS_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/analysis.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/status.h"
#include "moe_outliers/tokens.h"

#define MO_FORMAT_VERSION 1

/* Root attributes; strings owned by the caller. */
typedef struct {
  const char *model_name, *architecture, *precision, *device, *config; /* config: libconfig text as run */
  int64_t n_layers, hidden_size, n_experts;                            /* n_experts 0: no /routing */
  int64_t n_sequences, sequence_length, n_ranks;
  double threshold;
} mo_results_header;

/* /timing: per rank and stage. layer: -1 embedding, 0..L-1, L the head. */
typedef struct {
  int32_t rank, layer;
  int64_t bytes_read;
  double read, copy, compute, wait; /* seconds; read and copy summed over the rank's reader threads */
} mo_timing_row;

typedef struct mo_results mo_results; /* an open, unfinished result file of this rank */

/* Before anything is computed: MO_INVALID if PATH exists and overwrite is false, its folder is absent or not writable,
 * or PATH (or PATH.partial) is a folder or a device. Local (rank 0 calls it, or all). Writes nothing that stays. */
MO_CHECKED mo_status mo_results_check_path(const char *path, bool overwrite);

/* Create PATH.partial with root attributes (complete = 0), /tokens, and the empty /activations datasets of the layers
 * in activation_layers (sorted; written later), with storage reserved for them: a disk too small is found here.
 * Collective; every rank passes the same arguments. On failure *results is NULL and no file is left. */
MO_CHECKED mo_status mo_results_create(mo_results **results, const char *path, mo_comm *comm,
                                       const mo_results_header *header, const mo_tokens *tokens,
                                       const int64_t *activation_layers, int64_t n_activation_layers);

/* Store site activations of sequences first_sequence .. +n_sequences-1: values float32 [B, S, H]. Independent: only the
 * layer's owner calls it. */
MO_CHECKED mo_status mo_results_write_activations(mo_results *results, int64_t layer, mo_site site,
                                                  int64_t first_sequence, int64_t n_sequences, const float *values);

/* Write everything else: /layers/NNN/SITE by the rank that owns the layer (owner[l] = rank, [L]; rows from
 * `accumulator`), the tables of `analysis` (from rank 0), /timing (each rank its own rows). Collective; ranks that own
 * nothing take part. Once. On failure the caller gives up with mo_results_discard. */
MO_CHECKED mo_status mo_results_write(mo_results *results, const int *owner, mo_accumulator *accumulator,
                                      const mo_analysis *analysis, const mo_timing_row *timing, int64_t n_timing);

/* After mo_results_write: set `finished` and, last of all, complete = 1, flush to disk (fsync), rename to the final
 * name (fsync of the folder). Collective. On failure the partial file is removed and no final file appears; with one
 * exception: if a file appeared at PATH since mo_results_create found none, it is not replaced, and the complete result
 * stays at PATH.partial, as the error line says. Frees results in every case. */
MO_CHECKED mo_status mo_results_finish(mo_results *results);

/* Give up after an error anywhere: remove the partial file without collective calls; NULL is allowed. Frees what can be
 * freed without taking part in a collective. Local. */
void mo_results_discard(mo_results *results);

/* --- reading, for report --- */
typedef struct {
  char *path, *model_name, *architecture, *precision, *device, *started, *finished;
  int64_t n_layers, hidden_size, n_sequences, sequence_length, n_ranks;
  double threshold;
  mo_feature *features;
  int64_t n_features;
  mo_summary summary;
  double perplexity;
} mo_results_file;

/* Read a finished result file. Not HDF5, another format or version, incomplete, missing parts: MO_INVALID. Serial. */
MO_CHECKED mo_status mo_results_read(mo_results_file *file, const char *path);
void mo_results_file_free(mo_results_file *file);

#endif
