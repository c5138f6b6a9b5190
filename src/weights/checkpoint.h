/* Private to the room: what a checkpoint is, for those who open one. */
#ifndef MO_WEIGHTS_CHECKPOINT_H
#define MO_WEIGHTS_CHECKPOINT_H

#include "weights/file.h"
#include "weights/generate.h"
#include "weights/network.h"

/* Of a folder, here or on the network, with files; or synthetic: then "file" i is random[i], one tensor from byte 0
 * on. */
struct mo_checkpoint {
  char *directory;     /* a name, if synthetic; an address */
  mo_network *network; /* the caller's; NULL: of a folder here */
  mo_weight_file *files;
  int32_t n_files;
  mo_random_tensor *random; /* NULL: of a folder */
  mo_tensor *tensors;       /* sorted by name */
  int64_t n_tensors;
  int64_t ignored;
};

/* Add the file `name` of the folder and its tensors; *missing is set and nothing added if it is not there. */
MO_CHECKED mo_status mo_checkpoint_add_file(mo_checkpoint *checkpoint, const char *name, bool *missing);
/* Sort all tensors by name; the same name in two files is an error. */
MO_CHECKED mo_status mo_checkpoint_sort(mo_checkpoint *checkpoint);
/* Add the files that the index names, whose tensors must be those of the index; tensors that it does not name are
 * dropped. path: for messages. */
MO_CHECKED mo_status mo_checkpoint_use_index(mo_checkpoint *checkpoint, const char *text, size_t size,
                                             const char *path);

#endif
