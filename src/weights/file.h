/* Private to the room: one file of weights, read through the page cache or past it.
 *
 * What the page cache holds is copied from there; the rest is faster past it (O_DIRECT): no second copy, no pages to
 * find and to evict. Nothing is ever mapped for its contents, so a file that shrinks is a short read and not a SIGBUS. */
#ifndef MO_WEIGHTS_FILE_H
#define MO_WEIGHTS_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "moe_outliers/weights.h"

enum { MO_DIRECT_BLOCK = 4096 }; /* reads past the page cache begin and end at its multiples, in file and memory */

typedef struct {
  char *name; /* in the folder */
  char *path;
  int fd; /* -1: not open */
  int64_t size;
  atomic_int direct;   /* the descriptor of reads past the cache; MO_DIRECT_UNTRIED, MO_DIRECT_REFUSED */
  atomic_bool refused; /* ... that failed */
  atomic_bool opaque;  /* the file system cannot read without waiting */
  struct mo_network_file_state *remote; /* the file is on the network, its network's; NULL: here */
} mo_weight_file;

enum { MO_DIRECT_UNTRIED = -1, MO_DIRECT_REFUSED = -2 };

/* Open a regular file, or what a link to one points to (hub snapshots are links). Absent: *fd = -1 and MO_OK. */
MO_CHECKED mo_status mo_file_open_regular(const char *path, int *fd, int64_t *size);

/* Bytes [offset, offset + bytes) through the page cache. A read error or an early end is MO_FAILED naming file and
 * range. Thread-safe, like all reads here. */
MO_CHECKED mo_status mo_file_read_range(int fd, const char *path, int64_t offset, int64_t bytes, void *buffer);

/* Whether the file can be read past the page cache: not on a tmpfs or NFS, nor where the file system refuses it. */
bool mo_file_can_direct(mo_weight_file *file);

/* The first *got of the bytes, perhaps none: those that the page cache has, without waiting for storage. */
MO_CHECKED mo_status mo_file_read_cached(mo_weight_file *file, int64_t offset, int64_t bytes, void *buffer,
                                         int64_t *got);

/* The same bytes as mo_file_read_range, past the cache. `buffer` lies as far behind a multiple of MO_DIRECT_BLOCK as
 * `offset` does; whole blocks are read, so that up to a block less a byte is written before and behind the range.
 * *refused: nothing was read, now and later the page cache is the only way. */
MO_CHECKED mo_status mo_file_read_direct(mo_weight_file *file, int64_t offset, int64_t bytes, void *buffer,
                                         bool *refused);

void mo_file_close(mo_weight_file *file); /* and free its names */

/* NULL: no file here: synthetic, or on the network. Owned by the checkpoint. */
mo_weight_file *mo_checkpoint_source(const mo_checkpoint *checkpoint, int32_t file);
bool mo_checkpoint_is_remote(const mo_checkpoint *checkpoint); /* on the network */

#endif
