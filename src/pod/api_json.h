/* Private to api.c and its likes: answers of the API, strictly. */
#ifndef MO_POD_API_JSON_H
#define MO_POD_API_JSON_H

#include "pod/pod.h"

/* The error for a status that was not expected: in the server's own words. call: "GET /v2/pods". */
MO_CHECKED mo_status pod_api_refused(const pod_answer *answer, const char *call);
/* The error for an answer that is not what the API's specification says. */
MO_CHECKED mo_status pod_api_strange(const char *call, const char *what);

/* Members of an object into a buffer; of ids and addresses nothing may be cut off. */
MO_CHECKED mo_status pod_json_text(const json_t *object, const char *key, char *text, size_t size, bool whole,
                                   const char *call);
MO_CHECKED mo_status pod_json_number(const json_t *object, const char *key, double *number, const char *call);
MO_CHECKED mo_status pod_json_time(const json_t *object, const char *key, double *seconds, const char *call);

MO_CHECKED mo_status pod_json_pod(const json_t *object, pod_pod *pod, const char *call);
MO_CHECKED mo_status pod_json_cluster(const json_t *object, pod_cluster *cluster, const char *call);
MO_CHECKED mo_status pod_json_gpu(const json_t *object, pod_gpu_type *type, const char *call);
/* Whether a GPU of the catalog can compute what the program needs: NVIDIA's, of compute capability 8.0 and later. */
bool pod_json_gpu_works(const json_t *object);

/* RFC 3339 to seconds since 1970; false: it is none. */
bool pod_parse_time(const char *text, double *seconds);

#endif
