/* What rooms that write files share. */
#ifndef MO_COMMON_FILES_H
#define MO_COMMON_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Write all, going on after signals and short writes. False with errno otherwise, ENOSPC if nothing more is taken. */
bool mo_write_fully(int descriptor, const void *data, size_t bytes);

/* Make a folder and those that it lies in. 0 if all are there; else how many bytes of the path name the one that cannot be
 * made, with errno. */
size_t mo_make_folders(const char *path, mode_t mode);

#endif
