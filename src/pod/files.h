/* Paths, whole files, and files that are there as a whole or not at all. */
#ifndef MO_POD_FILES_H
#define MO_POD_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "moe_outliers/status.h"

enum { POD_PATH_BYTES = 2048, POD_SHA256_BYTES = 65 };

/* Formats a path of at most POD_PATH_BYTES. */
MO_CHECKED mo_status pod_path(char path[POD_PATH_BYTES], const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The folder and those above it, 0700 for new ones. */
MO_CHECKED mo_status pod_make_folders(const char *path);
/* The folder that is to hold `path`. */
MO_CHECKED mo_status pod_make_folder_of(const char *path);

/* Replaces `path`: written beside it, flushed, renamed, and its folder flushed. */
MO_CHECKED mo_status pod_write_durably(const char *path, const void *data, size_t bytes, mode_t mode);
/* Renames a file that is complete, flushing it and the folder. */
MO_CHECKED mo_status pod_rename_durably(const char *from, const char *to);
/* The whole file with a 0 behind it; caller frees. `most`: bytes; of a longer file its end. */
MO_CHECKED mo_status pod_read_file(char **text, size_t *bytes, const char *path, size_t most);

/* SHA-256 of a file, in hexadecimal. */
MO_CHECKED mo_status pod_sha256_file(char hex[POD_SHA256_BYTES], const char *path);

typedef struct {
  unsigned state[8];
  unsigned long long bytes;
  unsigned char block[64];
} pod_sha256;
void pod_sha256_begin(pod_sha256 *sum);
void pod_sha256_add(pod_sha256 *sum, const void *data, size_t bytes);
void pod_sha256_end(pod_sha256 *sum, char hex[POD_SHA256_BYTES]);

#endif
