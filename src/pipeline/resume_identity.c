/* What must be the same for a run to go on where another one stopped. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moe_outliers/build_info.h"
#include "pipeline/resume.h"

/* Keys that determine the result; a section's name stands for all of its keys. engine.micro_batch is added apart. */
static const char *const keys[] = {"analysis.threshold",
                                   "analysis.thresholds",
                                   "analysis.min_layer_fraction",
                                   "analysis.min_position_fraction",
                                   "analysis.systematic_fraction",
                                   "analysis.perplexity",
                                   "analysis.experts",
                                   "data.sequences",
                                   "data.length",
                                   "data.skip",
                                   "engine.precision",
                                   "output.activations"};

static bool matters(const char *section, size_t section_length, const char *key, size_t key_length) {
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
    const char *rest = keys[i] + section_length;
    if (strncmp(keys[i], section, section_length) != 0 || (*rest && *rest != '.')) continue;
    if (!*rest || (strlen(rest + 1) == key_length && strncmp(rest + 1, key, key_length) == 0)) return true;
  }
  return false;
}

/* The config as run has lines `section:`, `{`, `  key = value;`, `};`. */
static void put_config(FILE *out, const char *text) {
  const char *section = "";
  size_t section_length = 0;
  for (const char *line = text; *line;) {
    size_t length = strcspn(line, "\n");
    const char *equals = memchr(line, '=', length);
    if (length > 0 && line[length - 1] == ':') {
      section = line;
      section_length = length - 1;
    } else if (equals && strncmp(line, "  ", 2) == 0) {
      const char *key = line + 2;
      if (matters(section, section_length, key, strcspn(key, " ")))
        fprintf(out, "%.*s.%.*s\n", (int)section_length, section, (int)(length - 3), key); /* without the semicolon */
    }
    line += length + (line[length] == '\n');
  }
}

static mo_status unreadable(const char *path, int error) {
  return MO_FAIL(MO_INVALID, "cannot read %s: %s: check the file", path, strerror(error));
}

/* Hash of bytes [0, bytes) of an open file, of all of it if bytes < 0. */
static mo_status hash_file(int descriptor, int64_t bytes, const char *path, uint64_t *hash) {
  enum { BLOCK = 1 << 16 };
  char *block = mo_alloc(BLOCK, 1);
  if (!block) return MO_FAILED;
  int error = 0;
  *hash = 0;
  for (int64_t offset = 0; bytes < 0 || offset < bytes;) {
    size_t wanted = bytes < 0 || bytes - offset > BLOCK ? BLOCK : (size_t)(bytes - offset);
    ssize_t got = pread(descriptor, block, wanted, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) error = errno;
    if (got <= 0) break;
    *hash = mo_checksum(block, (size_t)got, *hash);
    offset += got;
  }
  free(block);
  return error ? unreadable(path, error) : MO_OK;
}

static mo_status put_config_json(FILE *out, const char *path) {
  struct stat information;
  char file[4096];
  uint64_t hash;
  bool folder = stat(path, &information) == 0 && S_ISDIR(information.st_mode);
  if (snprintf(file, sizeof file, "%s%s", path, folder ? "/config.json" : "") >= (int)sizeof file)
    return unreadable(path, ENAMETOOLONG);
  int descriptor = open(file, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return unreadable(file, errno);
  mo_status status = hash_file(descriptor, -1, file, &hash);
  close(descriptor);
  if (status == MO_OK) fprintf(out, "config.json = contents %016" PRIx64 "\n", hash);
  return status;
}

static mo_status put_config_text(FILE *out, mo_network *network) {
  const char *text;
  size_t bytes;
  MO_TRY(mo_network_file(network, "config.json", &text, &bytes)); /* it is here since the model was read */
  fprintf(out, "config.json = contents %016" PRIx64 "\n", mo_checksum(text, bytes, 0));
  return MO_OK;
}

/* A file by name, size, time of its last change, and the hash of its header. */
static mo_status put_file(FILE *out, const char *path) {
  struct stat information;
  uint64_t header_bytes = 0, hash = 0; /* little-endian, like the machines that read such files here */
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return unreadable(path, errno);
  mo_status status = MO_OK;
  if (fstat(descriptor, &information) != 0 || pread(descriptor, &header_bytes, 8, 0) < 0)
    status = unreadable(path, errno);
  if (status == MO_OK) {
    int64_t most = information.st_size - 8;
    status = hash_file(descriptor, 8 + (header_bytes < (uint64_t)most ? (int64_t)header_bytes : most), path, &hash);
  }
  close(descriptor);
  const char *slash = strrchr(path, '/');
  if (status == MO_OK)
    fprintf(out, "checkpoint file %s = %lld bytes of %lld.%09ld, header %016" PRIx64 "\n", slash ? slash + 1 : path,
            (long long)information.st_size, (long long)information.st_mtim.tv_sec, information.st_mtim.tv_nsec, hash);
  return status;
}

static mo_status put_checkpoint(FILE *out, const mo_resume_job *job) {
  int64_t n = mo_checkpoint_tensor_count(job->checkpoint), n_files = 0;
  if (job->synthetic) {
    fprintf(out, "checkpoint = %s\n", job->config->model.path);
    return MO_OK;
  }
  if (job->network) {
    mo_network_identify(job->network, out);
    return MO_OK;
  }
  for (int64_t i = 0; i < n; i++) {
    int32_t file = mo_checkpoint_tensor(job->checkpoint, i)->file;
    if (file >= n_files) n_files = file + 1;
  }
  for (int32_t file = 0; file < n_files; file++) MO_TRY(put_file(out, mo_checkpoint_file(job->checkpoint, file)));
  return MO_OK;
}

mo_status mo_identity_text(char **text, const mo_resume_job *job) {
  size_t size = 0;
  *text = NULL;
  FILE *out = open_memstream(text, &size);
  if (!out) return MO_FAIL(MO_FAILED, "out of memory (interrupted run): free some memory");
  const mo_tokens *tokens = job->tokens;
  fprintf(out, "format = %d\nprogram = %s %s\n", MO_JOURNAL_VERSION, MO_VERSION, MO_GIT_COMMIT);
  put_config(out, job->config->text);
  fprintf(out, "engine.micro_batch = %lld\n", (long long)job->plan->micro_batch);
  fprintf(out, "engine.device = \"%s\"\n", job->backend->table->name);
  fprintf(out, "data.tokens = contents %016" PRIx64 "\n",
          mo_checksum(tokens->ids, (size_t)(tokens->n_sequences * tokens->length) * sizeof *tokens->ids, 0));
  mo_status status = job->network ? put_config_text(out, job->network) : put_config_json(out, job->config_json);
  if (status == MO_OK) status = put_checkpoint(out, job);
  if (fclose(out) != 0 && status == MO_OK) status = MO_FAIL(MO_FAILED, "out of memory (interrupted run): free some");
  if (status != MO_OK) {
    free(*text);
    *text = NULL;
  }
  return status;
}

/* Value of a name, and its length; NULL if the text has no such line. */
static const char *find_value(const char *text, const char *name, size_t name_length, size_t *length) {
  for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
    if (strncmp(line, name, name_length) == 0 && strncmp(line + name_length, " = ", 3) == 0) {
      *length = strcspn(line + name_length + 3, "\n");
      return line + name_length + 3;
    }
  return NULL;
}

/* A name of `a` that has another value in `b`, or none. */
static bool find_difference(const char *a, const char *b, const char **name, int *name_length) {
  for (const char *line = a; *line; line += strcspn(line, "\n"), line += *line == '\n') {
    const char *equals = strstr(line, " = ");
    size_t n = 0, m = 0;
    if (!equals) return false;
    const char *mine = find_value(line, line, (size_t)(equals - line), &n);
    const char *other = find_value(b, line, (size_t)(equals - line), &m);
    *name = line;
    *name_length = (int)(equals - line);
    if (!mine || !other || n != m || memcmp(mine, other, n) != 0) return true;
  }
  return false;
}

mo_status mo_identity_compare(const char *before, const char *now, const char *path) {
  const char *name, *was, *is;
  int name_length;
  size_t was_length = 0, is_length = 0;
  if (!find_difference(now, before, &name, &name_length) && !find_difference(before, now, &name, &name_length))
    return MO_OK;
  was = find_value(before, name, (size_t)name_length, &was_length);
  is = find_value(now, name, (size_t)name_length, &is_length);
  if (!was) was_length = strlen(was = "absent");
  if (!is) is_length = strlen(is = "absent");
  return MO_FAIL(MO_INVALID,
                 "%.*s has changed since the run was interrupted: %.*s, now %.*s (%s): set it back to continue, or "
                 "start over with --fresh",
                 name_length, name, (int)was_length, was, (int)is_length, is, path);
}
