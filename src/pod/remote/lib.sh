# shellcheck shell=bash
# What the scripts on the pod share. They live in $DIR/remote. $DIR, BASE/pods/NAME, is the run's folder: no other run
# uses it, and no two pods at a time. $BASE, which may be on a network volume, has what runs share: hub, models, builds.

# shellcheck disable=SC2034 # used by those who read this file
DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034
BASE=$(cd "$DIR/../.." && pwd)

say() { printf 'moe-pod: %s\n' "$*"; }

# variable NAME: of this environment, else of the container's: a session of ssh gets none of what the container was
# started with.
variable() {
  if [[ -n ${!1:-} ]]; then
    printf '%s' "${!1}"
  else
    { tr '\0' '\n' <"${MOE_POD_ENVIRON:-/proc/1/environ}" | sed -n "s/^$1=//p" | head -n 1; } 2>/dev/null || true
  fi
}

# alive PID-FILE: whether the process that wrote it runs. Pids are given again: it is the same one only with its start
# time.
alive() {
  local pid started
  [[ -r $1 ]] || return 1
  read -r pid started <"$1" || return 1
  [[ -n $pid && -n $started && $(start_time "$pid") == "$started" ]]
}

# start_time PID: in ticks since the machine started; nothing if there is no such process, or it is a zombie.
start_time() {
  local line
  { line=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  line=${line##*) }
  # shellcheck disable=SC2086 # words
  set -- $line
  [[ $1 == Z ]] || printf '%s' "${20}"
}
