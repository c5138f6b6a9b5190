/* The result file (HDF5, format version 1): written by all ranks together under `PATH.partial`, renamed to PATH when
 * complete; read back by `report`.
 *
 * Layout, see docs/results.md. Every dataset carries a `description` attribute and `units` where it has any; strings
 * are UTF-8 of variable length; classification and site are HDF5 enums; tables are compound datasets. */
#ifndef MOE_OUTLIERS_RESULTS_H
#define MOE_OUTLIERS_RESULTS_H

#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/ablation.h"
#include "moe_outliers/analysis.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/config.h"
#include "moe_outliers/status.h"
#include "moe_outliers/tokens.h"

#define MO_FORMAT_VERSION 1

/* Root attributes; strings owned by the caller. */
typedef struct {
  const char *model_name, *architecture, *precision, *device, *config; /* config: libconfig text as run */
  int64_t n_layers, hidden_size, n_experts;                            /* n_experts 0: no /routing */
  int64_t n_sequences, sequence_length, n_ranks;
  double threshold, min_layer_fraction, min_position_fraction, systematic_fraction;
  mo_bootstrap bootstrap;
  int64_t parameters, active_parameters, experts_per_token; /* of the model; experts_per_token 0: no layer routes */
  const char *dataset; /* what the token file says of its text; NULL: nothing. Rank 0's counts */
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
 * Collective; every rank passes the same arguments. On failure *results is NULL and no file is left.
 *
 * Several ranks write the file together through MPI-IO, or in turns with plain calls of the file system: that is found
 * out by a trial (mpi_io.h) if `together` is auto. Either way the file has the same contents. A folder that the ranks
 * do not share is MO_INVALID. */
MO_CHECKED mo_status mo_results_create(mo_results **results, const char *path, mo_comm *comm, mo_together together,
                                       const mo_results_header *header, const mo_tokens *tokens,
                                       const int64_t *activation_layers, int64_t n_activation_layers);

/* Why the ranks write in turns though they were not told to; NULL: they do not. Owned by the results. */
const char *mo_results_obstacle(const mo_results *results);

/* Where the ranks write in turns, activations can only be stored when it is this rank's: mo_results_write then calls
 * `give`, which passes all of this rank's layers to mo_results_write_activations again. To be set if there are any.
 * Local. */
void mo_results_set_activations(mo_results *results, mo_status (*give)(void *context, mo_results *results),
                                void *context);

/* Store site activations of sequences first_sequence .. +n_sequences-1: values float32 [B, S, H]. Independent: only the
 * layer's owner calls it. In turns: nothing happens before this rank's. */
MO_CHECKED mo_status mo_results_write_activations(mo_results *results, int64_t layer, mo_site site,
                                                  int64_t first_sequence, int64_t n_sequences, const float *values);

/* What was found by one threshold. */
typedef struct {
  double threshold;
  mo_accumulator *accumulator;
  const mo_analysis *analysis;
} mo_results_part;

/* Write everything else: /layers/NNN/SITE by the rank that owns the layer (owner[l] = rank, [L]; rows from the part's
 * accumulator), the tables of its analysis (from rank 0), /timing (each rank its own rows). The first part goes to the
 * root, the others to /thresholds/NUMBER. Collective; ranks that own nothing take part. Once. On failure the caller
 * gives up with mo_results_discard. */
MO_CHECKED mo_status mo_results_write(mo_results *results, const int *owner, const mo_results_part *parts, int n_parts,
                                      const mo_timing_row *timing, int64_t n_timing);

/* What mo_results_write is to write as /ablation and /ablation_features too; from rank 0, the caller's until then. Every rank that
 * asked for an ablation calls it, empty tables are written too. Local. */
void mo_results_set_ablation(mo_results *results, const mo_ablation *ablation);

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
  char *dataset; /* "": the file does not say */
  char *config;  /* as run, libconfig text; "" likewise */
  int64_t n_layers, hidden_size, n_sequences, sequence_length, n_ranks;
  int64_t n_experts, experts_per_token, parameters, active_parameters; /* -1: the file is older and does not say */
  mo_criteria criteria;                                                /* NaN likewise, but for the threshold */
  mo_bootstrap bootstrap;                                              /* -1 likewise */
  double threshold;
  mo_feature *features;
  int64_t n_features;
  mo_expert *experts; /* NULL: the file has no such table */
  int64_t n_expert_rows;
  mo_summary summary;
  double perplexity, perplexity_low, perplexity_high;
  mo_ablation ablation; /* empty if there was none */
} mo_results_file;

/* Read a finished result file. Not HDF5, another format or version, incomplete, missing parts, so damaged that HDF5
 * crashes or never ends: MO_INVALID. Serial; to be called while no other thread is at work and the file is not open, as a
 * child process tries to read it first. */
MO_CHECKED mo_status mo_results_read(mo_results_file *file, const char *path);
void mo_results_file_free(mo_results_file *file);

/* Replace features, summary, perplexity and the intervals by those that these criteria and draws give, made from the
 * tables of the same file, which is opened again: bit for bit what a run with them would have written. A threshold that
 * the file has no tables of, tables that are missing, damaged or disagree: MO_INVALID. Serial. */
MO_CHECKED mo_status mo_results_recompute(mo_results_file *file, const mo_criteria *criteria,
                                          const mo_bootstrap *bootstrap);

/* --- export, in the reference implementation's schema (docs/export.md) --- */
#define MO_EXPORT_READER_CHARACTERS 50000000 /* of final_analysis_results.json that the reference's plot script reads */

typedef struct {
  bool no_perplexity; /* none in the file: no perplexity_results.json */
  bool too_long;      /* "batch_results", up to which that script searches, comes after those characters */
} mo_export_notes;

/* Write final_analysis_results.json, perplexity_results.json and config.json of a finished result file to a folder,
 * made if absent. MO_INVALID: no such result file, a damaged one, a folder that cannot be written to, or one of these
 * files exists and overwrite is false. On failure nothing is left, but what has replaced older files before a rename
 * failed. Memory: a few words per feature and a few KB per site. Serial. */
MO_CHECKED mo_status mo_results_export(const char *path, const char *directory, bool overwrite, mo_export_notes *notes);

#endif
