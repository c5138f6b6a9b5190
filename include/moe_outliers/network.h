/* A model's folder on the network: `hf://OWNER/NAME@REVISION` on a hub, or the http(s) address of a folder. Nothing
 * is kept on disk unless a cache is asked for.
 *
 * One rank connects and fetches what describes the model; what it found is packed, sent to the others and unpacked
 * there, so that all of them read the same commit. From then on each reads the byte ranges that it needs. */
#ifndef MOE_OUTLIERS_NETWORK_H
#define MOE_OUTLIERS_NETWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "moe_outliers/status.h"

typedef struct mo_network mo_network;

enum {
  MO_NETWORK_READERS = 32,        /* connections of a rank, by default */
  MO_NETWORK_CHUNK = 32 << 20,    /* bytes of a range: each costs the server a request */
  MO_NETWORK_STAGED = 8 << 20,    /* ... where it goes through staging buffers, of which each connection has several */
  MO_NETWORK_CONNECTION = 1 << 20 /* bytes of memory that one takes at most */
};

/* Whether a model.path is an address. */
bool mo_network_is_address(const char *path);

typedef struct {
  const char *cache; /* folder that keeps what came, "" or NULL: none */
  double patience;   /* seconds without a byte after which a read fails */
  /* Called by mo_network_connect, mo_network_file and mo_network_headers, by the thread that calls these, with what
   * is waited for once no byte came for 5 s. NULL: nobody is told. */
  void (*tell)(const char *line);
} mo_network_options;

/* Take the address apart and find the token; nothing is asked for yet. MO_INVALID: it is none that can be used. */
MO_CHECKED mo_status mo_network_open(mo_network **network, const char *address, const mo_network_options *options);
/* Ends what is under way; no thread may be reading. NULL is allowed. */
void mo_network_close(mo_network *network);

/* Called with `context` every few milliseconds while mo_network_connect, mo_network_file and mo_network_headers
 * wait; a status other than MO_OK ends them with it. NULL: nothing is called. */
void mo_network_set_poll(mo_network *network, mo_status (*poll)(void *context), void *context);

/* Find the commit of the revision. Refused access and what does not exist are MO_INVALID, here and when files are
 * fetched. */
MO_CHECKED mo_status mo_network_connect(mo_network *network);
/* A small file as a whole, fetched at the first call; *text is the network's, not terminated, NULL: there is no such
 * file. */
MO_CHECKED mo_status mo_network_file(mo_network *network, const char *name, const char **text, size_t *bytes);

/* What connect, files and headers found, in one block of memory; *data is malloc'ed. It holds the token. */
MO_CHECKED mo_status mo_network_pack(mo_network *network, void **data, size_t *bytes);
/* Into a network that was opened with the same address and has not connected. */
MO_CHECKED mo_status mo_network_unpack(mo_network *network, const void *data, size_t bytes);

/* "OWNER/NAME", or the last folder of an address; malloc'ed. */
char *mo_network_name(const char *address);
/* The address as it was given. */
const char *mo_network_address(const mo_network *network);
/* Once connected: the commit, "" of an address that is no hub's. */
const char *mo_network_commit(const mo_network *network);
/* Lines `name = value` that are the same only as long as the weights are. */
void mo_network_identify(const mo_network *network, FILE *out);
/* Why the cache takes nothing more, NULL: it does, or there is none. */
const char *mo_network_cache_trouble(mo_network *network);
/* Bytes that came over the network so far, bodies only. */
int64_t mo_network_received(const mo_network *network);

#endif
