/* The token file: HDF5, dataset /tokens int32 [n, length]; of its attributes (tokenizer, dataset, split, created) only
 * `dataset` is read. */
#ifndef MOE_OUTLIERS_TOKENS_H
#define MOE_OUTLIERS_TOKENS_H

#include <stdint.h>

#include "moe_outliers/status.h"

typedef struct {
  int32_t *ids; /* [N, S] */
  int64_t n_sequences, length;
} mo_tokens;

/* Read sequences skip .. skip+n_sequences-1, the first `length` tokens of each. Everything wrong with the file (absent,
 * not HDF5, no /tokens, wrong rank or type, too few or too short sequences, ids outside 0..vocab-1) is MO_INVALID,
 * naming file, place and value. int32 of either byte order is accepted, no other integer type.
 * Local (serial HDF5 access; every rank may call it). Caller frees with mo_tokens_free. */
MO_CHECKED mo_status mo_tokens_read(mo_tokens *tokens, const char *path, int64_t skip, int64_t n_sequences,
                                    int64_t length, int64_t vocab);

/* The attribute `dataset` of /tokens: what its author says of the text. It is a note, which no run depends on: NULL if
 * the file has none, or none that can be read. malloc'ed. To be called while no other thread is at work and the file is
 * not open: a child process tries to read it first. */
char *mo_tokens_dataset(const char *path);

/* Random ids within the vocabulary instead: a function of seed, sequence (skip counts) and position alone. */
MO_CHECKED mo_status mo_tokens_synthetic(mo_tokens *tokens, uint64_t seed, int64_t skip, int64_t n_sequences,
                                         int64_t length, int64_t vocab);
void mo_tokens_free(mo_tokens *tokens);

#endif
