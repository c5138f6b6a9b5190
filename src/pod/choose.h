/* Private to choose.c and choose_now.c: collecting choices. */
#ifndef MO_POD_CHOOSE_H
#define MO_POD_CHOOSE_H

#include "pod/pod.h"

enum { POD_MOST_COUNTS = 11, POD_REFUSALS = 5 };

/* Choices so far, and why others will not do. */
typedef struct {
  pod_choice *choices; /* owned */
  int n;
  int offered;               /* types with that many GPUs on that cloud */
  int refused[POD_REFUSALS]; /* by condition */
  pod_choice nearest;        /* the cheapest that one condition alone keeps out, ... */
  unsigned nearest_why;      /* ... and which; 0: none */
  double least_memory;       /* GB of a GPU that the plan asks for, as far as memory alone keeps types out */
} pod_choices;

typedef struct {
  pod_choice choice;
  bool wished; /* of the number of GPUs that is asked for */
} pod_ranked;

typedef struct {
  const pod_need *need;
  const pod_limits *limits;
  int count; /* GPUs in all */
  bool community, cluster;
  int per_pod; /* of clusters: only those of so many GPUs per pod; 0: any */
} pod_question;

/* The numbers of GPUs that may be chosen, the wished one first. */
int pod_choose_counts(const pod_need *need, int counts[POD_MOST_COUNTS]);
/* Whether machines of a cloud are allowed. */
bool pod_choose_cloud(const pod_need *need, const pod_limits *limits, bool community);
/* Add the types that will do. */
MO_CHECKED mo_status pod_choose_add(pod_choices *list, const pod_question *question, const pod_gpu_type *types, int n);
/* As pod_choose returns. */
MO_CHECKED mo_status pod_choose_finish(pod_choices *list, const pod_need *need, pod_choice **choices, int *n);
void pod_choose_drop(pod_choices *list);

#endif
