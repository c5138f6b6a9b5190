/* What a signal that ends the process leaves behind: nothing. */
#ifndef MOE_OUTLIERS_RESULTS_INTERRUPTED_H
#define MOE_OUTLIERS_RESULTS_INTERRUPTED_H

#include <signal.h>
#include <stdbool.h>

enum { MO_INTERRUPTED_FILES = 3, MO_INTERRUPTED_SIGNALS = 3 };

/* Files to remove, and then the folder, if SIGINT, SIGTERM or SIGHUP ends the process; NULL: none. The texts are the
 * caller's; after begin they may be changed between hold and release only. */
typedef struct {
  const char *files[MO_INTERRUPTED_FILES];
  const char *folder;
  struct sigaction before[MO_INTERRUPTED_SIGNALS];
  sigset_t mask;
} mo_interrupted;

/* From begin to end; one at a time in a process. A signal that was ignored before stays so. */
void mo_interrupted_begin(mo_interrupted *what);
void mo_interrupted_end(mo_interrupted *what);

/* Between the two such signals wait. */
void mo_interrupted_hold(mo_interrupted *what);
void mo_interrupted_release(mo_interrupted *what);

#endif
