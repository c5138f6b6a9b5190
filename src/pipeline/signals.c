#include "pipeline/signals.h"

#include <signal.h>
#include <stddef.h>
#include <sysexits.h>
#include <unistd.h>

static volatile sig_atomic_t received, patience;

static void note(int number) {
  if (!received) received = number;
  if (patience > 0) alarm((unsigned)patience);
}

/* A call that does not come back, such as a read of storage that does not answer, is not waited for. */
static void give_up(int number) {
  static const char text[] = "moe-outliers: stopped while storage did not answer; the same command starts again\n";
  (void)number;
  (void)!write(STDERR_FILENO, text, sizeof text - 1);
  _exit(EX_TEMPFAIL);
}

void mo_signals_patience(int seconds) {
  struct sigaction action = {.sa_handler = give_up};
  sigemptyset(&action.sa_mask);
  if (seconds > 0) (void)sigaction(SIGALRM, &action, NULL);
  patience = seconds;
  if (seconds > 0 && received) alarm((unsigned)seconds);
  if (seconds == 0) alarm(0);
}

void mo_signals_note(void) {
  struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
  sigemptyset(&action.sa_mask);
  (void)sigaction(SIGTERM, &action, NULL);
  action.sa_flags |= SA_RESETHAND; /* a second Ctrl-C ends the process at once */
  (void)sigaction(SIGINT, &action, NULL);
  action.sa_flags &= ~SA_RESETHAND;
  (void)sigaction(SIGUSR1, &action, NULL);
}

int mo_signals_received(void) { return received; }

const char *mo_signals_name(int number) {
  return number == SIGTERM ? "SIGTERM" : number == SIGUSR1 ? "SIGUSR1" : number == SIGINT ? "SIGINT" : "a signal";
}
