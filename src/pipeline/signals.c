#include "pipeline/signals.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t received;

static void note(int number) {
  if (!received) received = number;
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
