#!/usr/bin/env bash
# start.sh KEY STEP [ARGUMENT]...: starts STEP.sh KEY ARGUMENT... so that it outlives this session, unless it runs;
# one that has ended well is not begun again. Prints what it did.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
key=$1 step=$2
shift 2
at=$DIR/runs/$key/$step
mkdir -p "$DIR/runs/$key"
touch "$DIR/contact"

forget_token() { # nobody will read it, but a step that has just begun
  local file
  file=$(variable MOE_POD_SHM)
  file=${file:-/dev/shm}/moe-outliers-$key.token
  [[ ! -e $file ]] || { sleep 1 && rm -f "$file"; }
}

exec 8>"$at.starting" # two clients, or one whose first call is still under way
flock 8
if alive "$at.pid"; then
  forget_token
  echo "@moe-pod runs"
  exit 0
fi
if [[ $(cat "$at.status" 2>/dev/null) == 0 && $(cat "$at.arguments" 2>/dev/null) == "$*" ]]; then
  forget_token
  echo "@moe-pod done"
  exit 0
fi
rm -f "$at.status" "$at.pid"
printf '%s' "$*" >"$at.arguments"
setsid nohup bash "$DIR/remote/keep.sh" "$key" "$step" "$@" >>"$at.log" 2>&1 </dev/null 8>&- &
for _ in {1..100}; do
  if [[ -s $at.pid || -s $at.status ]]; then break; fi
  sleep 0.1
done
echo "@moe-pod started"
