/* The cheapest GPUs that will do, by the dollars that a run is expected to cost. */
#include "pod/choose.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "pipeline/plan_overview.h"

/* Assumed where the catalog and the plan say nothing: minutes from the order to ssh, of set-up and build, of fetching
 * results; what a hub's files arrive with; and the rate of a GPU that the plan does not know, which is taken for a slow
 * one. */
static const double START_MINUTES = 3, SETUP_MINUTES = 6, FETCH_MINUTES = 1, DOWNLOAD_GB_S = 0.3, UNKNOWN_TFLOPS = 30;

/* Why a type will not do. */
enum { OTHER_GPU = 1, SMALL_GPU = 2, LOW_MEMORY = 4, TOO_DEAR = 8, OTHER_PLACE = 16 };

/* --- what is allowed --- */

static bool contains(const char *text, const char *part) { return !part[0] || strcasestr(text, part); }

bool pod_choose_cloud(const pod_need *need, const pod_limits *limits, bool community) {
  const char *cloud = need->config.deployment.cloud_type;
  if (community) return limits->community || strcasecmp(cloud, "community") == 0 || strcasecmp(cloud, "all") == 0;
  return strcasecmp(cloud, "community") != 0;
}

static bool too_dear(const pod_need *need, const pod_limits *limits, double price, int gpus) {
  const double rounding = 1e-9;
  double most = need->config.deployment.max_price;
  if (limits->max_price > 0) return price > limits->max_price + rounding;
  return most > 0 && price * gpus > most + rounding;
}

/* The data centers that the config allows. Where the catalog was not asked for any, what the config says is taken for
 * an id. */
static bool take_data_centers(const pod_need *need, const pod_gpu_type *type, pod_choice *choice) {
  const char *wanted = need->config.deployment.data_center;
  bool unknown = type->available < 0 && wanted[0];
  if (unknown) snprintf(choice->data_centers[0], sizeof choice->data_centers[0], "%s", wanted);
  choice->n_data_centers = unknown;
  for (int i = 0; i < type->n_data_centers; i++)
    if (contains(type->data_centers[i], wanted))
      memcpy(choice->data_centers[choice->n_data_centers++], type->data_centers[i], sizeof type->data_centers[i]);
  return !wanted[0] || choice->n_data_centers > 0;
}

/* --- what is expected --- */

/* Minutes of the run by the plan's time model; *fits is false if the GPU's memory is too small for it, *least is then
 * the smallest that works, in GB. */
static mo_status plan_minutes(const pod_need *need, const pod_gpu_type *type, const pod_choice *choice, bool *fits,
                              double *minutes, double *least) {
  char gpu[200];
  bool host = need->config.engine.device == MO_DEVICE_CPU || need->config.engine.device == MO_DEVICE_CHECK;
  double asked = need->config.engine.device_memory_gb, memory = asked > 0 ? asked : type->memory_gb;
  snprintf(gpu, sizeof gpu, "%s %s", type->id, type->name);
  const mo_plan_options options = {.n_ranks = choice->gpus * choice->pods,
                                   .vram_gb = host ? asked : memory,
                                   .tflops = mo_plan_gpu_memory(gpu) > 0 ? 0 : UNKNOWN_TFLOPS,
                                   .bandwidth_gb_s = need->streamed ? DOWNLOAD_GB_S : 0,
                                   .ranks_per_node = choice->gpus,
                                   .gpu = gpu};
  mo_plan_overview overview = {.config = &need->config, .options = &options};
  *fits = host || asked <= type->memory_gb;
  *least = asked;
  if (!*fits) return MO_OK;
  mo_status status = mo_plan_overview_make(&overview, NULL);
  if (status == MO_OK) *minutes = (overview.time.seconds + mo_plan_ablation_seconds(&overview)) / 60;
  mo_plan_overview_free(&overview);
  const char *says = status == MO_INVALID ? strstr(mo_error_message(), "smallest that works is ") : NULL;
  if (!says) return status;
  *fits = false;
  *least = strtod(says + strlen("smallest that works is "), NULL);
  mo_error_clear();
  return MO_OK;
}

static void expect(const pod_need *need, pod_choice *choice, double run) {
  double weights = need->synthetic || need->streamed ? 0 : 1e-9 * (double)need->weight_bytes;
  choice->setup = START_MINUTES + SETUP_MINUTES;
  choice->download = weights / DOWNLOAD_GB_S / 60;
  choice->run = run;
  choice->fetch = FETCH_MINUTES;
  choice->minutes = choice->setup + choice->download + choice->run + choice->fetch;
  choice->dollars = choice->price * choice->minutes / 60;
}

/* --- one type --- */

/* The fewest equal pods that together have `count` GPUs of it; 0: there are none. Clusters have at least two pods. */
static int pods_of(int count, int most, bool cluster) {
  for (int pods = cluster ? 2 : 1; pods <= (cluster ? count : 1); pods++)
    if (count % pods == 0 && count / pods <= most) return pods;
  return 0;
}

static mo_status add(pod_choices *list, const pod_choice *choice) {
  pod_choice *longer = mo_realloc(list->choices, (size_t)list->n + 1, sizeof *longer);
  if (!longer) return MO_FAILED;
  list->choices = longer;
  longer[list->n++] = *choice;
  return MO_OK;
}

/* Remembers the cheapest that only one condition keeps out. */
static void note_refusal(pod_choices *list, const pod_choice *choice, unsigned why, double least) {
  list->offered++;
  for (int bit = 0; bit < POD_REFUSALS; bit++) list->refused[bit] += (why >> bit) & 1;
  if (why == LOW_MEMORY && (list->least_memory == 0 || least < list->least_memory)) list->least_memory = least;
  if (why & (why - 1)) return;
  if (list->nearest_why && list->nearest.price <= choice->price) return;
  list->nearest = *choice;
  list->nearest_why = why;
}

static mo_status consider(pod_choices *list, const pod_question *q, const pod_gpu_type *type) {
  const mo_config *config = &q->need->config;
  int most = q->community ? type->most_community : type->most_secure;
  double price = q->community ? type->price_community : type->price_secure, run = 0, least = 0;
  bool offered = (q->community ? type->community : type->secure) && price > 0, fits = true;
  int pods = offered ? pods_of(q->count, most, q->cluster) : 0;
  if (pods == 0 || (q->cluster && pods_of(q->count, most, false)) || (q->per_pod && q->count / pods != q->per_pod))
    return MO_OK;
  const bool wished = config->deployment.gpus == 0 || config->deployment.gpus == q->count;
  pod_choice choice = {.community = q->community,
                       .gpus = q->count / pods,
                       .pods = pods,
                       .price = price * q->count,
                       .available = type->available,
                       .memory_gb = type->memory_gb};
  snprintf(choice.gpu, sizeof choice.gpu, "%s", type->id);
  snprintf(choice.name, sizeof choice.name, "%s", type->name);
  unsigned why = 0;
  if (!contains(type->id, config->deployment.gpu_filter) && !contains(type->name, config->deployment.gpu_filter))
    why |= OTHER_GPU;
  if (type->memory_gb < config->deployment.min_vram_gb) why |= SMALL_GPU;
  if (too_dear(q->need, q->limits, price, q->count)) why |= TOO_DEAR;
  if (!take_data_centers(q->need, type, &choice)) why |= OTHER_PLACE;
  bool dearer = list->n > 0 || (list->nearest_why && list->nearest.price <= choice.price);
  if (why && ((why & (why - 1)) || dearer)) { /* of no use as an example either */
    if (wished) note_refusal(list, &choice, why, 0);
    return MO_OK;
  }
  MO_TRY(plan_minutes(q->need, type, &choice, &fits, &run, &least));
  if (!fits) why |= LOW_MEMORY;
  if (fits) expect(q->need, &choice, run);
  if (why && wished) note_refusal(list, &choice, why, least);
  return why ? MO_OK : add(list, &choice);
}

mo_status pod_choose_add(pod_choices *list, const pod_question *question, const pod_gpu_type *types, int n) {
  for (int i = 0; i < n; i++) MO_TRY(consider(list, question, types + i));
  return MO_OK;
}

/* --- all of them --- */

int pod_choose_counts(const pod_need *need, int counts[POD_MOST_COUNTS]) {
  int n = 0;
  if (need->config.deployment.gpus == 0)
    for (int count = 1; count <= 8; count *= 2) counts[n++] = count;
  for (int count = (int)need->config.deployment.gpus; count > 0 && n < POD_MOST_COUNTS; count /= 2) counts[n++] = count;
  return n;
}

/* With stock, of the number of GPUs that is wished, in one machine, for few dollars, soon: in this order. */
static int better(const void *a, const void *b) {
  const pod_ranked *x = a, *y = b;
  bool in_stock = x->choice.available != 0, other = y->choice.available != 0;
  if (in_stock != other) return in_stock ? -1 : 1;
  if (x->wished != y->wished) return x->wished ? -1 : 1;
  if ((x->choice.pods > 1) != (y->choice.pods > 1)) return x->choice.pods > 1 ? 1 : -1;
  if (x->choice.dollars != y->choice.dollars) return x->choice.dollars < y->choice.dollars ? -1 : 1;
  if (x->choice.minutes != y->choice.minutes) return x->choice.minutes < y->choice.minutes ? -1 : 1;
  return strcmp(x->choice.gpu, y->choice.gpu);
}

static mo_status sort(pod_choices *list, int wished) {
  pod_ranked *ranked = mo_alloc((size_t)list->n, sizeof *ranked);
  if (!ranked) return MO_FAILED;
  for (int i = 0; i < list->n; i++) {
    ranked[i].choice = list->choices[i];
    ranked[i].wished = wished == 0 || list->choices[i].gpus * list->choices[i].pods == wished;
  }
  qsort(ranked, (size_t)list->n, sizeof *ranked, better);
  for (int i = 0; i < list->n; i++) list->choices[i] = ranked[i].choice;
  free(ranked);
  return MO_OK;
}

/* What would have to be given up for the cheapest that one condition keeps out. */
static void describe_nearest(const pod_choices *list, const pod_need *need, char *text, size_t size) {
  const pod_choice *c = &list->nearest;
  const char *where = c->community ? "community" : "secure";
  char what[160] = "";
  switch (list->nearest_why) {
    case OTHER_GPU:
      snprintf(what, sizeof what, "-s deployment.gpu_filter=\"%.60s\"", c->name);
      break;
    case SMALL_GPU:
      snprintf(what, sizeof what, "-s deployment.min_vram_gb=%d", c->memory_gb);
      break;
    case TOO_DEAR:
      snprintf(what, sizeof what, "--max-price %.2f", ceil(100 * c->price / (c->gpus * c->pods) - 1e-6) / 100);
      break;
    case OTHER_PLACE:
      snprintf(what, sizeof what, "another deployment.data_center than %.40s", need->config.deployment.data_center);
      break;
    default:
      snprintf(text, size, "GPUs of at least %.3f GB (-s deployment.gpu_filter= allows any)", list->least_memory);
      return;
  }
  snprintf(text, size, "with %s, %d x %s at $%.2f per hour would do (%s cloud)", what, c->gpus * c->pods, c->name,
           c->price, where);
}

mo_status pod_choose_finish(pod_choices *list, const pod_need *need, pod_choice **choices, int *n) {
  static const char *const names[POD_REFUSALS] = {"not of deployment.gpu_filter", "below deployment.min_vram_gb",
                                                  "too small for the plan", "above the price",
                                                  "not in deployment.data_center"};
  char counts[256] = "", remedy[512] = "try again later, or allow --community or another deployment.gpus";
  *choices = NULL;
  *n = 0;
  if (list->n > 0) {
    MO_TRY(sort(list, (int)need->config.deployment.gpus));
    *choices = list->choices;
    *n = list->n;
    *list = (pod_choices){0};
    return MO_OK;
  }
  for (int i = 0; i < POD_REFUSALS; i++) {
    size_t used = strlen(counts);
    if (list->refused[i])
      snprintf(counts + used, sizeof counts - used, "%s%d %s", used ? ", " : "", list->refused[i], names[i]);
  }
  if (list->nearest_why) describe_nearest(list, need, remedy, sizeof remedy);
  return MO_FAIL(MO_INVALID, "of %d offers of the catalog none will do: %s (%s): %s", list->offered,
                 counts[0] ? counts : "no type has that many GPUs", need->path, remedy);
}

void pod_choose_drop(pod_choices *list) {
  free(list->choices);
  *list = (pod_choices){0};
}

static mo_status choose_all(pod_choices *list, const pod_need *need, const pod_gpu_type *types, int n_types,
                            const pod_limits *limits) {
  int counts[POD_MOST_COUNTS], n = pod_choose_counts(need, counts);
  for (int i = 0; i < n; i++)
    for (int community = 0; community < 2; community++) {
      pod_question q = {.need = need, .limits = limits, .count = counts[i], .community = community};
      if (pod_choose_cloud(need, limits, community)) MO_TRY(pod_choose_add(list, &q, types, n_types));
      q.cluster = true;
      if (i == 0 && !community && need->config.deployment.gpus > 1) MO_TRY(pod_choose_add(list, &q, types, n_types));
    }
  return MO_OK;
}

mo_status pod_choose(const pod_need *need, const pod_gpu_type *types, int n_types, const pod_limits *limits,
                     pod_choice **choices, int *n) {
  pod_choices list = {0};
  mo_status status = choose_all(&list, need, types, n_types, limits);
  if (status == MO_OK) status = pod_choose_finish(&list, need, choices, n);
  pod_choose_drop(&list);
  return status;
}
