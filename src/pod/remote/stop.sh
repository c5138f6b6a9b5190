#!/usr/bin/env bash
# stop.sh KEY STEP: tells a step to save and end, and waits at most two minutes for it.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
at=$DIR/runs/$1/$2
if alive "$at.pid"; then
  read -r pid _ <"$at.pid"
  kill -USR1 "$pid" 2>/dev/null || true
  for _ in {1..240}; do
    alive "$at.pid" || break
    sleep 0.5
  done
fi
echo "@moe-pod stopped"
