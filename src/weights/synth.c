/* Random checkpoints in the hub's format, for benchmarks and tests. */
#include "moe_outliers/synth.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "moe_outliers/model.h"
#include "weights/generate.h"

#define INDEX_NAME "model.safetensors.index.json"
#define CONFIG_NAME "config.json"
#define PARTIAL ".partial"

enum { CHUNK_BYTES = 1 << 21 };
static const int64_t shard_bytes = 5000000000; /* as the hub's shards */

typedef struct {
  int64_t offset; /* in the data part of its shard */
  int shard;
} place;

typedef struct {
  int fd;
  int64_t data_start;  /* of its data part in the file */
  int64_t first_chunk; /* its chunks are consecutive */
  int64_t n_chunks;
} open_shard;

typedef struct {
  int64_t tensor;
  int64_t first; /* byte of the tensor */
} chunk;

typedef struct {
  mo_model_spec spec;
  const char *directory;
  uint64_t seed;
  mo_dtype dtype;
  mo_random_tensor *tensors;
  place *places; /* of each tensor */
  int64_t n_tensors, bytes;
  int n_shards;
  int config; /* descriptor of config.json.partial; who holds a lock on it writes to the folder */
  const mo_synth_progress *progress;
} synth;

static mo_status place_tensors(synth *s) {
  MO_TRY(mo_random_tensors(&s->spec, s->dtype, s->seed, &s->tensors, &s->n_tensors));
  s->places = mo_alloc((size_t)s->n_tensors, sizeof *s->places);
  if (!s->places) return MO_FAILED;
  int64_t offset = 0;
  for (int64_t i = 0; i < s->n_tensors; i++) {
    int64_t bytes = s->tensors[i].bytes;
    if (offset > 0 && offset + bytes > shard_bytes) s->n_shards++, offset = 0;
    s->places[i] = (place){.shard = s->n_shards, .offset = offset};
    offset += bytes;
    s->bytes += bytes;
  }
  s->n_shards++;
  return MO_OK;
}

static void shard_name(const synth *s, int shard, char *name, size_t size) {
  if (s->n_shards == 1)
    snprintf(name, size, "model.safetensors");
  else
    snprintf(name, size, "model-%05d-of-%05d.safetensors", shard + 1, s->n_shards);
}

static mo_status full_path(const synth *s, const char *name, const char *suffix, char *path, size_t size) {
  if (snprintf(path, size, "%s/%s%s", s->directory, name, suffix) >= (int)size)
    return MO_FAIL(MO_INVALID, "path too long (%.60s...): use a shorter folder", s->directory);
  return MO_OK;
}

/* The names of all files, config.json last; NULL behind it. */
static const char *file_name(const synth *s, int file, char *name, size_t size) {
  if (file > s->n_shards + 1) return NULL;
  if (file == s->n_shards + 1) return CONFIG_NAME;
  if (file == s->n_shards) return INDEX_NAME;
  shard_name(s, file, name, size);
  return name;
}

static mo_status write_failed(const char *path) {
  return MO_FAIL(MO_FAILED, "cannot write: %s (%s): check space and permissions", strerror(errno), path);
}

static mo_status write_at(int fd, const void *data, int64_t bytes, int64_t offset, const char *path) {
  for (int64_t done = 0; done < bytes;) {
    ssize_t n = pwrite(fd, (const char *)data + done, (size_t)(bytes - done), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return write_failed(path);
    done += n;
  }
  return MO_OK;
}

/* The JSON header of a shard, padded with spaces to a multiple of 8 bytes; malloc'ed. */
static char *shard_header(const synth *s, int shard) {
  json_t *root = json_object();
  for (int64_t i = 0; i < s->n_tensors; i++) {
    const mo_random_tensor *t = s->tensors + i;
    int64_t offset = s->places[i].offset;
    if (s->places[i].shard != shard) continue;
    json_t *shape = json_array();
    for (int d = 0; d < t->need.n_dims; d++) json_array_append_new(shape, json_integer(t->need.shape[d]));
    json_object_set_new(root, t->need.name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", mo_dtype_name(t->dtype), "shape", shape,
                                  "data_offsets", (json_int_t)offset, (json_int_t)(offset + t->bytes)));
  }
  char *text = json_dumps(root, JSON_COMPACT);
  json_decref(root);
  size_t length = text ? strlen(text) : 0, padded = (length + 7) / 8 * 8;
  char *header = text ? mo_alloc(padded + 1, 1) : NULL;
  if (header) {
    memset(header, ' ', padded);
    memcpy(header, text, length);
  }
  free(text);
  return header;
}

/* Create a shard's file and write its header. */
static mo_status begin_shard(const synth *s, int shard, open_shard *out) {
  char name[64], path[4096];
  shard_name(s, shard, name, sizeof name);
  MO_TRY(full_path(s, name, PARTIAL, path, sizeof path));
  char *header = shard_header(s, shard);
  if (!header) return MO_FAIL(MO_FAILED, "out of memory (%s): use a larger machine", path);
  int64_t length = (int64_t)strlen(header);
  out->data_start = 8 + length;
  out->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  mo_status status = out->fd < 0 ? write_failed(path) : MO_OK;
  if (status == MO_OK) status = write_at(out->fd, &length, 8, 0, path);
  if (status == MO_OK) status = write_at(out->fd, header, length, 8, path);
  free(header);
  return status;
}

static mo_status close_shards(const synth *s, open_shard *shards) {
  mo_status status = MO_OK;
  for (int shard = 0; shard < s->n_shards; shard++) {
    char name[64];
    if (shards[shard].fd < 0 || close(shards[shard].fd) == 0) continue;
    shard_name(s, shard, name, sizeof name);
    status = write_failed(name);
  }
  return status;
}

/* All chunks, in the order of the tensors; malloc'ed. *n_longest: chunks of the shard with the most. */
static chunk *list_chunks(const synth *s, open_shard *shards, int64_t *n_longest) {
  int64_t n = 0, at = 0;
  *n_longest = 0;
  for (int64_t i = 0; i < s->n_tensors; i++) n += (s->tensors[i].bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
  chunk *chunks = mo_alloc((size_t)n, sizeof *chunks);
  for (int64_t i = 0; chunks && i < s->n_tensors; i++) {
    open_shard *shard = shards + s->places[i].shard;
    if (shard->n_chunks == 0) shard->first_chunk = at;
    for (int64_t first = 0; first < s->tensors[i].bytes; first += CHUNK_BYTES) {
      chunks[at++] = (chunk){i, first};
      shard->n_chunks++;
    }
    if (shard->n_chunks > *n_longest) *n_longest = shard->n_chunks;
  }
  return chunks;
}

static int64_t chunk_bytes(const synth *s, const chunk *c) {
  int64_t left = s->tensors[c->tensor].bytes - c->first;
  return left < CHUNK_BYTES ? left : CHUNK_BYTES;
}

static mo_status write_chunk(const synth *s, const open_shard *shards, const chunk *c, void *buffer) {
  const mo_random_tensor *tensor = s->tensors + c->tensor;
  const place *where = s->places + c->tensor;
  int64_t n = chunk_bytes(s, c);
  char name[64], path[4096];
  shard_name(s, where->shard, name, sizeof name);
  MO_TRY(full_path(s, name, PARTIAL, path, sizeof path));
  mo_random_fill(tensor, c->first, n, buffer);
  const open_shard *shard = shards + where->shard;
  return write_at(shard->fd, buffer, n, shard->data_start + where->offset + c->first, path);
}

/* The first thread does it: the others go on. */
static void tell(const synth *s, const int64_t *written) {
  int64_t now;
  if (omp_get_thread_num() != 0 || !s->progress->tell) return;
#pragma omp atomic read
  now = *written;
  s->progress->tell(s->progress->context, now, s->bytes);
}

/* All chunks on all cores, one of each shard in turn: the kernel lets one thread at a time write to a file. */
static mo_status write_chunks(const synth *s, const open_shard *shards, const chunk *chunks, int64_t n_longest) {
  mo_status status = MO_OK;
  bool failed = false;
  int64_t written = 0;
#pragma omp parallel
  {
    void *buffer = mo_alloc(CHUNK_BYTES, 1);
    mo_status mine = buffer ? MO_OK : MO_FAILED;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < n_longest * s->n_shards; i++) {
      const open_shard *shard = shards + i % s->n_shards;
      int64_t k = i / s->n_shards;
      bool stop;
#pragma omp atomic read
      stop = failed;
      if (mine == MO_OK && !stop && k < shard->n_chunks) {
        const chunk *c = chunks + shard->first_chunk + k;
        mine = write_chunk(s, shards, c, buffer);
#pragma omp atomic
        written += chunk_bytes(s, c);
        tell(s, &written);
      }
      if (mine != MO_OK) {
#pragma omp atomic write
        failed = true;
      }
    }
    if (mine != MO_OK) {
#pragma omp critical
      status = mine;
    }
    free(buffer);
  }
  return status;
}

static mo_status write_shards(const synth *s) {
  open_shard *shards = mo_alloc((size_t)s->n_shards, sizeof *shards);
  if (!shards) return MO_FAILED;
  for (int shard = 0; shard < s->n_shards; shard++) shards[shard].fd = -1;
  mo_status status = MO_OK;
  for (int shard = 0; shard < s->n_shards && status == MO_OK; shard++) status = begin_shard(s, shard, shards + shard);
  int64_t n_longest;
  chunk *chunks = list_chunks(s, shards, &n_longest);
  if (status == MO_OK) status = chunks ? write_chunks(s, shards, chunks, n_longest) : MO_FAILED;
  mo_status closed = close_shards(s, shards);
  free(chunks);
  free(shards);
  return status == MO_OK ? closed : status;
}

static mo_status write_index(const synth *s) {
  char path[4096];
  json_t *map = json_object();
  int64_t total = 0;
  for (int64_t i = 0; i < s->n_tensors; i++) {
    char name[64];
    shard_name(s, s->places[i].shard, name, sizeof name);
    json_object_set_new(map, s->tensors[i].need.name, json_string(name));
    total += s->tensors[i].bytes;
  }
  json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
  mo_status status = full_path(s, INDEX_NAME, PARTIAL, path, sizeof path);
  if (status == MO_OK && (!index || json_dump_file(index, path, JSON_INDENT(2)) != 0)) status = write_failed(path);
  json_decref(index);
  return status;
}

static mo_status write_config(const synth *s, const json_t *config) {
  char path[4096];
  MO_TRY(full_path(s, CONFIG_NAME, PARTIAL, path, sizeof path));
  char *text = json_dumps(config, JSON_INDENT(2));
  mo_status status = text ? write_at(s->config, text, (int64_t)strlen(text), 0, path) : write_failed(path);
  free(text);
  return status;
}

/* config.json as given, with fewer layers if asked for and the dtype that is written. */
static mo_status load_config(const char *path, int64_t layers, mo_dtype dtype, json_t **config) {
  json_error_t error;
  *config = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
  if (!json_is_object(*config)) {
    json_decref(*config);
    return MO_FAIL(MO_INVALID, "not a JSON object: %s (%s): give the config.json of a model", error.text, path);
  }
  json_int_t has = json_integer_value(json_object_get(*config, "num_hidden_layers"));
  if (layers > has) {
    json_decref(*config);
    return MO_FAIL(MO_INVALID, "--layers %lld is more than the model's %lld (%s): ask for fewer", (long long)layers,
                   (long long)has, path);
  }
  json_t *types = json_object_get(*config, "layer_types");
  if (layers > 0) {
    json_object_set_new(*config, "num_hidden_layers", json_integer(layers));
    while ((int64_t)json_array_size(types) > layers) json_array_remove(types, json_array_size(types) - 1);
  }
  const char *name = dtype == MO_F32 ? "float32" : dtype == MO_BF16 ? "bfloat16" : "float16";
  json_object_set_new(*config, json_object_get(*config, "dtype") ? "dtype" : "torch_dtype", json_string(name));
  return MO_OK;
}

static mo_status parse_config(mo_model_spec *spec, const json_t *config, const char *path) {
  char *text = json_dumps(config, 0);
  if (!text) return MO_FAIL(MO_FAILED, "out of memory (%s): use a larger machine", path);
  mo_status status = mo_model_parse(spec, text, strlen(text), path);
  free(text);
  return status;
}

/* --- the folder --- */

static bool is_there(const synth *s, const char *name, const char *suffix) {
  char path[4096];
  return full_path(s, name, suffix, path, sizeof path) == MO_OK && access(path, F_OK) == 0;
}

/* Make the folder; refuse one that holds a checkpoint. */
static mo_status prepare_folder(const synth *s) {
  static const char *const taken[] = {CONFIG_NAME, "model.safetensors", INDEX_NAME};
  struct stat info;
  if (mkdir(s->directory, 0777) != 0 && errno != EEXIST)
    return MO_FAIL(MO_INVALID, "cannot make the folder: %s (%s): make its parent folder first", strerror(errno),
                   s->directory);
  if (stat(s->directory, &info) != 0 || !S_ISDIR(info.st_mode))
    return MO_FAIL(MO_INVALID, "not a folder (%s): give another name", s->directory);
  bool unfinished = is_there(s, CONFIG_NAME, PARTIAL) && !is_there(s, CONFIG_NAME, "");
  for (size_t i = 0; i < sizeof taken / sizeof taken[0] && !unfinished; i++)
    if (is_there(s, taken[i], ""))
      return MO_FAIL(MO_INVALID, "the folder holds a checkpoint already (%s/%s): give another folder or remove it",
                     s->directory, taken[i]);
  return MO_OK;
}

/* Whether a file is one that is written here, maybe of another model. */
static bool is_ours(const char *name) {
  size_t length = strlen(name);
  if (length > strlen(PARTIAL) && strcmp(name + length - strlen(PARTIAL), PARTIAL) == 0) length -= strlen(PARTIAL);
  int end = 0;
  if (length == strlen(INDEX_NAME) && strncmp(name, INDEX_NAME, length) == 0) return true;
  if (length == strlen("model.safetensors") && strncmp(name, "model.safetensors", length) == 0) return true;
  (void)sscanf(name, "model-%*5[0-9]-of-%*5[0-9].safetensors%n", &end);
  return end > 0 && (size_t)end == length;
}

/* What was left by a process that was killed. */
static mo_status remove_leftovers(const synth *s) {
  DIR *folder = opendir(s->directory);
  if (!folder) return write_failed(s->directory);
  for (struct dirent *entry; (entry = readdir(folder));)
    if (is_ours(entry->d_name)) (void)unlinkat(dirfd(folder), entry->d_name, 0);
  closedir(folder);
  return MO_OK;
}

/* config.json.partial, with a lock. */
static mo_status take_folder(synth *s) {
  char path[4096];
  MO_TRY(full_path(s, CONFIG_NAME, PARTIAL, path, sizeof path));
  s->config = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (s->config < 0) return write_failed(path);
  if (flock(s->config, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) {
    if (ftruncate(s->config, 0) == 0) return remove_leftovers(s);
    return write_failed(path);
  }
  close(s->config);
  s->config = -1;
  return MO_FAIL(MO_INVALID, "another process writes to the folder (%s): wait for it or give another folder",
                 s->directory);
}

/* Of what was written here, whether it has its name already or not. */
static void remove_files(const synth *s) {
  char buffer[64], path[4096];
  const char *name;
  for (int file = 0; (name = file_name(s, file, buffer, sizeof buffer)); file++) {
    if (full_path(s, name, PARTIAL, path, sizeof path) == MO_OK) (void)unlink(path);
    if (full_path(s, name, "", path, sizeof path) == MO_OK) (void)unlink(path);
  }
}

static mo_status name_files(const synth *s) {
  char buffer[64], from[4096], to[4096];
  const char *name;
  for (int file = 0; (name = file_name(s, file, buffer, sizeof buffer)); file++) {
    if (file == s->n_shards && s->n_shards == 1) continue; /* no index */
    MO_TRY(full_path(s, name, PARTIAL, from, sizeof from));
    MO_TRY(full_path(s, name, "", to, sizeof to));
    if (rename(from, to) != 0) return write_failed(to);
  }
  return MO_OK;
}

static mo_status write_checkpoint(synth *s, const json_t *config) {
  mo_status status = take_folder(s);
  if (s->config < 0) return status;
  if (status == MO_OK) status = write_shards(s);
  if (status == MO_OK && s->n_shards > 1) status = write_index(s);
  if (status == MO_OK) status = write_config(s, config);
  if (status == MO_OK) status = name_files(s);
  if (status != MO_OK) remove_files(s);
  close(s->config);
  return status;
}

mo_status mo_synth(const char *config_json, const char *directory, uint64_t seed, int64_t layers, int dtype,
                   const mo_synth_progress *progress) {
  static const mo_dtype dtypes[] = {MO_BF16, MO_F32, MO_F16};
  synth s = {.directory = directory, .seed = seed, .dtype = dtypes[dtype], .config = -1, .progress = progress};
  json_t *config = NULL;
  MO_TRY(load_config(config_json, layers, s.dtype, &config));
  mo_status status = parse_config(&s.spec, config, config_json);
  if (status == MO_OK) status = place_tensors(&s);
  if (status == MO_OK) status = prepare_folder(&s);
  if (status == MO_OK) status = write_checkpoint(&s, config);
  json_decref(config);
  free(s.tensors);
  free(s.places);
  mo_model_free(&s.spec);
  return status;
}
