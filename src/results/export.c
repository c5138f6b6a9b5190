/* The export's files: made under temporary names, all of them or none renamed. */
#include "results/export.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "results/interrupted.h"
#include "results/writer.h"

enum { CONFIG, PERPLEXITY, ANALYSIS, N_FILES }; /* the order of their renaming: who finds the last finds all */
static const char *const NAMES[N_FILES] = {"config.json", "perplexity_results.json", "final_analysis_results.json"};

typedef struct {
  char *path, *temporary;
  bool made, published; /* there is a file of ours under `temporary`, under `path` */
} export_file;

typedef struct {
  const char *directory;
  bool overwrite, made_directory;
  export_file files[N_FILES];
  mo_interrupted interrupted;
} export_files;

static mo_status set_paths(export_files *files) {
  size_t bytes = strlen(files->directory) + 96;
  for (int i = 0; i < N_FILES; i++) {
    export_file *file = &files->files[i];
    file->path = mo_alloc(bytes, 1);
    file->temporary = mo_alloc(bytes, 1);
    if (!file->path || !file->temporary) return MO_FAILED;
    snprintf(file->path, bytes, "%s/%s", files->directory, NAMES[i]);
    snprintf(file->temporary, bytes, "%s/%s.partial-%ld", files->directory, NAMES[i], (long)getpid());
  }
  for (int i = 0; i < N_FILES; i++) files->interrupted.files[i] = files->files[i].temporary;
  return MO_OK;
}

static mo_status check_existing(const export_files *files) {
  struct stat information;
  for (int i = 0; i < N_FILES; i++) {
    const char *path = files->files[i].path;
    if (lstat(path, &information) != 0) {
      if (errno == ENOENT) continue;
      return MO_FAIL(MO_INVALID, "cannot reach the export (%s: %s): choose another folder", path, strerror(errno));
    }
    if (S_ISDIR(information.st_mode))
      return MO_FAIL(MO_INVALID, "a folder is in the way (%s): choose another folder", path);
    if (!files->overwrite)
      return MO_FAIL(MO_INVALID, "the file exists (%s): choose another folder or give --overwrite", path);
  }
  return MO_OK;
}

static mo_status make_directory(export_files *files) {
  struct stat information;
  const char *directory = files->directory;
  mo_interrupted_hold(&files->interrupted);
  files->made_directory = mkdir(directory, 0777) == 0;
  int error = errno;
  if (files->made_directory) files->interrupted.folder = directory;
  mo_interrupted_release(&files->interrupted);
  if (files->made_directory) return MO_OK;
  if (error == ENOSPC || error == EDQUOT)
    return MO_FAIL(MO_FAILED, "cannot create the folder (%s: %s): free space or choose another", directory,
                   strerror(error));
  if (error != EEXIST)
    return MO_FAIL(MO_INVALID, "cannot create the folder (%s: %s): check the path and its permissions", directory,
                   strerror(error));
  if (stat(directory, &information) != 0 || !S_ISDIR(information.st_mode))
    return MO_FAIL(MO_INVALID, "not a folder (%s): give a folder for the export", directory);
  return MO_OK;
}

static mo_status open_text(export_file *file, mo_export_text *text) {
  text->path = file->path;
  text->out = NULL;
  /* A file of that name is of a process that was killed, and had this number before. */
  (void)unlink(file->temporary);
  int descriptor = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  int error = errno;
  file->made = descriptor >= 0;
  if (descriptor >= 0 && !(text->out = fdopen(descriptor, "w"))) {
    error = errno;
    close(descriptor);
  }
  if (text->out) return MO_OK;
  return MO_FAIL(error == ENOSPC || error == EDQUOT || error == ENOMEM ? MO_FAILED : MO_INVALID,
                 "cannot create the export (%s: %s): choose another folder", file->path, strerror(error));
}

static mo_status close_text(mo_export_text *text, mo_status status) {
  errno = 0;
  if (fflush(text->out) != 0 && status == MO_OK) status = mo_export_check(text);
  errno = 0;
  if (fclose(text->out) != 0 && status == MO_OK)
    status = MO_FAIL(MO_FAILED, "cannot write the export (%s: %s): free space or choose another folder", text->path,
                     strerror(errno));
  return status;
}

static mo_status write_file(mo_export_source *source, export_files *files, int which, int64_t *characters) {
  mo_export_text text;
  MO_TRY(open_text(&files->files[which], &text));
  mo_status status = which == CONFIG       ? mo_export_config(source, &text)
                     : which == PERPLEXITY ? mo_export_perplexity(source, &text)
                                           : mo_export_analysis(source, &text, characters);
  return close_text(&text, status);
}

static mo_status publish(export_files *files, bool perplexity) {
  /* What an earlier export left would look like a part of this one. */
  const char *old = files->files[PERPLEXITY].path;
  if (!perplexity && files->overwrite && unlink(old) != 0 && errno != ENOENT)
    return MO_FAIL(MO_FAILED, "cannot remove the old export (%s: %s): check the folder", old, strerror(errno));
  for (int i = 0; i < N_FILES; i++) {
    export_file *file = &files->files[i];
    bool kept;
    if (!file->made) continue;
    mo_status status = mo_file_publish(file->temporary, file->path, !files->overwrite, &kept);
    if (kept) file->made = false; /* the error line says where it is */
    MO_TRY(status);
    file->made = false;
    file->published = true;
  }
  return MO_OK;
}

/* A signal comes before the first renaming, and nothing is left, or after the last one. */
static mo_status publish_together(export_files *files, bool perplexity) {
  mo_interrupted_hold(&files->interrupted);
  mo_status status = publish(files, perplexity);
  for (int i = 0; i < N_FILES; i++)
    if (!files->files[i].made) files->interrupted.files[i] = NULL; /* renamed, or kept for the user */
  files->interrupted.folder = NULL;
  mo_interrupted_release(&files->interrupted);
  return status;
}

/* After a failure no file of this export stays, but those that replaced older ones. */
static void discard(export_files *files) {
  for (int i = 0; i < N_FILES; i++) {
    if (files->files[i].made) (void)unlink(files->files[i].temporary);
    if (files->files[i].published && !files->overwrite) (void)unlink(files->files[i].path);
  }
  if (files->made_directory) (void)rmdir(files->directory);
}

static mo_status write_files(mo_export_source *source, export_files *files, mo_export_notes *notes) {
  int64_t characters = 0;
  MO_TRY(make_directory(files));
  MO_TRY(check_existing(files));
  MO_TRY(write_file(source, files, CONFIG, NULL));
  if (source->perplexity) MO_TRY(write_file(source, files, PERPLEXITY, NULL));
  MO_TRY(write_file(source, files, ANALYSIS, &characters));
  MO_TRY(publish_together(files, source->perplexity));
  *notes =
      (mo_export_notes){.no_perplexity = !source->perplexity, .too_long = characters > MO_EXPORT_READER_CHARACTERS};
  return MO_OK;
}

mo_status mo_results_export(const char *path, const char *directory, bool overwrite, mo_export_notes *notes) {
  mo_export_source source;
  export_files files = {.directory = directory, .overwrite = overwrite};
  *notes = (mo_export_notes){0};
  MO_TRY(mo_export_open(&source, path));
  mo_status status = set_paths(&files);
  mo_interrupted_begin(&files.interrupted);
  if (status == MO_OK) status = write_files(&source, &files, notes);
  if (status != MO_OK) discard(&files);
  mo_interrupted_end(&files.interrupted);
  for (int i = 0; i < N_FILES; i++) {
    free(files.files[i].path);
    free(files.files[i].temporary);
  }
  return mo_export_close(&source, status);
}
