#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "moe_outliers/weights.h"
#include "weights/checkpoint.h"

#define INDEX_NAME "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"
#define MAX_HEADER 100000000 /* bytes; the format's own limit */
#define MAX_INDEX 1000000000

static char *join_path(const char *directory, const char *name) {
  size_t length = strlen(directory) + strlen(name) + 2;
  char *path = mo_alloc(length, 1);
  if (path) snprintf(path, length, "%s/%s", directory, name);
  return path;
}

/* --- one shard --- */

/* Of a file on the network the first bytes are here already. */
static mo_status read_first(const mo_weight_file *file, int64_t offset, int64_t bytes, void *to) {
  if (!file->remote) return mo_file_read_range(file->fd, file->path, offset, bytes, to);
  if (offset + bytes > file->remote->head_bytes)
    return MO_FAIL(MO_INVALID, "the file ends within its header (%s): it is truncated, fetch it again", file->path);
  memcpy(to, file->remote->head + offset, (size_t)bytes);
  return MO_OK;
}

/* *json: malloc'ed; *data_start: where the data begins in the file. */
static mo_status read_header(const mo_weight_file *file, char **json, int64_t *bytes, int64_t *data_start) {
  unsigned char prefix[8];
  if (file->size == 0) return MO_FAIL(MO_INVALID, "the file is empty (%s): fetch it again", file->path);
  if (file->size < 8)
    return MO_FAIL(MO_INVALID, "the file has only %lld byte%s (%s): it is truncated, fetch it again",
                   (long long)file->size, mo_plural(file->size), file->path);
  MO_TRY(read_first(file, 0, 8, prefix));
  if (memcmp(prefix, "version ", 8) == 0)
    return MO_FAIL(MO_INVALID, "the file is a git-lfs pointer, not the weights (%s): run git lfs pull in its folder",
                   file->path);
  uint64_t n = 0;
  for (int i = 7; i >= 0; i--) n = n << 8 | prefix[i];
  if (n > MAX_HEADER)
    return MO_FAIL(MO_INVALID,
                   "header length %llu exceeds the limit of %d (%s): the file is damaged or not a safetensors "
                   "file, fetch it again",
                   (unsigned long long)n, MAX_HEADER, file->path);
  if ((int64_t)n > file->size - 8)
    return MO_FAIL(MO_INVALID, "the header has %llu bytes but the file only %lld (%s): it is truncated, fetch it again",
                   (unsigned long long)n, (long long)file->size, file->path);
  *bytes = (int64_t)n;
  *data_start = 8 + *bytes;
  *json = mo_alloc((size_t)n, 1);
  if (!*json) return MO_FAILED;
  mo_status status = read_first(file, 8, *bytes, *json);
  if (status != MO_OK) {
    free(*json);
    *json = NULL;
  }
  return status;
}

/* Append the tensors of file `index` to the checkpoint's. */
static mo_status add_tensors(mo_checkpoint *checkpoint, int32_t index) {
  const mo_weight_file *file = &checkpoint->files[index];
  char *json = NULL;
  int64_t bytes = 0, data_start = 0, n = 0;
  mo_tensor *found;
  MO_TRY(read_header(file, &json, &bytes, &data_start));
  mo_status status = mo_safetensors_parse(json, (size_t)bytes, file->size - data_start, file->path, &found, &n);
  free(json);
  MO_TRY(status);
  mo_tensor *all = mo_realloc(checkpoint->tensors, (size_t)(checkpoint->n_tensors + n), sizeof *all);
  if (!all) {
    mo_tensors_free(found, n);
    return MO_FAILED;
  }
  checkpoint->tensors = all;
  for (int64_t i = 0; i < n; i++) {
    found[i].file = index;
    found[i].offset += data_start;
    all[checkpoint->n_tensors++] = found[i]; /* its name moves along */
  }
  free(found);
  return MO_OK;
}

/* *missing: the folder has no such file. */
static mo_status open_file(const mo_checkpoint *checkpoint, mo_weight_file *file, bool *missing) {
  if (!checkpoint->network) {
    MO_TRY(mo_file_open_regular(file->path, &file->fd, &file->size));
    *missing = file->fd < 0;
    if (!*missing) (void)posix_fadvise(file->fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* only a hint */
    return MO_OK;
  }
  const char *const name = file->name;
  MO_TRY(mo_network_headers(checkpoint->network, &name, 1));
  file->remote = mo_network_entry(checkpoint->network, name);
  *missing = file->remote->missing;
  file->size = file->remote->size;
  return MO_OK;
}

mo_status mo_checkpoint_add_file(mo_checkpoint *checkpoint, const char *name, bool *missing) {
  *missing = false;
  mo_weight_file *files = mo_realloc(checkpoint->files, (size_t)checkpoint->n_files + 1, sizeof *files);
  if (!files) return MO_FAILED;
  checkpoint->files = files;
  mo_weight_file *file = &files[checkpoint->n_files];
  *file = (mo_weight_file){.fd = -1, .direct = MO_DIRECT_UNTRIED};
  checkpoint->n_files++; /* from here on owned by mo_checkpoint_close */
  file->name = mo_strdup(name);
  file->path = join_path(checkpoint->directory, name);
  if (!file->name || !file->path) return MO_FAILED;
  MO_TRY(open_file(checkpoint, file, missing));
  if (*missing) {
    free(file->name);
    free(file->path);
    checkpoint->n_files--;
    return MO_OK;
  }
  return add_tensors(checkpoint, checkpoint->n_files - 1);
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const mo_tensor *)a)->name, ((const mo_tensor *)b)->name);
}

mo_status mo_checkpoint_sort(mo_checkpoint *checkpoint) {
  mo_tensor *t = checkpoint->tensors;
  if (checkpoint->n_tensors > 0) qsort(t, (size_t)checkpoint->n_tensors, sizeof *t, by_name);
  for (int64_t i = 1; i < checkpoint->n_tensors; i++)
    if (strcmp(t[i].name, t[i - 1].name) == 0)
      return MO_FAIL(MO_INVALID, "duplicate tensor \"%s\" in %s and %s (%s): remove files of other checkpoints",
                     t[i].name, checkpoint->files[t[i - 1].file].name, checkpoint->files[t[i].file].name,
                     checkpoint->directory);
  return MO_OK;
}

static mo_status read_index(mo_checkpoint *checkpoint, int fd, int64_t size, const char *path) {
  if (size > MAX_INDEX)
    return MO_FAIL(MO_INVALID, "the index has %lld bytes (%s): at most %d are supported", (long long)size, path,
                   MAX_INDEX);
  char *text = mo_alloc((size_t)size, 1);
  if (!text) return MO_FAILED;
  mo_status status = mo_file_read_range(fd, path, 0, size, text);
  if (status == MO_OK) status = mo_checkpoint_use_index(checkpoint, text, (size_t)size, path);
  free(text);
  return status;
}

/* --- the folder --- */

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

static mo_status nothing_found(const char *directory) {
  DIR *folder = opendir(directory);
  if (!folder)
    return MO_FAIL(MO_INVALID, "cannot open the checkpoint folder: %s (%s): check model.path", strerror(errno),
                   directory);
  bool bin = false, shards = false;
  for (struct dirent *entry; (entry = readdir(folder));) {
    bin = bin || ends_with(entry->d_name, ".bin");
    shards = shards || ends_with(entry->d_name, ".safetensors");
  }
  closedir(folder);
  if (shards)
    return MO_FAIL(MO_INVALID, "the folder has *.safetensors files but neither %s nor %s (%s): fetch these files too",
                   INDEX_NAME, SINGLE_NAME, directory);
  if (bin)
    return MO_FAIL(MO_INVALID,
                   "the folder has *.bin weights but no safetensors (%s): convert it, e.g. with transformers' "
                   "save_pretrained",
                   directory);
  return MO_FAIL(MO_INVALID,
                 "the folder has neither %s nor %s (%s): fetch a checkpoint, e.g. hf download MODEL --local-dir %s",
                 INDEX_NAME, SINGLE_NAME, directory, directory);
}

static mo_status open_folder(mo_checkpoint *checkpoint) {
  struct stat info;
  if (stat(checkpoint->directory, &info) != 0)
    return MO_FAIL(MO_INVALID, "cannot open the checkpoint folder: %s (%s): check model.path", strerror(errno),
                   checkpoint->directory);
  if (!S_ISDIR(info.st_mode))
    return MO_FAIL(MO_INVALID, "the checkpoint is no folder (%s): give the folder with its files",
                   checkpoint->directory);
  char *path = join_path(checkpoint->directory, INDEX_NAME);
  if (!path) return MO_FAILED;
  int fd;
  int64_t size;
  mo_status status = mo_file_open_regular(path, &fd, &size);
  if (status == MO_OK && fd >= 0) {
    status = read_index(checkpoint, fd, size, path);
    close(fd);
    free(path);
    return status;
  }
  free(path);
  MO_TRY(status);
  bool missing;
  MO_TRY(mo_checkpoint_add_file(checkpoint, SINGLE_NAME, &missing));
  if (missing) return nothing_found(checkpoint->directory);
  return mo_checkpoint_sort(checkpoint);
}

mo_status mo_checkpoint_open(mo_checkpoint **checkpoint, const char *directory) {
  *checkpoint = NULL;
  mo_checkpoint *opened = mo_alloc(1, sizeof *opened);
  if (!opened) return MO_FAILED;
  opened->directory = mo_strdup(directory);
  mo_status status = opened->directory ? open_folder(opened) : MO_FAILED;
  if (status != MO_OK) {
    mo_checkpoint_close(opened);
    return status;
  }
  *checkpoint = opened;
  return MO_OK;
}

/* --- on the network --- */

static mo_status open_address(mo_checkpoint *checkpoint) {
  const char *text;
  size_t bytes;
  bool missing;
  MO_TRY(mo_network_file(checkpoint->network, INDEX_NAME, &text, &bytes));
  if (text) {
    char *path = join_path(checkpoint->directory, INDEX_NAME);
    mo_status status = path ? mo_checkpoint_use_index(checkpoint, text, bytes, path) : MO_FAILED;
    free(path);
    return status;
  }
  MO_TRY(mo_checkpoint_add_file(checkpoint, SINGLE_NAME, &missing));
  const char *note = mo_network_cache_note(checkpoint->network, INDEX_NAME);
  if (missing && note)
    return MO_FAIL(
        MO_INVALID,
        "there is neither %s, as %.900s/%s.missing (engine.cache) says, nor %s (%s): remove that file to ask "
        "again, or give the address of a model in safetensors",
        INDEX_NAME, note, INDEX_NAME, SINGLE_NAME, checkpoint->directory);
  if (missing)
    return MO_FAIL(MO_INVALID, "there is neither %s nor %s (%s): give the address of a model in safetensors",
                   INDEX_NAME, SINGLE_NAME, checkpoint->directory);
  return mo_checkpoint_sort(checkpoint);
}

mo_status mo_checkpoint_open_network(mo_checkpoint **checkpoint, mo_network *network) {
  *checkpoint = NULL;
  mo_checkpoint *opened = mo_alloc(1, sizeof *opened);
  if (!opened) return MO_FAILED;
  opened->network = network;
  opened->directory = mo_strdup(mo_network_address(network));
  mo_status status = opened->directory ? open_address(opened) : MO_FAILED;
  if (status != MO_OK) {
    mo_checkpoint_close(opened);
    return status;
  }
  *checkpoint = opened;
  return MO_OK;
}

/* --- no folder --- */

static mo_status list_random(mo_checkpoint *checkpoint, int64_t n) {
  checkpoint->tensors = mo_alloc((size_t)n, sizeof *checkpoint->tensors);
  if (!checkpoint->tensors) return MO_FAILED;
  for (int64_t i = 0; i < n; i++) {
    const mo_random_tensor *made = &checkpoint->random[i];
    char *name = mo_strdup(made->need.name);
    if (!name) return MO_FAILED;
    mo_tensor *t = &checkpoint->tensors[checkpoint->n_tensors++];
    *t = (mo_tensor){.name = name,
                     .dtype = made->dtype,
                     .dtype_name = mo_dtype_name(made->dtype),
                     .n_dims = made->need.n_dims,
                     .file = (int32_t)i,
                     .bytes = made->bytes};
    memcpy(t->shape, made->need.shape, sizeof made->need.shape);
  }
  qsort(checkpoint->tensors, (size_t)n, sizeof *checkpoint->tensors, by_name);
  return MO_OK;
}

mo_status mo_checkpoint_open_synthetic(mo_checkpoint **checkpoint, const mo_model_spec *spec, mo_dtype dtype,
                                       uint64_t seed) {
  *checkpoint = NULL;
  char name[40];
  snprintf(name, sizeof name, "synthetic:%llu", (unsigned long long)seed);
  mo_checkpoint *opened = mo_alloc(1, sizeof *opened);
  if (!opened) return MO_FAILED;
  int64_t n = 0;
  opened->directory = mo_strdup(name);
  mo_status status = opened->directory ? mo_random_tensors(spec, dtype, seed, &opened->random, &n) : MO_FAILED;
  if (status == MO_OK) status = list_random(opened, n);
  if (status != MO_OK) {
    mo_checkpoint_close(opened);
    return status;
  }
  *checkpoint = opened;
  return MO_OK;
}

/* --- all of them --- */

void mo_checkpoint_close(mo_checkpoint *checkpoint) {
  if (!checkpoint) return;
  for (int32_t i = 0; i < checkpoint->n_files; i++) mo_file_close(&checkpoint->files[i]);
  free(checkpoint->files);
  free(checkpoint->random);
  mo_tensors_free(checkpoint->tensors, checkpoint->n_tensors);
  free(checkpoint->directory);
  free(checkpoint);
}

const mo_tensor *mo_checkpoint_find(const mo_checkpoint *checkpoint, const char *name) {
  if (checkpoint->n_tensors == 0) return NULL;
  mo_tensor key = {.name = (char *)name};
  return bsearch(&key, checkpoint->tensors, (size_t)checkpoint->n_tensors, sizeof key, by_name);
}

int64_t mo_checkpoint_tensor_count(const mo_checkpoint *checkpoint) { return checkpoint->n_tensors; }

const mo_tensor *mo_checkpoint_tensor(const mo_checkpoint *checkpoint, int64_t index) {
  return &checkpoint->tensors[index];
}

const char *mo_checkpoint_file(const mo_checkpoint *checkpoint, int32_t file) {
  return checkpoint->random ? checkpoint->directory : checkpoint->files[file].path;
}

const char *mo_checkpoint_directory(const mo_checkpoint *checkpoint) { return checkpoint->directory; }

int64_t mo_checkpoint_ignored(const mo_checkpoint *checkpoint) { return checkpoint->ignored; }

mo_status mo_checkpoint_read(const mo_checkpoint *checkpoint, int32_t file, int64_t offset, int64_t bytes,
                             void *buffer) {
  if (checkpoint->random) {
    mo_random_fill(&checkpoint->random[file], offset, bytes, buffer);
    return MO_OK;
  }
  const mo_weight_file *source = &checkpoint->files[file];
  if (source->remote) return mo_network_read(checkpoint->network, source->remote, offset, bytes, buffer);
  return mo_file_read_range(source->fd, source->path, offset, bytes, buffer);
}

mo_weight_file *mo_checkpoint_source(const mo_checkpoint *checkpoint, int32_t file) {
  return checkpoint->random || checkpoint->network ? NULL : &checkpoint->files[file];
}

bool mo_checkpoint_is_remote(const mo_checkpoint *checkpoint) { return checkpoint->network != NULL; }

void mo_checkpoint_interrupt(const mo_checkpoint *checkpoint, bool interrupted) {
  if (checkpoint->network) mo_network_interrupt(checkpoint->network, interrupted);
}
