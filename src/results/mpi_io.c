#include "moe_outliers/mpi_io.h"

#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipeline/comm_mpi.h"

enum {
  BLOCK = 32, /* bytes that a rank writes in each of two ways; those of several ranks share a page of any cache */
  TRIES = 40, /* for another node to see a new file, PAUSE microseconds apart */
  PAUSE = 50000
};

static const char name_pattern[] = "/.moe-outliers-XXXXXX";
static char *volatile in_use; /* path of the file that this process has made */

typedef struct {
  mo_comm *comm;
  char *path;
  int rank, size, descriptor;
  mo_mpi_io mine;
} trial;

/* Keep what was found first. */
static void note(trial *t, mo_mpi_io_state state, const char *what, const char *why) {
  if (t->mine.state != MO_MPI_IO_WORKS) return;
  char host[64] = "";
  (void)gethostname(host, sizeof host - 1);
  t->mine.state = (int32_t)state;
  snprintf(t->mine.why, sizeof t->mine.why, "%s on rank %d, %s: %.200s", what, t->rank, host, why);
}

/* End of a step: what the first of the ranks with the worst state found, on all of them. */
static mo_status settle(trial *t) {
  void *all;
  size_t bytes;
  MO_TRY(mo_comm_gather(t->comm, &t->mine, sizeof t->mine, &all, &bytes));
  const mo_mpi_io *of_rank = all;
  for (int rank = 0; of_rank && rank < t->size; rank++)
    if (of_rank[rank].state > t->mine.state) t->mine = of_rank[rank];
  free(all);
  return mo_comm_broadcast(t->comm, &t->mine, sizeof t->mine, 0);
}

/* --- the file --- */

/* Blocks of the ranks side by side, written by a collective call, which may rewrite gaps, then as many by calls of
 * their own. */
static size_t file_bytes(const trial *t) { return (size_t)t->size * 2 * BLOCK; }

static unsigned char content(int64_t at) { return (unsigned char)(1 + (7 * at + at / BLOCK) % 251); }

static int write_zeros(int descriptor, size_t bytes) {
  static const char zeros[4096];
  while (bytes > 0) {
    ssize_t n = write(descriptor, zeros, bytes < sizeof zeros ? bytes : sizeof zeros);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0 ? EIO : errno;
    bytes -= (size_t)n;
  }
  return 0;
}

/* Rank 0: with its bytes, so that no trial meets a full disk. */
static void make_file(trial *t) {
  int descriptor = mkstemp(t->path), error = descriptor < 0 ? errno : 0;
  if (!error) in_use = t->path;
  if (!error) error = write_zeros(descriptor, file_bytes(t));
  if (descriptor >= 0 && close(descriptor) != 0 && !error) error = errno;
  if (error) note(t, MO_MPI_IO_UNTRIED, "a small test file cannot be written", strerror(error));
}

void mo_mpi_io_give_up(void) {
  char *path = in_use;
  in_use = NULL;
  if (path) (void)unlink(path);
}

/* Folder of the results and the name that rank 0 has chosen. */
static mo_status share_name(trial *t) {
  size_t suffix = strlen(t->path) - 6;
  MO_TRY(mo_comm_broadcast(t->comm, t->path + suffix, 6, 0));
  return settle(t);
}

static void open_file(trial *t) {
  for (int i = 0; i < TRIES && t->descriptor < 0; i++) {
    if (i) usleep(PAUSE);
    t->descriptor = open(t->path, O_RDWR | O_CLOEXEC);
    if (t->descriptor < 0 && errno != ENOENT && errno != ESTALE) break;
  }
  if (t->descriptor < 0) note(t, MO_MPI_IO_NOT_SHARED, "a file that rank 0 has just made is not seen", strerror(errno));
}

/* --- locks --- */

static struct flock block_of(int rank) {
  return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)rank * BLOCK, .l_len = BLOCK};
}

static void lock_block(trial *t) {
  struct flock lock = block_of(t->rank);
  if (fcntl(t->descriptor, F_SETLK, &lock) != 0)
    note(t, MO_MPI_IO_NO_LOCKS, "byte ranges cannot be locked (fcntl)", strerror(errno));
}

/* The next rank holds its own by now. */
static void find_lock(trial *t) {
  struct flock lock = block_of((t->rank + 1) % t->size);
  if (t->size == 1) return;
  if (fcntl(t->descriptor, F_GETLK, &lock) != 0)
    note(t, MO_MPI_IO_NO_LOCKS, "locks cannot be looked up (fcntl)", strerror(errno));
  else if (lock.l_type == F_UNLCK)
    note(t, MO_MPI_IO_NO_LOCKS, "locks of other ranks are not seen",
         "they are local to each node (nolock, local_lock)");
}

static mo_status try_locks(trial *t) {
  lock_block(t);
  MO_TRY(settle(t));
  if (t->mine.state == MO_MPI_IO_WORKS) {
    find_lock(t);
    MO_TRY(settle(t));
  }
  return MO_OK;
}

/* --- MPI-IO --- */

static void note_mpi(trial *t, const char *what, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  if (code == MPI_SUCCESS) return;
  MPI_Error_string(code, text, &length);
  note(t, MO_MPI_IO_BROKEN, what, text);
}

static void check_count(trial *t, const MPI_Status *status) {
  int count = 0;
  if (MPI_Get_count(status, MPI_BYTE, &count) != MPI_SUCCESS || count != BLOCK)
    note(t, MO_MPI_IO_BROKEN, "MPI-IO wrote too little", "it says so itself");
}

static void write_block(trial *t, MPI_File file, bool together) {
  MPI_Status status;
  unsigned char block[BLOCK];
  MPI_Offset at = (MPI_Offset)(together ? t->rank : t->size + t->rank) * BLOCK;
  for (int i = 0; i < BLOCK; i++) block[i] = content(at + i);
  int code = together ? MPI_File_write_at_all(file, at, block, BLOCK, MPI_BYTE, &status)
                      : MPI_File_write_at(file, at, block, BLOCK, MPI_BYTE, &status);
  note_mpi(t, together ? "MPI-IO cannot write together" : "MPI-IO cannot write", code);
  if (code == MPI_SUCCESS) check_count(t, &status);
}

/* A rank that failed does not take part in what follows: then the file is left open for ever by all. */
static mo_status try_mpi_io(trial *t) {
  MPI_File file;
  note_mpi(t, "MPI-IO cannot open a file",
           MPI_File_open(mo_comm_mpi(t->comm), t->path, MPI_MODE_RDWR, MPI_INFO_NULL, &file));
  MO_TRY(settle(t));
  if (t->mine.state != MO_MPI_IO_WORKS) return MO_OK;
  write_block(t, file, true);
  write_block(t, file, false);
  MO_TRY(settle(t));
  if (t->mine.state != MO_MPI_IO_WORKS) return MO_OK;
  note_mpi(t, "MPI-IO cannot close a file", MPI_File_close(&file));
  return settle(t);
}

/* All that the ranks wrote, as every rank sees it by other means. */
static mo_status check_content(trial *t) {
  size_t bytes = file_bytes(t), n = 0;
  unsigned char *data = mo_alloc(bytes, 1);
  if (!data) return MO_FAILED;
  int descriptor = open(t->path, O_RDONLY | O_CLOEXEC);
  while (descriptor >= 0 && n < bytes) {
    ssize_t got = read(descriptor, data + n, bytes - n);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    n += (size_t)got;
  }
  if (descriptor >= 0) close(descriptor);
  size_t good = 0;
  while (good < n && data[good] == content((int64_t)good)) good++;
  free(data);
  char who[80];
  snprintf(who, sizeof who, "MPI-IO's bytes of rank %zu are not in the file", good / BLOCK % (size_t)t->size);
  if (good < bytes) note(t, MO_MPI_IO_BROKEN, who, "no error was reported");
  return MO_OK;
}

/* --- the trial --- */

static mo_status try_all(trial *t, bool through_mpi) {
  if (t->rank == 0) make_file(t);
  MO_TRY(share_name(t));
  if (t->mine.state != MO_MPI_IO_WORKS) return MO_OK;
  open_file(t);
  MO_TRY(settle(t));
  if (t->mine.state != MO_MPI_IO_WORKS) return MO_OK;
  MO_TRY(try_locks(t));
  close(t->descriptor); /* MPI-IO may open and close the same file, which drops this process's locks anyway */
  t->descriptor = -1;
  if (t->mine.state != MO_MPI_IO_WORKS || !through_mpi) return MO_OK;
  MO_TRY(try_mpi_io(t));
  if (t->mine.state != MO_MPI_IO_WORKS) return MO_OK;
  mo_status status = check_content(t);
  return status == MO_OK ? settle(t) : status;
}

mo_status mo_mpi_io_probe(mo_mpi_io *found, mo_comm *comm, const char *path, bool through_mpi) {
  trial t = {.comm = comm, .rank = mo_comm_rank(comm), .size = mo_comm_size(comm), .descriptor = -1};
  *found = (mo_mpi_io){0};
  char *folder = mo_folder_of(path);
  size_t bytes = folder ? strlen(folder) + sizeof name_pattern : 1;
  t.path = mo_alloc(bytes, 1);
  mo_status status = folder && t.path ? MO_OK : MO_FAILED;
  if (status == MO_OK) {
    snprintf(t.path, bytes, "%s%s", folder, name_pattern);
    status = try_all(&t, through_mpi);
  }
  if (t.descriptor >= 0) close(t.descriptor);
  mo_mpi_io_give_up();
  free(folder);
  free(t.path);
  *found = t.mine;
  return status;
}
