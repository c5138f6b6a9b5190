/* Reads that end well in spite of the network: redirects to signed addresses are kept until they expire, what was
 * cut off is gone on with at the byte reached, and a server that is busy is given time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/patience.h"
#include "moe_outliers/clock.h"
#include "weights/network.h"

#define PATIENCE_WITH_NOBODY 15.0 /* where no server has answered yet: more likely the address is wrong */

#define CHECK_PROXY "check the proxy (http_proxy, https_proxy, no_proxy)"

enum { FEWEST_TRIES = 3, MOST_HOPS = 6, MOST_WRONG = 4, MOST_REFUSED = 8 };

/* A read: of a file of the folder, or of another address of the hub. */
typedef struct {
  mo_network *network;
  mo_network_file_state *file; /* NULL: of `url` */
  char *url;                   /* the first address */
  const char *path;            /* for messages */
  mo_status code;              /* of errors */
  mo_exchange x;
  int64_t at, end; /* bytes of a range; end -1: the whole file */
  char *to;        /* where the byte `at` belongs; of a whole file malloc'ed */
  bool missing;    /* HTTP 404, of a file in a folder that is there */

  double since; /* of the last byte, of a whole file the last that had not come before */
  int64_t most; /* bytes of a whole file that came at once */
  int tries;    /* without a byte, ... */
  int wrong;    /* ... of them answered wrongly */
  int hops;     /* redirects since */
  char why[260];
} request;

/* --- errors --- */

static mo_status give_up(const request *r, const char *advice) {
  double seconds = mo_seconds() - r->since;
  char tries[60] = "";
  if (r->tries > 1) snprintf(tries, sizeof tries, ", %d times in %.0f s", r->tries, seconds);
  if (r->end < 0) return MO_FAIL(r->code, "cannot read %s: %s%s: %s", r->path, r->why, tries, advice);
  return MO_FAIL(r->code, "cannot read bytes %lld to %lld of file %s: %s%s: %s", (long long)r->at, (long long)r->end,
                 r->path, r->why, tries, advice);
}

static mo_status changed(const request *r) {
  return MO_FAIL(
      r->code,
      "file %s changed on the server while it was read, at byte %lld: run again, with --fresh if results were saved",
      r->path, (long long)r->at);
}

/* What the hub says with 401, 403 and 404. */
static mo_status refused_by_hub(const request *r) {
  const mo_network *n = r->network;
  const char *what = r->x.error_code;
  int status = r->x.status;
  bool token = n->token != NULL;
  if (strcmp(what, "GatedRepo") == 0)
    return MO_FAIL(r->code,
                   "the hub gives %s only to those who accepted its terms, HTTP %d (%s): accept them at %s/%s and %s",
                   n->repository, status, r->path, n->endpoint, n->repository,
                   token ? "use a token of that account (HF_TOKEN)" : "set HF_TOKEN");
  if (strcmp(what, "RevisionNotFound") == 0 || (status == 404 && strcmp(what, "RepoNotFound") != 0 && !r->file))
    return MO_FAIL(r->code, "the hub has no revision \"%.100s\" of %s, HTTP %d (%s): check model.path", n->revision,
                   n->repository, status, r->path);
  if (strcmp(what, "RepoNotFound") == 0 || status == 404)
    return MO_FAIL(r->code, "the hub shows no model %s, HTTP %d (%s): check the name and, if it is private, %s",
                   n->repository, status, r->path, token ? "the token (HF_TOKEN)" : "set HF_TOKEN");
  return MO_FAIL(
      r->code, "the hub refuses access to %s, HTTP %d (%s): %s", n->repository, status, r->path,
      token ? "the token is not accepted for it, set another (HF_TOKEN)" : "set HF_TOKEN to a token that may read it");
}

static mo_status refused(const request *r) {
  int status = r->x.status;
  if (r->network->repository && (status == 401 || status == 403 || status == 404)) return refused_by_hub(r);
  return MO_FAIL(r->code, "the server answers HTTP %d%s (%s): check the address", status,
                 status == 404                    ? ", not found"
                 : status == 401 || status == 403 ? ", access refused"
                                                  : "",
                 r->path);
}

/* --- patience --- */

static double backoff(int tries) {
  double fraction = 1e6 * mo_seconds();
  return mo_backoff(tries) *
         (0.75 + 0.25 * (fraction - (double)(int64_t)fraction)); /* readers that failed together part */
}

/* r->why: what failed. Wait for the next try, or give up. */
static mo_status wait_and_see(request *r, double at_least) {
  mo_network *n = r->network;
  double patience = n->patience, spent = mo_seconds() - r->since;
  bool nobody = !atomic_load(&n->answered);
  r->tries++;
  if (nobody && r->tries >= FEWEST_TRIES && patience > PATIENCE_WITH_NOBODY) patience = PATIENCE_WITH_NOBODY;
  double wait = backoff(r->tries), left = patience - spent;
  if (wait < at_least) wait = at_least;
  if (left <= 0)
    return give_up(r, r->x.proxy                   ? CHECK_PROXY
                      : nobody || r->x.unreachable ? "check the address and the network"
                                                   : "check the network, and run again to go on");
  if (wait > left) wait = left;
  mo_network_note_wait(n, r->path, r->why, wait);
  return mo_network_nap(n, wait);
}

/* An answer that is not an answer: a few times it is taken for an accident. */
static mo_status answered_wrongly(request *r, const char *advice) {
  if (++r->wrong < MOST_WRONG) return wait_and_see(r, 0);
  r->tries++;
  return give_up(r, advice);
}

/* --- where the file is --- */

/* *location: a copy of the signed address, NULL: not known. */
static mo_status copy_location(request *r, char **location, int64_t *generation) {
  mo_network_file_state *f = r->file;
  *location = NULL;
  if (!f) return MO_OK;
  pthread_mutex_lock(&f->lock);
  bool known = f->location != NULL;
  *generation = f->generation;
  if (known) *location = mo_strdup(f->location);
  r->x.size = f->size;
  pthread_mutex_unlock(&f->lock);
  return known && !*location ? MO_FAILED : MO_OK;
}

static void set_location(mo_network_file_state *f, const char *location) {
  pthread_mutex_lock(&f->lock);
  free(f->location);
  f->location = location ? strdup(location) : NULL; /* without memory it is asked for again */
  f->generation++;
  pthread_mutex_unlock(&f->lock);
}

/* It has expired: ask for another, unless somebody did. */
static void forget_location(mo_network_file_state *f, int64_t generation) {
  pthread_mutex_lock(&f->lock);
  if (f->generation == generation) {
    free(f->location);
    f->location = NULL;
    f->generation++;
  }
  pthread_mutex_unlock(&f->lock);
}

static void note_direct(mo_network_file_state *f, int status) {
  if (status != 200 && status != 206) return;
  pthread_mutex_lock(&f->lock);
  f->direct = true;
  pthread_mutex_unlock(&f->lock);
}

/* What the answer says of the file agrees with what is known of it, and is known from now on. */
static bool learn(request *r, const char *etag, bool linked, int64_t size) {
  mo_network_file_state *f = r->file;
  if (!f) return true;
  pthread_mutex_lock(&f->lock);
  bool same = (size < 0 || f->size < 0 || f->size == size) &&
              (!etag[0] || !f->etag[0] || f->linked != linked || strcmp(f->etag, etag) == 0);
  if (same && size >= 0) f->size = size;
  if (same && etag[0] && (!f->etag[0] || (linked && !f->linked))) {
    snprintf(f->etag, sizeof f->etag, "%s", etag);
    f->linked = linked;
  }
  pthread_mutex_unlock(&f->lock);
  return same;
}

/* --- one exchange and what follows from it --- */

static mo_status send(request *r, const char *url, char etag[static MO_ETAG_BYTES]) {
  mo_network *n = r->network;
  etag[0] = '\0';
  if (r->file) {
    pthread_mutex_lock(&r->file->lock);
    if (!r->file->linked) memcpy(etag, r->file->etag, MO_ETAG_BYTES);
    r->x.size = r->file->size;
    pthread_mutex_unlock(&r->file->lock);
  }
  r->x.url = url;
  r->x.etag = etag;
  r->x.with_token = mo_network_same_origin(url, n->endpoint);
  r->x.from = r->at;
  r->x.bytes = r->end < 0 ? -1 : r->end - r->at;
  r->x.to = r->to;
  if (r->x.with_token && mo_network_held(n) > 0) MO_TRY(mo_network_nap(n, mo_network_held(n)));
  mo_status status = mo_network_exchange(n, &r->x);
  if (r->end < 0) r->to = r->x.to;
  return status;
}

/* Bytes came: patience begins anew. A whole file comes from its first byte each time: only more of it is progress. */
static void note_progress(request *r) {
  bool whole = r->end < 0;
  r->hops = 0;
  if (whole && r->x.got <= r->most) return;
  r->most = r->x.got;
  r->since = mo_seconds();
  r->tries = r->wrong = 0;
  mo_network_note_wait(r->network, NULL, NULL, 0);
  if (whole) return;
  r->at += r->x.got;
  r->to += r->x.got;
}

static mo_status follow(request *r, char **url) {
  if (++r->hops > MOST_HOPS) {
    snprintf(r->why, sizeof r->why, "%d redirects", r->hops);
    return give_up(r, "check the address");
  }
  if (mo_network_is_secure(*url) && !mo_network_is_secure(r->x.redirect)) {
    snprintf(r->why, sizeof r->why, "a redirect from https to http");
    return give_up(r, "check the address");
  }
  if (!learn(r, r->x.linked_etag, true, r->x.linked_etag[0] ? r->x.linked_size : -1)) return changed(r);
  free(*url);
  *url = r->x.redirect;
  r->x.redirect = NULL;
  return MO_OK;
}

/* HTTP 200 or 206, whole or not. *done: nothing is left to read. */
static mo_status take_bytes(request *r, bool *done) {
  mo_exchange *x = &r->x;
  if (x->answer == MO_ANSWER_CHANGED) return changed(r);
  if (x->answer == MO_ANSWER_NO_RANGES) {
    snprintf(r->why, sizeof r->why, "the server does not give ranges of bytes");
    return answered_wrongly(r, "use one that does");
  }
  if (x->answer != MO_ANSWER_FITS) {
    snprintf(r->why, sizeof r->why, "the server gave bytes %lld to %lld of %lld, which were not asked for",
             (long long)x->answered_from, (long long)x->answered_end, (long long)x->total);
    if (x->bytes < 0) snprintf(r->why, sizeof r->why, "the file is too long");
    return answered_wrongly(r, "check the server");
  }
  int64_t all = r->end < 0 ? x->length : x->answered_end - x->from;
  bool complete = !x->failed && (all < 0 || x->got == all);
  if (!learn(r, x->linked_etag[0] ? x->linked_etag : x->answered_etag, x->linked_etag[0] != '\0',
             r->end < 0 ? -1 : x->total))
    return changed(r);
  if (x->got > 0) note_progress(r);
  *done = complete;
  if (complete) return MO_OK;
  snprintf(r->why, sizeof r->why, "%.240s", x->failed ? x->trouble : "the server sent fewer bytes than it promised");
  return x->got > 0 && r->end >= 0 ? MO_OK : wait_and_see(r, 0);
}

static mo_status try_again(request *r) {
  mo_exchange *x = &r->x;
  if (x->status) {
    snprintf(r->why, sizeof r->why, "the server answers HTTP %d", x->status);
    if (x->with_token && x->retry_after > 0)
      mo_network_hold(r->network, x->retry_after < r->network->patience ? x->retry_after : 0);
  } else {
    snprintf(r->why, sizeof r->why, "%.240s", x->trouble);
  }
  if (x->hopeless) return give_up(r, x->proxy ? CHECK_PROXY : "check the address and the certificates of this machine");
  return wait_and_see(r, x->retry_after);
}

static bool is_busy(int status) { return status == 408 || status == 429 || status >= 500; }

/* The one with bytes, or without; at: the address that answered, which was signed. *done as above. */
static mo_status take_answer(request *r, bool is_signed, int64_t generation, bool *done) {
  mo_exchange *x = &r->x;
  if (x->status == 200 || x->status == 206) return take_bytes(r, done);
  if (!x->status || is_busy(x->status) || x->failed) return try_again(r);
  if (x->status == 416 && x->total >= 0) { /* it has no byte there */
    if (!learn(r, "", false, x->total) || r->at < x->total) return changed(r);
    *done = true;
    return MO_OK;
  }
  if (is_signed) {
    forget_location(r->file, generation);
    snprintf(r->why, sizeof r->why, "the host behind the signed address answers HTTP %d", x->status);
    if (r->wrong++ == 0) return MO_OK; /* it was kept for long, or others used it up */
    return r->wrong <= MOST_REFUSED ? wait_and_see(r, 0)
                                    : give_up(r, "check the network, and the clock of this machine");
  }
  if (r->file && x->status == 404 && (!x->error_code[0] || strcmp(x->error_code, "EntryNotFound") == 0)) {
    r->missing = *done = true;
    return MO_OK;
  }
  return refused(r);
}

/* The folder's own address: it has the bytes, or says where they are, which is kept for the next reads too. */
static mo_status ask_folder(request *r, bool *done) {
  char etag[MO_ETAG_BYTES], *url = mo_strdup(r->url);
  mo_status status = url ? send(r, url, etag) : MO_FAILED;
  bool moved = status == MO_OK && r->x.redirect;
  if (moved) status = follow(r, &url);
  if (moved && status == MO_OK && r->file) {
    set_location(r->file, url);
  } else if (moved && status == MO_OK) {
    free(r->url);
    r->url = url;
    return MO_OK;
  } else if (status == MO_OK) {
    if (r->file) note_direct(r->file, r->x.status);
    status = take_answer(r, false, 0, done);
  }
  free(url);
  return status;
}

/* Readers of one file that has no address ask for it one after the other, so that one answer serves all. */
static mo_status ask_in_turn(request *r, bool *done) {
  mo_network_file_state *f = r->file;
  if (!f) return ask_folder(r, done);
  pthread_mutex_lock(&f->lock);
  bool direct = f->direct;
  pthread_mutex_unlock(&f->lock);
  if (direct) return ask_folder(r, done);
  pthread_mutex_lock(&f->locating);
  pthread_mutex_lock(&f->lock);
  bool known = f->location != NULL || f->direct;
  pthread_mutex_unlock(&f->lock);
  mo_status status = known ? MO_OK : ask_folder(r, done);
  pthread_mutex_unlock(&f->locating);
  return status;
}

static mo_status run(request *r) {
  bool done = false;
  r->since = mo_seconds();
  while (!done) {
    char *location, etag[MO_ETAG_BYTES];
    int64_t generation;
    if (r->end >= 0 && r->at >= r->end) break;
    if (atomic_load(&r->network->interrupted)) return MO_STOPPED;
    MO_TRY(copy_location(r, &location, &generation));
    mo_status status;
    if (!location) {
      status = ask_in_turn(r, &done);
    } else {
      status = send(r, location, etag);
      if (status == MO_OK && r->x.redirect) { /* signed addresses may lead on */
        status = follow(r, &location);
        if (status == MO_OK) set_location(r->file, location);
      } else if (status == MO_OK) {
        status = take_answer(r, true, generation, &done);
      }
    }
    free(location);
    free(r->x.redirect);
    r->x.redirect = NULL;
    MO_TRY(status);
  }
  return MO_OK;
}

/* --- the reads --- */

static mo_status read_range(mo_network *n, mo_network_file_state *file, int64_t offset, int64_t bytes, char *buffer,
                            mo_status code, int64_t *got) {
  request r = {
      .network = n, .file = file, .path = file->path, .code = code, .at = offset, .end = offset + bytes, .to = buffer};
  *got = 0;
  r.url = mo_network_url(n, file->name);
  if (!r.url) return MO_FAILED;
  mo_status status = run(&r);
  free(r.url);
  MO_TRY(status);
  if (r.missing) {
    if (code == MO_INVALID) file->missing = true;
    if (code == MO_INVALID) return MO_OK;
    return MO_FAIL(code, "file %s has gone from the server: run again, with --fresh if results were saved", file->path);
  }
  *got = r.at - offset;
  mo_network_cache_write(n, file, offset, *got, buffer);
  return MO_OK;
}

mo_status mo_network_fetch_range(mo_network *n, mo_network_file_state *file, int64_t offset, int64_t bytes,
                                 void *buffer, mo_status code, int64_t *got) {
  *got = 0;
  while (*got < bytes) {
    int64_t part, next;
    char *to = (char *)buffer + *got;
    mo_network_cache_read(n, file, offset + *got, bytes - *got, to, &part, &next);
    if (part == 0) {
      MO_TRY(read_range(n, file, offset + *got, next - offset - *got, to, code, &part));
      if (part < next - offset - *got) { /* the file ends, or is missing */
        *got += part;
        return MO_OK;
      }
    }
    *got += part;
  }
  return MO_OK;
}

/* The files that are fetched as a whole are JSON. A page, of a portal for example, must not stay in the cache. */
static bool is_object(const char *text, int64_t bytes) {
  while (bytes > 0 && strchr(" \t\r\n", *text)) text++, bytes--;
  return bytes > 0 && *text == '{';
}

mo_status mo_network_fetch_whole(mo_network *n, mo_network_file_state *file) {
  file->missing = mo_network_cache_knows_missing(n, file);
  if (file->missing || mo_network_cache_whole(n, file, &file->head, &file->head_bytes)) return MO_OK;
  request r = {.network = n, .file = file, .path = file->path, .code = MO_INVALID, .end = -1};
  r.url = mo_network_url(n, file->name);
  if (!r.url) return MO_FAILED;
  mo_status status = run(&r);
  free(r.url);
  file->missing = r.missing;
  if (r.missing && strcmp(r.x.error_code, "EntryNotFound") == 0) mo_network_cache_note_missing(n, file);
  if (status != MO_OK || r.missing) {
    free(r.to);
    return status;
  }
  file->head = r.to ? r.to : mo_alloc(1, 1);
  file->head_bytes = file->size = r.x.got;
  if (!file->head) return MO_FAILED;
  if (is_object(file->head, file->head_bytes)) mo_network_cache_write(n, file, 0, file->size, file->head);
  return MO_OK;
}

mo_status mo_network_fetch_answer(mo_network *n, const char *url, const char *about, char **text, int64_t *bytes) {
  request r = {.network = n, .path = about, .code = MO_INVALID, .end = -1};
  *text = NULL;
  r.url = mo_strdup(url);
  if (!r.url) return MO_FAILED;
  mo_status status = run(&r);
  free(r.url);
  *text = r.to ? r.to : mo_alloc(1, 1);
  *bytes = r.x.got;
  return status == MO_OK && !*text ? MO_FAILED : status;
}
