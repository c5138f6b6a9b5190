#include "pipeline/model_files.h"

#include <errno.h>
#include <sys/stat.h>

mo_status mo_model_files_open(mo_checkpoint **checkpoint, const mo_config *config, const mo_model_files *files,
                              const mo_model_spec *spec) {
  if (files->network) return mo_checkpoint_open_network(checkpoint, files->network);
  if (!files->synthetic) return mo_checkpoint_open(checkpoint, config->model.path);
  return mo_checkpoint_open_synthetic(checkpoint, spec, spec->stored_bytes == 4 ? MO_F32 : MO_BF16, files->seed);
}

mo_status mo_model_files_tokens(mo_tokens *tokens, const mo_config *config, int64_t vocab) {
  struct stat info;
  bool synthetic;
  uint64_t seed;
  MO_TRY(mo_model_files_seed(config->data.tokens, "data.tokens", &synthetic, &seed));
  if (synthetic)
    return mo_tokens_synthetic(tokens, seed, config->data.skip, config->data.sequences, config->data.length, vocab);
  if (stat(config->data.tokens, &info) != 0 && errno == ENOENT)
    return MO_FAIL(MO_INVALID,
                   "the token file is missing (%s): make it with scripts/tokens %s, or set data.tokens to where it is",
                   config->data.tokens, config->file);
  return mo_tokens_read(tokens, config->data.tokens, config->data.skip, config->data.sequences, config->data.length,
                        vocab);
}

char *mo_model_files_dataset(const mo_config *config) {
  struct stat info;
  /* What else the path may be is told by those who read the ids. */
  if (stat(config->data.tokens, &info) != 0 || !S_ISREG(info.st_mode)) return NULL;
  return mo_tokens_dataset(config->data.tokens);
}
