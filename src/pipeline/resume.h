/* Private to the pipeline: the folder OUTPUT.resume beside the result, from which an interrupted run goes on;
 * docs/resume.md. */
#ifndef MO_PIPELINE_RESUME_H
#define MO_PIPELINE_RESUME_H

#include "moe_outliers/backend.h"
#include "moe_outliers/comm.h"
#include "moe_outliers/network.h"
#include "moe_outliers/plan.h"
#include "moe_outliers/results.h"
#include "moe_outliers/tokens.h"
#include "pipeline/journal.h"

/* The run; owned by the caller, outlives the resume. */
typedef struct {
  mo_comm *comm;
  const mo_config *config;
  const char *config_json; /* file, or folder with config.json */
  mo_network *network;     /* that it and the checkpoint come from, NULL: files */
  bool synthetic;          /* the weights: no files */
  const mo_model_spec *spec;
  const mo_checkpoint *checkpoint;
  const mo_tokens *tokens;
  const mo_backend *backend;
  const mo_plan *plan;
  bool fresh; /* forget an interrupted run */
} mo_resume_job;

typedef struct {
  mo_resume_job job;
  char *path; /* OUTPUT.resume */
  mo_folder folder;
  int lock; /* rank 0's hold on the folder, else -1 */
  uint64_t identity;
  int64_t first_journal; /* journals below it are of earlier processes; this rank writes first_journal + rank */
  int64_t *start;        /* [n_micro] the stage at which a micro-batch goes on; n_stages: it is through */
  int64_t n_kept;        /* tasks before these */
  int64_t n_damaged;     /* records and files that don't count; rank 0 only */
} mo_resume;

/* Take hold of the folder and find out where each micro-batch goes on. Collective, start[] is the same on all ranks.
 * Another run at work on the same output, or one that was interrupted and differs in what determines the result:
 * MO_INVALID. */
MO_CHECKED mo_status mo_resume_open(mo_resume *resume, const mo_resume_job *job);
/* Let go of the folder; remove it if the result is complete, or if nothing was saved in it. Local; rank 0 last. A
 * resume of zeros is allowed. */
void mo_resume_close(mo_resume *resume, bool complete);

/* One line on stderr if an earlier run is continued, another if part of it is damaged. */
void mo_resume_note(const mo_resume *resume);

/* --- names in the folder --- */
enum { MO_NAME_BYTES = 64 };
typedef enum { MO_BLOB_ROWS = 1, MO_BLOB_SITE } mo_blob_kind;

void mo_resume_journal_name(char name[MO_NAME_BYTES], int64_t number);
/* Rows of a micro-batch before a stage (index 0), or a site's tensor of a stage whose activations are stored (index:
 * site). */
void mo_resume_blob_name(char name[MO_NAME_BYTES], const mo_blob *blob);
/* Bytes of such a blob. */
size_t mo_resume_blob_bytes(const mo_resume *resume, const mo_blob *blob);
/* Whether the activations of a stage's layer are stored in the result file. */
bool mo_resume_is_stored(const mo_resume *resume, int64_t stage);

/* --- resume_activations.c --- */
/* For mo_results_set_activations; context: the mo_resume, all of whose tasks are done. */
MO_CHECKED mo_status mo_resume_give_activations(void *context, mo_results *results);

/* --- resume_scan.c --- */
/* Fills start[], n_kept and n_damaged from what is in the folder. Local. */
MO_CHECKED mo_status mo_resume_scan(mo_resume *resume);

/* --- resume_identity.c --- */
/* Everything that determines the result, a line `NAME = VALUE` each. Caller frees. */
MO_CHECKED mo_status mo_identity_text(char **text, const mo_resume_job *job);
/* MO_INVALID, naming the first difference, unless the two texts are the same. path: of the folder. */
MO_CHECKED mo_status mo_identity_compare(const char *before, const char *now, const char *path);

#endif
