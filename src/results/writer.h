/* What the files of the result writer share; no other room includes it.
 *
 * The file is written in steps that keep failures where they can be told apart and reported (a full disk above all):
 * 1. Rank 0 alone creates all objects of a step with POSIX calls and closes the file, so that no metadata is left to
 *    write. Were they created in parallel, HDF5 would write metadata from several ranks inside H5Fflush and H5Fclose,
 *    and a rank that fails there leaves the others waiting in a barrier inside HDF5 for ever.
 * 2. Rank 0 reserves the storage of the whole file.
 * 3. All ranks open the file together (MPI driver), each writes its own data independently, and they close it together.
 *    Open MPI's OMPIO returns success from a write that met a full disk, with a short count; ROMIO returns an error.
 *    HDF5 compares the count, so both are found; with storage reserved, neither happens.
 *
 * Where MPI-IO cannot write, the ranks do step 3 in turns: each opens the file alone with POSIX calls, writes its own
 * data, closes the file and flushes it; then the next one does. No two clients of a network file system ever have it
 * open at once, so none writes back a page with another one's older bytes. A lone rank does likewise, but keeps the
 * file open for activations. */
#ifndef MOE_OUTLIERS_RESULTS_WRITER_H
#define MOE_OUTLIERS_RESULTS_WRITER_H

#include "moe_outliers/results.h"
#include "results/h5.h"

struct mo_results {
  mo_comm *comm;
  char *path, *partial;                                  /* final name; PATH.partial */
  mo_h5_file file;                                       /* PATH.partial, while open */
  bool serial;                                           /* opened with POSIX calls by one rank at a time */
  bool stores;                                           /* activations */
  char *obstacle;                                        /* why `serial` was chosen, else NULL */
  mo_status (*give)(void *context, mo_results *results); /* activations, in turns; NULL: none */
  void *giver;
  bool new_path; /* PATH did not exist at the start: it must not be replaced at the end either (rank 0) */
  int64_t n_layers, hidden_size, n_experts, n_sequences, length;
  const mo_ablation *ablation; /* the caller's; NULL: there was none */
};

/* End of a phase: MO_OK on all ranks or on none. Returns `status` if that is a failure, else MO_PEER_FAILED if another
 * rank failed. Collective. Every collective HDF5 or MPI-IO call comes right after one: then all ranks are known to be
 * on their way to it, and a rank that failed before cannot leave the others waiting inside. */
MO_CHECKED mo_status mo_results_agree(mo_results *results, mo_status status);

/* All ranks open and close the file, if there is one rank or they write together. Collective. */
MO_CHECKED mo_status mo_results_open(mo_results *results);
MO_CHECKED mo_status mo_results_close(mo_results *results);

/* Whether the ranks write one after the other. */
bool mo_results_in_turns(const mo_results *results);

/* --- together.c --- */

/* Fill in `serial` and `obstacle`. Collective. */
MO_CHECKED mo_status mo_results_choose_access(mo_results *results, mo_together together);

/* --- publish.c: names, durability; POSIX only --- */

/* "PATH.partial", malloc'ed; NULL if out of memory. */
char *mo_partial_path(const char *path);

/* Flush this node's share of the file to storage. Local. */
MO_CHECKED mo_status mo_file_sync(const char *path);

/* Make the file system promise storage for the whole file, holes included, without changing its contents. Local. */
MO_CHECKED mo_status mo_file_reserve(const char *path);

/* fsync `partial`, rename it to `path` and fsync the folder. new_path: never replace an existing file; if there is one,
 * *kept is set and the complete result stays at `partial`. Local. */
MO_CHECKED mo_status mo_file_publish(const char *partial, const char *path, bool new_path, bool *kept);

#endif
