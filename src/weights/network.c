/* A folder on the network: its files, what is known of them, and how the ranks come to know the same. */
#include "moe_outliers/network.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "moe_outliers/clock.h"
#include "moe_outliers/threads.h"
#include "weights/network.h"

#define POLL_SECONDS 0.01
#define TELL_SECONDS 5
#define MOST_HEADER 100000000 /* bytes; the format's limit: what is beyond is not fetched */

/* --- files --- */

static void free_file(mo_network_file_state *file) {
  if (!file) return;
  pthread_mutex_destroy(&file->locating);
  pthread_mutex_destroy(&file->lock);
  free(file->name);
  free(file->path);
  free(file->head);
  free(file->location);
  free(file->cached);
  free(file);
}

mo_network_file_state *mo_network_entry(mo_network *n, const char *name) {
  for (int32_t i = 0; i < n->n_files; i++)
    if (strcmp(n->files[i]->name, name) == 0) return n->files[i];
  mo_network_file_state **files = mo_realloc(n->files, (size_t)n->n_files + 1, sizeof *files);
  if (!files) return NULL;
  n->files = files;
  mo_network_file_state *file = mo_alloc(1, sizeof *file);
  if (!file) return NULL;
  size_t size = strlen(n->address) + strlen(name) + 2;
  pthread_mutex_init(&file->locating, NULL);
  pthread_mutex_init(&file->lock, NULL);
  file->size = -1;
  file->name = mo_strdup(name);
  file->path = mo_alloc(size, 1);
  if (!file->name || !file->path) {
    free_file(file);
    return NULL;
  }
  snprintf(file->path, size, "%s/%s", n->address, name);
  files[n->n_files++] = file;
  return file;
}

/* --- opening and closing --- */

mo_status mo_network_open(mo_network **network, const char *address, const mo_network_options *options) {
  *network = NULL;
  mo_network *n = mo_alloc(1, sizeof *n);
  if (!n) return MO_FAILED;
  pthread_mutex_init(&n->lock, NULL);
  n->patience = options->patience;
  n->tell = options->tell;
  n->stop_event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  mo_status status = mo_network_parse(n, address);
  if (status == MO_OK && n->stop_event < 0)
    status = MO_FAIL(MO_FAILED, "no file descriptor is left: raise the limit of open files (ulimit -n)");
  if (status == MO_OK && options->cache) {
    n->cache_folder = mo_strdup(options->cache);
    if (!n->cache_folder) status = MO_FAILED;
  }
  if (status != MO_OK) {
    mo_network_close(n);
    return status;
  }
  *network = n;
  return MO_OK;
}

void mo_network_close(mo_network *n) {
  if (!n) return;
  mo_network_connections_free(n);
  for (int32_t i = 0; i < n->n_files; i++) free_file(n->files[i]);
  if (n->stop_event >= 0) close(n->stop_event);
  if (n->token) explicit_bzero(n->token, strlen(n->token));
  pthread_mutex_destroy(&n->lock);
  char *const owned[] = {n->address, n->repository,   n->revision, n->endpoint,   n->token,
                         n->base,    n->cache_folder, n->cache,    n->authorities};
  for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) free(owned[i]);
  free(n->files);
  free(n);
}

void mo_network_set_poll(mo_network *n, mo_status (*poll)(void *context), void *context) {
  n->poll = poll;
  n->context = context;
}

void mo_network_interrupt(mo_network *n, bool interrupted) {
  uint64_t value = 1;
  atomic_store(&n->interrupted, interrupted);
  if (interrupted)
    (void)!write(n->stop_event, &value, sizeof value);
  else
    (void)!read(n->stop_event, &value, sizeof value);
}

/* --- fetching side by side, while the caller polls --- */

typedef struct crew crew;
struct crew {
  mo_network *network;
  mo_status (*work)(crew *c, int64_t job);
  void *jobs;
  int64_t n_jobs, next;
  pthread_mutex_t lock;
  pthread_cond_t ended;
  int n_running;
  mo_status status; /* the first failure */
};

static void *work_on(void *argument) {
  crew *c = argument;
  pthread_mutex_lock(&c->lock);
  while (c->status == MO_OK && c->next < c->n_jobs) {
    int64_t job = c->next++;
    pthread_mutex_unlock(&c->lock);
    mo_status status = c->work(c, job);
    pthread_mutex_lock(&c->lock);
    if (c->status == MO_OK) c->status = status;
  }
  c->n_running--;
  pthread_cond_signal(&c->ended);
  pthread_mutex_unlock(&c->lock);
  return NULL;
}

/* What is waited for, where no byte came for long. */
typedef struct {
  int64_t received;
  double since, tell_at;
} patience;

static void tell_wait(mo_network *n, patience *p) {
  char line[500];
  double now = mo_seconds();
  int64_t received = atomic_load(&n->received);
  if (received != p->received) *p = (patience){received, now, now + TELL_SECONDS};
  if (!n->tell || now < p->tell_at) return;
  pthread_mutex_lock(&n->lock);
  double left = n->again_at - now;
  if (!n->waiting[0])
    snprintf(line, sizeof line, "waiting for %.300s: no answer for %.0f s", n->address, now - p->since);
  else if (left > 0)
    snprintf(line, sizeof line, "waiting for %s, asked again in %.0f s", n->waiting, left + 0.5);
  else
    snprintf(line, sizeof line, "waiting for %s, asked again", n->waiting);
  pthread_mutex_unlock(&n->lock);
  n->tell(line);
  p->tell_at = now + (now - p->since); /* less and less often */
}

/* Until all threads have ended; a failure, also of the poll, ends them. */
static mo_status watch(crew *c) {
  mo_network *n = c->network;
  mo_status polled = MO_OK;
  patience p = {.received = -1};
  pthread_mutex_lock(&c->lock);
  while (c->n_running > 0) {
    struct timespec until = mo_deadline(POLL_SECONDS);
    pthread_cond_timedwait(&c->ended, &c->lock, &until);
    bool failed = c->status != MO_OK;
    pthread_mutex_unlock(&c->lock);
    tell_wait(n, &p);
    if (polled == MO_OK && n->poll) polled = n->poll(n->context);
    if (polled != MO_OK || failed) mo_network_interrupt(n, true);
    pthread_mutex_lock(&c->lock);
  }
  pthread_mutex_unlock(&c->lock);
  mo_network_interrupt(n, false);
  return polled != MO_OK ? polled : c->status;
}

static mo_status do_all(crew *c) {
  pthread_t threads[MO_NETWORK_READERS];
  int n = c->n_jobs < MO_NETWORK_READERS ? (int)c->n_jobs : MO_NETWORK_READERS, started = 0;
  mo_network_note_wait(c->network, NULL, NULL, 0);
  pthread_mutex_init(&c->lock, NULL);
  mo_condition_open(&c->ended);
  pthread_mutex_lock(&c->lock);
  while (started < n && mo_thread_start(&threads[started], work_on, c) == 0) started++;
  c->n_running = started;
  pthread_mutex_unlock(&c->lock);
  mo_status status = n == 0 || started > 0
                         ? watch(c)
                         : MO_FAIL(MO_FAILED, "cannot start a thread: raise the limit of processes (ulimit -u)");
  for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
  pthread_mutex_destroy(&c->lock);
  pthread_cond_destroy(&c->ended);
  return status;
}

/* --- what describes the model --- */

typedef struct {
  const char *url, *about;
  char *text;
  int64_t bytes;
} question;

static mo_status answer_question(crew *c, int64_t job) {
  question *q = (question *)c->jobs + job;
  return mo_network_fetch_answer(c->network, q->url, q->about, &q->text, &q->bytes);
}

static mo_status take_commit(mo_network *n, const question *q) {
  json_t *root = json_loadb(q->text, (size_t)q->bytes, 0, NULL);
  const char *sha = json_string_value(json_object_get(root, "sha"));
  bool usable =
      sha && strlen(sha) >= 7 && strlen(sha) < sizeof n->commit && sha[strspn(sha, "0123456789abcdefABCDEF")] == '\0';
  if (usable) strcpy(n->commit, sha);
  json_decref(root);
  if (!usable)
    return MO_FAIL(MO_INVALID, "the hub does not say which commit that is (%s): check HF_ENDPOINT", n->address);
  return MO_OK;
}

mo_status mo_network_connect(mo_network *n) {
  char *url = mo_network_commit_url(n);
  question q = {.url = url, .about = n->address};
  crew c = {.network = n, .work = answer_question, .jobs = &q, .n_jobs = 1};
  mo_status status = url ? do_all(&c) : MO_OK;
  if (url && status == MO_OK) status = take_commit(n, &q);
  free(url);
  free(q.text);
  MO_TRY(status);
  MO_TRY(mo_network_set_base(n));
  return mo_network_cache_open(n, n->cache_folder);
}

static mo_status fetch_whole(crew *c, int64_t job) {
  (void)job;
  return mo_network_fetch_whole(c->network, c->jobs);
}

mo_status mo_network_file(mo_network *n, const char *name, const char **text, size_t *bytes) {
  mo_network_file_state *file = mo_network_entry(n, name);
  *text = NULL;
  *bytes = 0;
  if (!file) return MO_FAILED;
  crew c = {.network = n, .work = fetch_whole, .jobs = file, .n_jobs = 1};
  if (!file->fetched) MO_TRY(do_all(&c));
  file->fetched = true;
  if (file->missing) return MO_OK;
  *text = file->head;
  *bytes = (size_t)file->head_bytes;
  return MO_OK;
}

/* The length in the first eight bytes, then so many; what is wrong with them is left to the reader of headers. */
static mo_status fetch_header(crew *c, int64_t job) {
  mo_network_file_state *file = ((mo_network_file_state **)c->jobs)[job];
  int64_t got;
  uint64_t bytes = 0;
  char first[8];
  MO_TRY(mo_network_fetch_range(c->network, file, 0, 8, first, MO_INVALID, &got));
  for (int i = 7; i >= 0; i--) bytes = bytes << 8 | (unsigned char)first[i];
  bool sound = got == 8 && bytes <= MOST_HEADER && (int64_t)bytes <= file->size - 8;
  int64_t more = sound ? (int64_t)bytes : 0;
  file->head = mo_alloc((size_t)(8 + more), 1);
  if (!file->head) return MO_FAILED;
  memcpy(file->head, first, (size_t)got);
  file->head_bytes = got;
  MO_TRY(mo_network_fetch_range(c->network, file, 8, more, file->head + 8, MO_INVALID, &got));
  file->head_bytes += got;
  return MO_OK;
}

mo_status mo_network_headers(mo_network *n, const char *const *names, int64_t n_names) {
  mo_network_file_state **wanted = mo_alloc((size_t)n_names, sizeof *wanted);
  crew c = {.network = n, .work = fetch_header, .jobs = wanted};
  mo_status status = wanted ? MO_OK : MO_FAILED;
  for (int64_t i = 0; status == MO_OK && i < n_names; i++) {
    mo_network_file_state *file = mo_network_entry(n, names[i]);
    if (!file) status = MO_FAILED;
    if (file && !file->fetched) wanted[c.n_jobs++] = file;
  }
  if (status == MO_OK && c.n_jobs > 0) status = do_all(&c);
  for (int64_t i = 0; status == MO_OK && i < c.n_jobs; i++) wanted[i]->fetched = true;
  free(wanted);
  return status;
}

/* --- from one rank to the others --- */

static void put_bytes(FILE *out, const void *data, int64_t bytes) {
  fwrite(&bytes, sizeof bytes, 1, out);
  if (bytes > 0) fwrite(data, 1, (size_t)bytes, out);
}

static void put_text(FILE *out, const char *text) { put_bytes(out, text, text ? (int64_t)strlen(text) : -1); }

static void put_file(FILE *out, const mo_network_file_state *file) {
  const int64_t numbers[] = {file->missing, file->size, file->linked, file->direct};
  put_text(out, file->name);
  put_bytes(out, numbers, sizeof numbers);
  put_text(out, file->etag);
  put_text(out, file->location);
  put_bytes(out, file->head, file->head ? file->head_bytes : -1);
}

mo_status mo_network_pack(mo_network *n, void **data, size_t *bytes) {
  char *text = NULL;
  int64_t numbers[2] = {0, atomic_load(&n->answered)};
  *data = NULL;
  FILE *out = open_memstream(&text, bytes);
  if (!out) return MO_FAIL(MO_FAILED, "out of memory (network): free some memory");
  put_text(out, n->endpoint);
  put_text(out, n->token);
  put_text(out, n->commit);
  for (int32_t i = 0; i < n->n_files; i++) numbers[0] += n->files[i]->fetched;
  put_bytes(out, numbers, sizeof numbers);
  for (int32_t i = 0; i < n->n_files; i++)
    if (n->files[i]->fetched) put_file(out, n->files[i]);
  bool whole = !ferror(out);
  if (fclose(out) == 0 && whole) {
    *data = text;
    return MO_OK;
  }
  free(text);
  return MO_FAIL(MO_FAILED, "out of memory (network): free some memory");
}

typedef struct {
  const char *at, *end;
  bool broken;
} parcel;

/* *bytes: -1 for NULL. */
static const char *take_bytes(parcel *p, int64_t *bytes) {
  const char *data = p->at + sizeof *bytes;
  p->broken = p->broken || p->end - p->at < (int64_t)sizeof *bytes;
  *bytes = -1;
  if (p->broken) return NULL;
  memcpy(bytes, p->at, sizeof *bytes);
  p->broken = *bytes > p->end - data;
  if (p->broken) *bytes = -1;
  p->at = data + (*bytes > 0 ? *bytes : 0);
  return *bytes < 0 ? NULL : data;
}

/* Malloc'ed; NULL: there is none. Terminated, beside the bytes that it has. */
static char *take_copy(parcel *p, int64_t *bytes) {
  const char *data = take_bytes(p, bytes);
  char *copy = data ? mo_alloc((size_t)*bytes + 1, 1) : NULL;
  p->broken = p->broken || (data && !copy);
  if (copy && *bytes > 0) memcpy(copy, data, (size_t)*bytes);
  return copy;
}

static void take_numbers(parcel *p, int64_t *numbers, int64_t bytes) {
  int64_t found;
  const char *data = take_bytes(p, &found);
  p->broken = p->broken || found != bytes;
  if (!p->broken) memcpy(numbers, data, (size_t)bytes);
}

static mo_status take_file(mo_network *n, parcel *p) {
  int64_t length, numbers[4] = {0};
  char *name = take_copy(p, &length);
  mo_network_file_state *file = name ? mo_network_entry(n, name) : NULL;
  free(name);
  if (!file) return MO_FAILED;
  take_numbers(p, numbers, sizeof numbers);
  char *etag = take_copy(p, &length);
  file->missing = numbers[0] != 0;
  file->size = numbers[1];
  file->linked = numbers[2] != 0;
  file->direct = numbers[3] != 0;
  snprintf(file->etag, sizeof file->etag, "%s", etag ? etag : "");
  free(etag);
  file->location = take_copy(p, &length);
  file->head = take_copy(p, &file->head_bytes);
  file->fetched = true;
  return MO_OK;
}

static mo_status take_all(mo_network *n, parcel *p) {
  int64_t length, numbers[2] = {0};
  free(n->endpoint);
  free(n->token);
  n->endpoint = take_copy(p, &length);
  n->token = take_copy(p, &length);
  char *commit = take_copy(p, &length);
  snprintf(n->commit, sizeof n->commit, "%s", commit ? commit : "");
  free(commit);
  take_numbers(p, numbers, sizeof numbers);
  if (numbers[1]) atomic_store(&n->answered, true);
  for (int64_t i = 0; !p->broken && i < numbers[0]; i++) MO_TRY(take_file(n, p));
  return MO_OK;
}

mo_status mo_network_unpack(mo_network *n, const void *data, size_t bytes) {
  parcel p = {.at = data, .end = (const char *)data + bytes};
  MO_TRY(take_all(n, &p));
  if (p.broken || !n->endpoint)
    return MO_FAIL(MO_FAILED, "what rank 0 found of %s did not arrive: check the network between the ranks",
                   n->address);
  MO_TRY(mo_network_set_base(n));
  return mo_network_cache_open(n, n->cache_folder);
}

/* --- what others ask --- */

mo_status mo_network_read(mo_network *n, mo_network_file_state *file, int64_t offset, int64_t bytes, void *buffer) {
  int64_t got;
  MO_TRY(mo_network_fetch_range(n, file, offset, bytes, buffer, MO_FAILED, &got));
  if (got == bytes) return MO_OK;
  return MO_FAIL(MO_FAILED, "file %s ends at byte %lld, expected %lld: it changed on the server, run again", file->path,
                 (long long)(offset + got), (long long)(offset + bytes));
}

const char *mo_network_address(const mo_network *n) { return n->address; }
const char *mo_network_commit(const mo_network *n) { return n->commit; }
int64_t mo_network_received(const mo_network *n) { return atomic_load(&n->received); }

void mo_network_identify(const mo_network *n, FILE *out) {
  if (n->repository)
    fprintf(out, "checkpoint = hf://%s, commit %s\n", n->repository, n->commit);
  else
    fprintf(out, "checkpoint = %s\n", n->address);
  for (int32_t i = 0; i < n->n_files; i++) {
    const mo_network_file_state *f = n->files[i];
    if (!f->fetched || f->missing) continue;
    fprintf(out, "checkpoint file %s = %" PRId64 " bytes", f->name, f->size);
    if (!n->repository) fprintf(out, " of %s", f->etag[0] ? f->etag : "unknown version");
    fprintf(out, ", beginning with %016" PRIx64 "\n", mo_tensor_sum(f->head, 0, f->head_bytes));
  }
}
