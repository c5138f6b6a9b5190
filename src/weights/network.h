/* Private to the room: a folder on the network. network_address.c says what its files are called, network_transfer.c
 * makes one request, network_read.c as many as it takes, network_cache.c keeps what came, network.c knows the files. */
#ifndef MO_WEIGHTS_NETWORK_H
#define MO_WEIGHTS_NETWORK_H

#include <pthread.h>
#include <stdatomic.h>

#include "moe_outliers/network.h"
#include "moe_outliers/weights.h"

enum { MO_ETAG_BYTES = 200 };

/* A range in the cache. */
typedef struct {
  int64_t from, end;
  bool checked; /* its checksum was right */
} mo_cached;

typedef struct mo_network_file_state {
  char *name;
  char *path;               /* for messages */
  bool fetched;             /* what follows is known */
  bool missing;             /* the folder has no such file */
  int64_t size;             /* -1: not known */
  char etag[MO_ETAG_BYTES]; /* or the time of the last change; "": the server gives neither */
  bool linked;              /* the etag is the hub's, of the contents: the host behind a signed address has its own */
  char *head;               /* its first bytes: all of a small file, of weights what describes them */
  int64_t head_bytes;

  pthread_mutex_t locating; /* held by the one who asks where the file is */
  pthread_mutex_t lock;     /* of all that follows, and of size and etag */
  char *location;           /* a signed address, NULL: not known, or not needed */
  int64_t generation;       /* counts locations */
  bool direct;              /* the folder's own server gave the bytes */
  mo_cached *cached;        /* sorted, without overlap */
  int64_t n_cached;
  bool listed; /* `cached` has what lay on disk */
} mo_network_file_state;

typedef struct mo_connection mo_connection;

struct mo_network {
  char *address;               /* as given, without a slash at its end */
  char *repository, *revision; /* NULL: not on a hub */
  char *endpoint;              /* of the hub, also where the address is another's; no slash at its end */
  char *token;                 /* NULL: none */
  char *base;                  /* address of the folder that the files are in, once connected */
  char commit[72];
  char *authorities; /* file of certificates to trust, NULL: the machine's */
  double patience;
  mo_status (*poll)(void *context);
  void *context;

  mo_network_file_state **files;
  int32_t n_files;

  pthread_mutex_t lock;
  mo_connection *idle;
  double hold_until; /* the hub asked not to be asked before */
  int stop_event;    /* readable once interrupted */
  atomic_bool interrupted;
  atomic_bool answered; /* a server did, once */
  atomic_llong received;

  void (*tell)(const char *line); /* NULL: nobody */
  char waiting[400];              /* what a read waits with and why, "": nothing is known */
  double again_at;                /* when it asks again */

  char *cache_folder; /* engine.cache, NULL or "": none */
  char *cache;        /* the model's folder in it */
  atomic_bool cache_ends;
  char cache_trouble[300];
};

/* --- addresses --- */

/* Fill address, repository, revision, endpoint and token. */
MO_CHECKED mo_status mo_network_parse(mo_network *network, const char *address);
/* Malloc'ed: the address of a file in the folder; that of the request that tells the commit. */
char *mo_network_url(const mo_network *network, const char *name);
char *mo_network_commit_url(const mo_network *network);
/* Where the files of the commit are. */
MO_CHECKED mo_status mo_network_set_base(mo_network *network);
/* Whether both name the same scheme, host and port: only there the token may go. */
bool mo_network_same_origin(const char *a, const char *b);
bool mo_network_is_secure(const char *url); /* https */

/* --- one request --- */

typedef enum {
  MO_ANSWER_FITS,
  MO_ANSWER_WRONG_RANGE,
  MO_ANSWER_NO_RANGES,
  MO_ANSWER_CHANGED,
  MO_ANSWER_TOO_LONG
} mo_answer;

typedef struct {
  const char *url;
  bool with_token;
  int64_t from, bytes; /* the range; bytes < 0: the whole file */
  char *to;            /* [bytes]; of a whole file malloc'ed here, the caller's */
  int64_t size;        /* that the file is known to have, -1: none is */
  const char *etag;    /* likewise, "" */

  int status;       /* of HTTP, 0: none came */
  bool failed;      /* the transfer did not come to its end: `trouble` says why */
  bool hopeless;    /* and never will */
  bool unreachable; /* no connection */
  bool proxy;       /* a proxy refused to make one */
  mo_answer answer;
  int64_t got;
  int64_t answered_from, answered_end, total; /* of Content-Range, else -1 */
  int64_t length;                             /* of Content-Length, else -1 */
  char answered_etag[MO_ETAG_BYTES], linked_etag[MO_ETAG_BYTES], modified[64], error_code[64];
  int64_t linked_size;
  char *redirect;     /* malloc'ed, the caller's; NULL: none */
  double retry_after; /* seconds, 0: not said */
  char trouble[200];
} mo_exchange;

/* MO_STOPPED: interrupted. Whatever the server answers is MO_OK. */
MO_CHECKED mo_status mo_network_exchange(mo_network *network, mo_exchange *x);
void mo_network_connections_free(mo_network *network);
/* The hub asks all of a rank's readers to wait; how long they still have to. */
void mo_network_hold(mo_network *network, double seconds);
double mo_network_held(mo_network *network);
/* What a read waits with for so long, to be told. why NULL: bytes have come. */
void mo_network_note_wait(mo_network *network, const char *path, const char *why, double seconds);
/* Wait; MO_STOPPED: interrupted. */
MO_CHECKED mo_status mo_network_nap(const mo_network *network, double seconds);

/* --- as many as it takes --- */

/* Bytes of a file, straight into the buffer; what the cache has comes from there. code: of an error that no retry
 * mends. A file that is shorter: *got is less. Thread-safe. */
MO_CHECKED mo_status mo_network_fetch_range(mo_network *network, mo_network_file_state *file, int64_t offset,
                                            int64_t bytes, void *buffer, mo_status code, int64_t *got);
/* A whole file into its head; sets missing. */
MO_CHECKED mo_status mo_network_fetch_whole(mo_network *network, mo_network_file_state *file);
/* Any address of the hub; *text malloc'ed. about: for messages. */
MO_CHECKED mo_status mo_network_fetch_answer(mo_network *network, const char *url, const char *about, char **text,
                                             int64_t *bytes);

/* --- the cache --- */

MO_CHECKED mo_status mo_network_cache_open(mo_network *network, const char *folder);
/* How many of the first bytes of the range it has (read into the buffer), and where the next bytes that it has
 * begin, at most the range's end. */
void mo_network_cache_read(mo_network *network, mo_network_file_state *file, int64_t offset, int64_t bytes,
                           void *buffer, int64_t *got, int64_t *next);
/* A file that it has as a whole, malloc'ed. */
bool mo_network_cache_whole(mo_network *network, mo_network_file_state *file, char **text, int64_t *bytes);
void mo_network_cache_write(mo_network *network, mo_network_file_state *file, int64_t offset, int64_t bytes,
                            const void *data);
/* What an earlier run noted of a file of this commit; not of config.json, which every model has. */
bool mo_network_cache_knows_missing(mo_network *network, const mo_network_file_state *file);
/* The folder that has such a note, NULL: none has. */
const char *mo_network_cache_note(mo_network *network, const char *name);
void mo_network_cache_note_missing(mo_network *network, const mo_network_file_state *file);

/* --- for the checkpoint --- */

/* The entry of a file, made if there is none; NULL: out of memory. */
mo_network_file_state *mo_network_entry(mo_network *network, const char *name);
/* The headers of safetensors files, fetched side by side where they are not known yet. */
MO_CHECKED mo_status mo_network_headers(mo_network *network, const char *const *names, int64_t n);
/* Thread-safe. */
MO_CHECKED mo_status mo_network_read(mo_network *network, mo_network_file_state *file, int64_t offset, int64_t bytes,
                                     void *buffer);
/* true: reads under way end at once with MO_STOPPED, and later ones too, until false. */
void mo_network_interrupt(mo_network *network, bool interrupted);

#endif
