/* How far an interrupted run had come: of each micro-batch, the last stage whose rows are there and before which no
 * record is missing. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipeline/resume.h"

static int64_t place_of(const mo_plan *plan, int64_t stage, int64_t micro) { return stage * plan->n_micro + micro; }

/* done: [n_stages, n_micro] tasks with a record. */
static mo_status scan_journals(mo_resume *resume, bool *done) {
  const mo_plan *plan = resume->job.plan;
  for (int64_t number = 0; number < resume->first_journal; number++) {
    char name[MO_NAME_BYTES];
    mo_journal_reader *reader;
    mo_record record;
    bool found = true;
    mo_resume_journal_name(name, number);
    MO_TRY(mo_journal_open(&reader, &resume->folder, name, resume->identity));
    mo_status status = MO_OK;
    while (status == MO_OK && found) {
      status = mo_journal_next(reader, &record, &found);
      if (status != MO_OK || !found) break;
      if (record.stage >= 0 && record.stage < plan->n_stages && record.micro >= 0 && record.micro < plan->n_micro)
        done[place_of(plan, record.stage, record.micro)] = true;
      status = mo_comm_poll(resume->job.comm);
    }
    resume->n_damaged += mo_journal_damaged(reader);
    mo_journal_reader_close(reader);
    MO_TRY(status);
  }
  return MO_OK;
}

static mo_status check_blob(mo_resume *resume, const mo_blob *blob, void *buffer, bool *good) {
  char name[MO_NAME_BYTES];
  mo_resume_blob_name(name, blob);
  *good = false;
  if (faccessat(resume->folder.descriptor, name, F_OK, 0) != 0) return MO_OK;
  MO_TRY(mo_blob_read(&resume->folder, name, blob, buffer, mo_resume_blob_bytes(resume, blob), good));
  resume->n_damaged += !*good;
  return mo_comm_poll(resume->job.comm);
}

/* Stages of a micro-batch, from the first on, of which all that belongs into the result file is there. */
static mo_status count_done(mo_resume *resume, const bool *done, int64_t micro, void *buffer, int64_t *count) {
  const mo_plan *plan = resume->job.plan;
  bool good = true;
  for (*count = 0; *count < plan->n_stages && done[place_of(plan, *count, micro)]; ++*count) {
    mo_blob blob = {resume->identity, MO_BLOB_SITE, (int32_t)*count, (int32_t)micro, 0};
    for (; good && mo_resume_is_stored(resume, *count) && blob.index < 2; blob.index++)
      MO_TRY(check_blob(resume, &blob, buffer, &good));
    if (!good) break;
  }
  return MO_OK;
}

static mo_status find_start(mo_resume *resume, const bool *done, int64_t micro, void *buffer) {
  int64_t *start = resume->start + micro;
  MO_TRY(count_done(resume, done, micro, buffer, start));
  if (*start == resume->job.plan->n_stages) return MO_OK;
  for (bool good = false; *start > 0; --*start) {
    const mo_blob rows = {resume->identity, MO_BLOB_ROWS, (int32_t)*start, (int32_t)micro, 0};
    MO_TRY(check_blob(resume, &rows, buffer, &good));
    if (good) break;
  }
  return MO_OK;
}

mo_status mo_resume_scan(mo_resume *resume) {
  const mo_plan *plan = resume->job.plan;
  const mo_blob largest = {0, MO_BLOB_SITE, 0, 0, 0}; /* float32 is the widest element type of rows, too */
  void *buffer = mo_alloc(mo_resume_blob_bytes(resume, &largest), 1);
  bool *done = mo_alloc((size_t)(plan->n_stages * plan->n_micro), sizeof *done);
  mo_status status = buffer && done ? scan_journals(resume, done) : MO_FAILED;
  for (int64_t micro = 0; status == MO_OK && micro < plan->n_micro; micro++) {
    status = find_start(resume, done, micro, buffer);
    resume->n_kept += resume->start[micro];
  }
  free(done);
  free(buffer);
  return status;
}
