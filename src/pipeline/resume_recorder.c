#include "pipeline/resume_recorder.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe_outliers/clock.h"

struct mo_recorder {
  mo_recorder_job job;
  const mo_resume *resume;
  const mo_plan *plan;
  mo_journal *journal;
  int64_t stage, micro; /* the task under way */
  struct {
    bool expected, ended; /* ended: the task's record is aside */
    int64_t stage, micro;
  } experts;             /* of the last task with experts */
  mo_timing_row *noted;  /* [n_stages] what records hold of a stage's timing */
  int64_t *held, *saved; /* [n_micro] stage before which the rows are, -1: not to be used; that they were saved for */
  uint64_t *positions;   /* backend memory [n_thresholds, B, H, ceil(S/64)] */
  int32_t *row_counts;   /* backend memory [B, S] */
  uint64_t *words;       /* host, likewise */
  float *site;           /* host [B, S, H]; NULL unless activations are stored */
  void *rows;            /* host, rows of a micro-batch; NULL where the backend's memory is the host's */
  double last_save, last_sync;
};

static mo_task task_of(const mo_recorder *r, int64_t micro) {
  const mo_model_spec *spec = r->resume->job.spec;
  return (mo_task){.accumulators = r->job.accumulators,
                   .n_thresholds = r->resume->job.config->analysis.n_thresholds,
                   .first_sequence = micro * r->plan->micro_batch,
                   .n_sequences = mo_plan_batch(r->plan, micro),
                   .length = r->plan->length,
                   .hidden = spec->hidden,
                   .n_experts = spec->moe.experts};
}

static bool stores_activations(const mo_recorder *r) {
  const mo_config *config = r->resume->job.config;
  return config->output.all_activations || config->output.n_activations;
}

static mo_status open_buffers(mo_recorder *r) {
  const mo_backend_table *op = r->job.backend->table;
  size_t micro = (size_t)r->plan->n_micro;
  mo_task largest = task_of(r, 0);
  size_t words = (size_t)(largest.n_thresholds * mo_task_words(&largest));
  const mo_blob rows = {.kind = MO_BLOB_ROWS}, site = {.kind = MO_BLOB_SITE};
  r->noted = mo_alloc((size_t)r->plan->n_stages, sizeof *r->noted);
  r->held = mo_alloc(micro, sizeof *r->held);
  r->saved = mo_alloc(micro, sizeof *r->saved);
  if (!r->noted || !r->held || !r->saved) return MO_FAILED;
  for (size_t i = 0; i < micro; i++) r->held[i] = r->saved[i] = -1;
  if (stores_activations(r) && !(r->site = mo_alloc(mo_resume_blob_bytes(r->resume, &site), 1))) return MO_FAILED;
  if (!op->host_memory) MO_TRY(op->alloc_host(r->job.backend, mo_resume_blob_bytes(r->resume, &rows), &r->rows));
  MO_TRY(op->alloc_host(r->job.backend, words * sizeof(uint64_t), (void **)&r->words));
  MO_TRY(op->alloc(r->job.backend, (size_t)(largest.n_sequences * largest.length) * sizeof *r->row_counts,
                   (void **)&r->row_counts));
  return op->alloc(r->job.backend, words * sizeof(uint64_t), (void **)&r->positions);
}

mo_status mo_recorder_open(mo_recorder **recorder, const mo_recorder_job *job) {
  mo_recorder *r = mo_alloc(1, sizeof *r);
  *recorder = NULL;
  if (!r) return MO_FAILED;
  r->job = *job;
  r->resume = job->resume;
  r->plan = job->resume->job.plan;
  r->last_save = mo_seconds();
  char name[MO_NAME_BYTES];
  mo_resume_journal_name(name, r->resume->first_journal + mo_comm_rank(r->resume->job.comm));
  mo_status status = open_buffers(r);
  if (status == MO_OK) status = mo_journal_create(&r->journal, &r->resume->folder, name, r->resume->identity);
  if (status != MO_OK)
    mo_recorder_close(r);
  else
    *recorder = r;
  return status;
}

void mo_recorder_close(mo_recorder *r) {
  if (!r) return;
  mo_journal_close(r->journal);
  r->job.backend->table->free(r->job.backend, r->positions);
  r->job.backend->table->free(r->job.backend, r->row_counts);
  free(r->noted);
  free(r->held);
  free(r->saved);
  r->job.backend->table->free_host(r->job.backend, r->words);
  r->job.backend->table->free_host(r->job.backend, r->rows);
  free(r->site);
  free(r);
}

/* --- a task --- */

mo_status mo_recorder_begin(mo_recorder *r, int64_t stage, int64_t micro) {
  mo_task task = task_of(r, micro);
  r->stage = stage;
  r->micro = micro;
  MO_TRY(mo_journal_begin(r->journal, stage, micro));
  return r->job.backend->table->zero(r->job.backend, r->positions,
                                     (size_t)(task.n_thresholds * mo_task_words(&task)) * sizeof(uint64_t));
}

uint64_t *mo_recorder_positions(const mo_recorder *r, int64_t threshold) {
  mo_task task = task_of(r, r->micro);
  return r->positions + threshold * mo_task_words(&task);
}

int32_t *mo_recorder_row_counts(const mo_recorder *r) { return r->row_counts; }

mo_status mo_recorder_site(mo_recorder *r, int64_t threshold, mo_site site, const mo_site_statistics *statistics) {
  mo_task task = task_of(r, r->micro);
  MO_TRY(mo_accumulator_add(r->job.accumulators[threshold], r->stage - 1, site, task.first_sequence, statistics));
  return mo_task_put_site(r->journal, &task, threshold, site, statistics);
}

mo_status mo_recorder_routing(mo_recorder *r, const int64_t *counts) {
  mo_task task = task_of(r, r->micro);
  mo_accumulator_add_routing(r->job.accumulators[0], r->stage - 1, counts);
  return mo_task_put_routing(r->journal, &task, counts);
}

void mo_recorder_expect_experts(mo_recorder *r) {
  r->experts.expected = true;
  r->experts.ended = false;
  r->experts.stage = r->stage;
  r->experts.micro = r->micro;
}

mo_status mo_recorder_take_experts(mo_recorder *r) {
  mo_expert_statistics statistics;
  if (!r || !r->experts.expected) return MO_OK;
  r->experts.expected = false;
  MO_TRY(r->job.backend->table->expert_results(r->job.backend, &statistics));
  mo_task task = task_of(r, r->experts.micro);
  MO_TRY(mo_accumulator_add_experts(r->job.accumulators[0], r->experts.stage - 1, task.first_sequence, &statistics));
  if (!r->experts.ended) return mo_task_put_experts(r->journal, &statistics);
  mo_journal_swap(r->journal);
  MO_TRY(mo_task_put_experts(r->journal, &statistics));
  MO_TRY(mo_journal_commit(r->journal));
  mo_journal_swap(r->journal);
  return MO_OK;
}

mo_status mo_recorder_nll(mo_recorder *r, const float *nll) {
  mo_task task = task_of(r, r->micro);
  mo_accumulator_add_nll(r->job.accumulators[0], task.first_sequence, task.n_sequences, nll);
  return mo_task_put_nll(r->journal, &task, nll);
}

static mo_blob blob_of(const mo_recorder *r, mo_blob_kind kind, int64_t stage, int64_t micro, int index) {
  return (mo_blob){r->resume->identity, (int32_t)kind, (int32_t)stage, (int32_t)micro, index};
}

static mo_status write_blob(mo_recorder *r, const mo_blob *blob, const void *data) {
  char name[MO_NAME_BYTES];
  mo_resume_blob_name(name, blob);
  return mo_blob_write(&r->resume->folder, name, blob, mo_comm_rank(r->resume->job.comm), data,
                       mo_resume_blob_bytes(r->resume, blob));
}

static mo_status read_blob(mo_recorder *r, const mo_blob *blob, void *data) {
  char name[MO_NAME_BYTES];
  bool good;
  mo_resume_blob_name(name, blob);
  MO_TRY(mo_blob_read(&r->resume->folder, name, blob, data, mo_resume_blob_bytes(r->resume, blob), &good));
  if (good) return MO_OK;
  return MO_FAIL(MO_FAILED, "a file of the interrupted run went bad (%s/%s): run the same command again",
                 r->resume->path, name);
}

/* The result file is made anew when a run goes on: the tensor is kept beside it, too. */
mo_status mo_recorder_activations(mo_recorder *r, mo_site site, const void *x) {
  mo_task task = task_of(r, r->micro);
  if (!mo_resume_is_stored(r->resume, r->stage)) return MO_OK;
  mo_blob blob = blob_of(r, MO_BLOB_SITE, r->stage, r->micro, (int)site);
  MO_TRY(r->job.backend->table->read_activations(r->job.backend, x, task.n_sequences * task.length * task.hidden,
                                                 r->site));
  MO_TRY(write_blob(r, &blob, r->site));
  return mo_results_write_activations(r->job.results, r->stage - 1, site, task.first_sequence, task.n_sequences,
                                      r->site);
}

mo_status mo_recorder_collect(mo_recorder *r) {
  mo_task task = task_of(r, r->micro);
  int64_t n = mo_task_words(&task);
  MO_TRY(r->job.backend->table->fetch(r->job.backend, r->positions, (size_t)(task.n_thresholds * n) * sizeof(uint64_t),
                                      r->words));
  for (int64_t i = 0; i < task.n_thresholds; i++) {
    const uint64_t *words = r->words + i * n;
    mo_accumulator_add_positions(r->job.accumulators[i], task.first_sequence, task.n_sequences, words);
    MO_TRY(mo_task_put_positions(r->journal, &task, i, words));
  }
  return MO_OK;
}

mo_status mo_recorder_end(mo_recorder *r, const mo_timing_row *timing) {
  mo_timing_row *noted = r->noted + r->stage, since = *timing;
  since.bytes_read -= noted->bytes_read;
  since.read -= noted->read;
  since.copy -= noted->copy;
  since.compute -= noted->compute;
  since.wait -= noted->wait;
  *noted = *timing;
  MO_TRY(mo_task_put_timing(r->journal, &since));
  if (!r->experts.expected || r->experts.ended) return mo_journal_commit(r->journal);
  r->experts.ended = true;
  mo_journal_swap(r->journal);
  return MO_OK;
}

/* --- rows --- */

void mo_recorder_hold(mo_recorder *r, int64_t micro, int64_t stage) { r->held[micro] = stage; }

/* Between tasks. */
static mo_status sync_journal(mo_recorder *r) {
  MO_TRY(mo_recorder_take_experts(r));
  MO_TRY(mo_journal_sync(r->journal));
  r->last_sync = mo_seconds();
  return MO_OK;
}

/* Not more often than every second: it may take long, and the rows wait. */
mo_status mo_recorder_sync(mo_recorder *r) { return mo_seconds() - r->last_sync < 1 ? MO_OK : sync_journal(r); }

/* Nothing goes on from rows that are through. */
static bool must_save(const mo_recorder *r, int64_t micro) {
  int64_t stage = r->held[micro];
  return stage > 0 && stage < r->plan->n_stages && stage != r->saved[micro];
}

static mo_status save_rows(mo_recorder *r, int64_t micro) {
  if (!must_save(r, micro)) return MO_OK;
  mo_blob blob = blob_of(r, MO_BLOB_ROWS, r->held[micro], micro, 0);
  const void *rows = r->job.rows[micro].data;
  if (r->rows) {
    MO_TRY(r->job.backend->table->download(r->job.backend, rows, mo_resume_blob_bytes(r->resume, &blob), r->rows));
    rows = r->rows;
  }
  MO_TRY(write_blob(r, &blob, rows));
  mo_blob older = blob_of(r, MO_BLOB_ROWS, r->saved[micro], micro, 0);
  r->saved[micro] = r->held[micro];
  if (older.stage < 0) return MO_OK;
  char name[MO_NAME_BYTES];
  mo_resume_blob_name(name, &older);
  (void)unlinkat(r->resume->folder.descriptor, name, 0); /* another rank may have had and removed the same */
  return MO_OK;
}

mo_status mo_recorder_save(mo_recorder *r) {
  MO_TRY(sync_journal(r));
  for (int64_t micro = 0; micro < r->plan->n_micro; micro++) MO_TRY(save_rows(r, micro));
  r->last_save = mo_seconds();
  return MO_OK;
}

mo_status mo_recorder_save_if_due(mo_recorder *r, int64_t micro) {
  double seconds = r->resume->job.config->engine.checkpoint_seconds;
  if (seconds > 0) return mo_seconds() - r->last_save < seconds ? MO_OK : mo_recorder_save(r);
  MO_TRY(sync_journal(r));
  return save_rows(r, micro);
}

/* --- putting back --- */

static bool is_mine(const mo_recorder *r, int64_t stage) {
  return stage < r->plan->n_stages && mo_plan_rank_of(r->plan, stage) == mo_comm_rank(r->resume->job.comm);
}

static mo_status restore_activations(mo_recorder *r, const mo_record *record) {
  mo_task task = task_of(r, record->micro);
  for (int site = 0; site < 2 && mo_resume_is_stored(r->resume, record->stage); site++) {
    mo_blob blob = blob_of(r, MO_BLOB_SITE, record->stage, record->micro, site);
    MO_TRY(read_blob(r, &blob, r->site));
    MO_TRY(mo_results_write_activations(r->job.results, record->stage - 1, (mo_site)site, task.first_sequence,
                                        task.n_sequences, r->site));
  }
  return MO_OK;
}

/* restored: [n_stages, n_micro] tasks that were put back. A task may have been recorded by several runs, with the same
 * bits. */
static mo_status restore_record(mo_recorder *r, const mo_record *record, bool *restored, mo_timing_row *timing) {
  if (record->stage < 0 || record->micro < 0 || record->micro >= r->plan->n_micro) return MO_OK;
  if (!is_mine(r, record->stage) || record->stage >= r->resume->start[record->micro]) return MO_OK;
  bool *done = restored + record->stage * r->plan->n_micro + record->micro;
  if (*done) return MO_OK;
  mo_task task = task_of(r, record->micro);
  *done = true;
  MO_TRY(mo_task_restore(&task, record, timing + record->stage));
  r->noted[record->stage] = timing[record->stage];
  return restore_activations(r, record);
}

static mo_status restore_journal(mo_recorder *r, int64_t number, bool *restored, mo_timing_row *timing) {
  char name[MO_NAME_BYTES];
  mo_journal_reader *reader;
  mo_record record;
  bool found = true;
  mo_resume_journal_name(name, number);
  MO_TRY(mo_journal_open(&reader, &r->resume->folder, name, r->resume->identity));
  mo_status status = MO_OK;
  while (status == MO_OK && found) {
    status = mo_journal_next(reader, &record, &found);
    if (status == MO_OK && found) status = restore_record(r, &record, restored, timing);
    if (status == MO_OK) status = mo_comm_poll(r->resume->job.comm);
  }
  mo_journal_reader_close(reader);
  return status;
}

/* Rows of a micro-batch that goes on at a stage of this rank. */
static mo_status restore_rows(mo_recorder *r, int64_t micro) {
  const mo_backend_table *op = r->job.backend->table;
  int64_t stage = r->resume->start[micro], ticket;
  if (stage == 0 || !is_mine(r, stage)) return MO_OK;
  mo_blob blob = blob_of(r, MO_BLOB_ROWS, stage, micro, 0);
  void *rows = r->job.rows[micro].data;
  MO_TRY(read_blob(r, &blob, r->rows ? r->rows : rows));
  if (r->rows) {
    MO_TRY(op->upload(r->job.backend, rows, r->rows, mo_resume_blob_bytes(r->resume, &blob), &ticket));
    MO_TRY(op->upload_wait(r->job.backend, ticket));
  }
  r->held[micro] = r->saved[micro] = stage;
  return mo_comm_poll(r->resume->job.comm);
}

mo_status mo_recorder_restore(mo_recorder *r, mo_timing_row *timing) {
  if (r->resume->n_kept == 0) return MO_OK;
  bool *restored = mo_alloc((size_t)(r->plan->n_stages * r->plan->n_micro), sizeof *restored);
  mo_status status = restored ? MO_OK : MO_FAILED;
  for (int64_t number = 0; status == MO_OK && number < r->resume->first_journal; number++)
    status = restore_journal(r, number, restored, timing);
  for (int64_t micro = 0; status == MO_OK && micro < r->plan->n_micro; micro++) status = restore_rows(r, micro);
  free(restored);
  return status;
}
