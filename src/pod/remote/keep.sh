#!/usr/bin/env bash
# keep.sh KEY STEP [ARGUMENT]...: runs a step and keeps its exit status.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
key=$1 step=$2
shift 2
at=$DIR/runs/$key/$step
printf '%s %s\n' "$$" "$(start_time "$$")" >"$at.pid.new"
mv "$at.pid.new" "$at.pid"

child=
stop() { # the ranks are told through mpirun: they save and end with 75
  [[ -z $child ]] || kill -USR1 "$child" 2>/dev/null || true
}
trap stop USR1 TERM
bash "$DIR/remote/$step.sh" "$key" "$@" &
child=$!
status=0
while :; do
  status=0
  wait "$child" || status=$?
  kill -0 "$child" 2>/dev/null || break # else a signal ended only the waiting
done
sync -f "$DIR" 2>/dev/null || true
printf '%s\n' "$status" >"$at.status.new"
mv "$at.status.new" "$at.status"
