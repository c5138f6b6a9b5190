/* A file system on which MPI-IO cannot write, for tests: loaded before the MPI library (LD_PRELOAD) it changes, by
 * the variable NO_MPI_IO,
 *
 *   lock    byte ranges cannot be locked,
 *   local   locks of other processes are not seen,
 *   open    MPI-IO cannot open files,
 *   write   it cannot write to them,
 *   short   it says that it wrote nothing,
 *   lost    it says that it wrote and has written zeros,
 *   hang    it opens no file and never comes back.
 *
 * Without that variable it changes nothing. NO_MPI_IO_RANK: only on that rank of Open MPI's. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is(const char *what) {
  const char *kind = getenv("NO_MPI_IO"), *only = getenv("NO_MPI_IO_RANK"), *rank = getenv("OMPI_COMM_WORLD_RANK");
  if (only && (!rank || strcmp(only, rank) != 0)) return 0;
  return kind && strcmp(kind, what) == 0;
}

static int lock_file(int descriptor, int command, void *argument, int (*next)(int, int, ...)) {
  if ((command == F_SETLK || command == F_SETLKW) && is("lock")) return errno = ENOLCK, -1;
  int result = next(descriptor, command, argument);
  if (command == F_GETLK && is("local")) ((struct flock *)argument)->l_type = F_UNLCK;
  return result;
}

#define FCNTL(name)                                              \
  int name(int descriptor, int command, ...) {                   \
    va_list arguments;                                           \
    va_start(arguments, command);                                \
    void *argument = va_arg(arguments, void *);                  \
    va_end(arguments);                                           \
    return lock_file(descriptor, command, argument, NEXT(name)); \
  }
FCNTL(fcntl)
FCNTL(fcntl64)

int MPI_File_open(MPI_Comm comm, const char *path, int mode, MPI_Info info, MPI_File *file) {
  while (is("hang")) pause();
  if (is("open")) return MPI_ERR_IO;
  return NEXT(MPI_File_open)(comm, path, mode, info, file);
}

typedef int (*writer)(MPI_File file, MPI_Offset offset, const void *data, int count, MPI_Datatype type,
                      MPI_Status *status);

static int write_at(writer next, MPI_File file, MPI_Offset offset, const void *data, int count, MPI_Datatype type,
                    MPI_Status *status) {
  static const char zeros[4096];
  if (is("write")) return MPI_ERR_IO;
  if (is("short")) return next(file, offset, data, 0, type, status);
  return next(file, offset, is("lost") && count <= (int)sizeof zeros ? zeros : data, count, type, status);
}

int MPI_File_write_at(MPI_File file, MPI_Offset offset, const void *data, int count, MPI_Datatype type,
                      MPI_Status *status) {
  return write_at(NEXT(MPI_File_write_at), file, offset, data, count, type, status);
}

int MPI_File_write_at_all(MPI_File file, MPI_Offset offset, const void *data, int count, MPI_Datatype type,
                          MPI_Status *status) {
  return write_at(NEXT(MPI_File_write_at_all), file, offset, data, count, type, status);
}
