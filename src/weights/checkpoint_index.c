/* model.safetensors.index.json: which file has which tensor. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "weights/checkpoint.h"

static mo_status check_shard_name(const char *name, const char *path) {
  if (name[0] == '\0' || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
    return MO_FAIL(MO_INVALID,
                   "the index names the shard \"%.200s\", which is no file name in its folder (%s): fetch the "
                   "index again",
                   name, path);
  return MO_OK;
}

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

static mo_status shard_missing(const mo_checkpoint *checkpoint, const char *name) {
  if (checkpoint->network)
    return MO_FAIL(MO_INVALID, "shard %s is missing (%s): the index names it, choose a revision that is complete", name,
                   checkpoint->directory);
  return MO_FAIL(MO_INVALID,
                 "shard %s is missing (%s): the index names it, fetch it, e.g. hf download MODEL %s --local-dir %s",
                 name, checkpoint->directory, name, checkpoint->directory);
}

/* Open every distinct shard that the map names, in the order of their names. */
static mo_status add_shards(mo_checkpoint *checkpoint, json_t *map, const char *path) {
  size_t n = 0;
  const char **names = mo_alloc(json_object_size(map), sizeof *names);
  if (!names) return MO_FAILED;
  mo_status status = MO_OK;
  const char *key;
  json_t *value;
  json_object_foreach(map, key, value) {
    const char *name = json_string_value(value);
    if (!name) {
      status =
          MO_FAIL(MO_INVALID, "\"weight_map\" entry \"%.200s\" is no file name (%s): fetch the index again", key, path);
      goto done;
    }
    MO_TRY_TO(done, check_shard_name(name, path));
    names[n++] = name;
  }
  if (n > 0) qsort(names, n, sizeof *names, by_text);
  size_t distinct = 0;
  for (size_t i = 0; i < n; i++)
    if (i == 0 || strcmp(names[i], names[distinct - 1]) != 0) names[distinct++] = names[i];
  if (checkpoint->network) MO_TRY_TO(done, mo_network_headers(checkpoint->network, names, (int64_t)distinct));
  for (size_t i = 0; i < distinct; i++) {
    bool missing;
    MO_TRY_TO(done, mo_checkpoint_add_file(checkpoint, names[i], &missing));
    MO_TRY_TO(done, missing ? shard_missing(checkpoint, names[i]) : MO_OK);
  }
done:
  free(names);
  return status;
}

/* Every tensor of the map must be in the shard that the map says; tensors that it does not name are dropped. */
static mo_status match_index(mo_checkpoint *checkpoint, json_t *map) {
  int64_t kept = 0, n = checkpoint->n_tensors;
  checkpoint->n_tensors = 0; /* tensors [0, kept) and [i, n) are alive during the loop */
  mo_status status = MO_OK;
  for (int64_t i = 0; i < n; i++) {
    mo_tensor *t = &checkpoint->tensors[i];
    const char *said = json_string_value(json_object_get(map, t->name)), *found = checkpoint->files[t->file].name;
    if (said && strcmp(said, found) != 0 && status == MO_OK)
      status = MO_FAIL(MO_INVALID,
                       "tensor \"%s\" is in %s, the index says %s (%s): fetch index and shards of one checkpoint",
                       t->name, found, said, checkpoint->directory);
    if (said)
      checkpoint->tensors[kept++] = *t;
    else
      free(t->name);
  }
  checkpoint->n_tensors = kept;
  checkpoint->ignored = n - kept;
  MO_TRY(status);
  if ((size_t)kept == json_object_size(map)) return MO_OK;
  const char *key;
  json_t *value;
  json_object_foreach(map, key, value) {
    if (!mo_checkpoint_find(checkpoint, key))
      return MO_FAIL(MO_INVALID,
                     "tensor \"%s\" is not in %s, where the index puts it (%s): fetch index and shards of one "
                     "checkpoint",
                     key, json_string_value(value), checkpoint->directory);
  }
  return MO_OK;
}

static mo_status use_index(mo_checkpoint *checkpoint, const json_t *root, const char *path) {
  json_t *map = json_object_get(root, "weight_map");
  if (!json_is_object(map) || json_object_size(map) == 0)
    return MO_FAIL(MO_INVALID, "no \"weight_map\" with tensors (%s): fetch the index again", path);
  MO_TRY(add_shards(checkpoint, map, path));
  MO_TRY(mo_checkpoint_sort(checkpoint));
  return match_index(checkpoint, map);
}

mo_status mo_checkpoint_use_index(mo_checkpoint *checkpoint, const char *text, size_t size, const char *path) {
  json_error_t error;
  json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
  if (!root)
    return MO_FAIL(MO_INVALID, "the index is no JSON of distinct names: %s at line %d (%s): fetch it again", error.text,
                   error.line, path);
  mo_status status = use_index(checkpoint, root, path);
  json_decref(root);
  return status;
}
