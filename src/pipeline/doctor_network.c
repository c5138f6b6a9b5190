/* Interfaces between nodes, and NCCL. */
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/doctor.h"

#ifdef MO_HAVE_NCCL
#include "backend/cuda/libraries.h"
#endif

/* --- of this rank --- */

static bool is_up(const struct ifaddrs *i) { return (i->ifa_flags & IFF_UP) && !(i->ifa_flags & IFF_LOOPBACK); }

static bool has_address(const struct ifaddrs *i) {
  return i->ifa_addr && (i->ifa_addr->sa_family == AF_INET || i->ifa_addr->sa_family == AF_INET6);
}

static void add_interface(mo_rank_facts *facts, const struct ifaddrs *i) {
  char address[INET6_ADDRSTRLEN] = "";
  size_t used = strlen(facts->interfaces);
  const struct sockaddr_in *four = (const struct sockaddr_in *)(const void *)i->ifa_addr;
  const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)(const void *)i->ifa_addr;
  if (i->ifa_addr->sa_family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&six->sin6_addr)) return;
  if (i->ifa_addr->sa_family == AF_INET)
    (void)inet_ntop(AF_INET, &four->sin_addr, address, sizeof address);
  else
    (void)inet_ntop(AF_INET6, &six->sin6_addr, address, sizeof address);
  facts->n_interfaces++;
  snprintf(facts->interfaces + used, sizeof facts->interfaces - used, "%s%s %s", used ? ", " : "", i->ifa_name,
           address);
}

/* Whether `name` is one of a list of NCCL's: by their beginnings, or exactly. */
static bool is_listed(const char *name, const char *list, bool exactly) {
  while (*list) {
    size_t length = strcspn(list, ",");
    bool begins = length > 0 && strncmp(name, list, length) == 0;
    if (begins && (!exactly || name[length] == '\0')) return true;
    list += length + (list[length] == ',');
  }
  return false;
}

/* NCCL_SOCKET_IFNAME: "eth,ib" by beginning, "=eth0" exactly, "^docker" all but these. */
static bool is_taken(const char *wanted, const char *name) {
  bool all_but = *wanted == '^';
  wanted += all_but;
  bool exactly = *wanted == '=';
  return is_listed(name, wanted + exactly, exactly) != all_but;
}

void mo_doctor_list_interfaces(mo_rank_facts *facts) {
  const char *wanted = getenv("NCCL_SOCKET_IFNAME");
  struct ifaddrs *all = NULL;
  int taken = 0;
  if (getifaddrs(&all) != 0) return;
  for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
    if (!has_address(i)) continue;
    if (is_up(i)) add_interface(facts, i);
    /* NCCL takes loopback, too, if it is named. */
    if (wanted && (i->ifa_flags & IFF_UP)) taken += is_taken(wanted, i->ifa_name);
  }
  freeifaddrs(all);
  if (wanted && *wanted && !taken)
    snprintf(facts->wrong_interface, sizeof facts->wrong_interface, "%.*s", MO_TEXT_BYTES - 1, wanted);
}

/* --- of all --- */

static int count_nodes(const mo_doctor_state *d) {
  int nodes = 0;
  for (int i = 0; i < d->size; i++) nodes += d->ranks[i].local_rank == 0;
  return nodes;
}

static void look_at_interfaces(mo_doctor_state *d) {
  int nodes = count_nodes(d);
  const mo_rank_facts *f = d->ranks;
  for (int i = 0; i < d->size && nodes > 1; i++)
    if (!d->ranks[i].n_interfaces) {
      mo_doctor_say(d, MO_SAYS_FAULT, "network",
                    "%s has no interface but loopback, and there are %d nodes: check ip addr there, or run on one node",
                    d->ranks[i].device.host, nodes);
      return;
    }
  mo_doctor_say(d, MO_SAYS_OK, "network", "%s: %s%s%s", f->device.host,
                f->n_interfaces ? f->interfaces : "loopback only", f->infiniband ? ", InfiniBand" : "",
                nodes > 1 ? "" : "; one node needs none of it");
}

static void look_at_nccl_interface(mo_doctor_state *d) {
  for (int i = 0; i < d->size; i++)
    if (d->ranks[i].wrong_interface[0]) {
      mo_doctor_say(d, MO_SAYS_FAULT, "NCCL",
                    "NCCL_SOCKET_IFNAME=%s names no interface of %s (%s): unset it, or name one of these",
                    d->ranks[i].wrong_interface, d->ranks[i].device.host,
                    d->ranks[i].n_interfaces ? d->ranks[i].interfaces : "loopback only");
      return;
    }
}

static void look_at_nccl(mo_doctor_state *d) {
#ifdef MO_HAVE_NCCL
  int version = 0;
  if (d->ranks[0].device.visible == 0) {
    mo_doctor_say(d, MO_SAYS_OK, "NCCL", "built in, and not needed without GPUs");
  } else if (mo_nccl_bind() != MO_OK) {
    mo_doctor_say(d, d->size > 1 ? MO_SAYS_FAULT : MO_SAYS_NOTE, "NCCL", "%s", mo_error_message());
    mo_error_clear();
  } else {
    (void)mo_nccl.version(&version);
    mo_doctor_say(d, MO_SAYS_OK, "NCCL", "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
  }
#elif defined MO_HAVE_CUDA
  mo_doctor_say(
      d, d->size > 1 ? MO_SAYS_NOTE : MO_SAYS_OK, "NCCL",
      "not built in: rows pass between GPUs through host memory; build with NCCL 2.18 or later for more speed");
#else
  mo_doctor_say(d, MO_SAYS_OK, "NCCL", "not built in, and not needed without GPUs");
#endif
}

void mo_doctor_look_at_network(mo_doctor_state *d) {
  look_at_interfaces(d);
  look_at_nccl(d);
  look_at_nccl_interface(d);
}
