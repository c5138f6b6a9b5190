#include "results/interrupted.h"

#include <stddef.h>
#include <unistd.h>

static const int SIGNALS[MO_INTERRUPTED_SIGNALS] = {SIGINT, SIGTERM, SIGHUP};
static mo_interrupted *volatile current;

static void all_signals(sigset_t *set) {
  sigemptyset(set);
  for (int i = 0; i < MO_INTERRUPTED_SIGNALS; i++) sigaddset(set, SIGNALS[i]);
}

/* Ends the process as the signal would have: who started it sees which one it was. */
static void clear_away(int number) {
  const mo_interrupted *what = current;
  for (int i = 0; what && i < MO_INTERRUPTED_FILES; i++)
    if (what->files[i]) (void)unlink(what->files[i]);
  if (what && what->folder) (void)rmdir(what->folder);
  (void)signal(number, SIG_DFL);
  (void)raise(number);
}

void mo_interrupted_begin(mo_interrupted *what) {
  struct sigaction action = {.sa_handler = clear_away};
  all_signals(&action.sa_mask);
  current = what;
  for (int i = 0; i < MO_INTERRUPTED_SIGNALS; i++) {
    (void)sigaction(SIGNALS[i], NULL, &what->before[i]);
    if (what->before[i].sa_handler != SIG_IGN) (void)sigaction(SIGNALS[i], &action, NULL);
  }
}

void mo_interrupted_end(mo_interrupted *what) {
  for (int i = 0; i < MO_INTERRUPTED_SIGNALS; i++) (void)sigaction(SIGNALS[i], &what->before[i], NULL);
  current = NULL;
}

void mo_interrupted_hold(mo_interrupted *what) {
  sigset_t set;
  all_signals(&set);
  (void)sigprocmask(SIG_BLOCK, &set, &what->mask);
}

void mo_interrupted_release(mo_interrupted *what) { (void)sigprocmask(SIG_SETMASK, &what->mask, NULL); }
