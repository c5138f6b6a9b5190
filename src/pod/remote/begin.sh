#!/usr/bin/env bash
# begin.sh KEY ID: the first thing on a pod, and again by each client that goes on. The watchdog comes first: from
# here on the pod ends without a client. Its settings are in watchdog.conf. Prints the folder, and whether this
# container knows the run.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
key=$1 id=$2

# On a network volume another pod of this run may have been here before, and its locks may outlive it.
if [[ $(cat "$DIR/pod" 2>/dev/null) != "$id" ]]; then
  rm -rf "$DIR"/*.lock "$DIR/hosts" "$DIR/cluster"
  printf '%s' "$id" >"$DIR/pod" || true # a full disk is told later: the watchdog comes first
fi
touch "$DIR/contact" || true
setsid nohup bash "$DIR/remote/watchdog.sh" >>"$DIR/watchdog.log" 2>&1 </dev/null &

if ! command -v rsync >/dev/null; then
  as_root=()
  if ((EUID != 0)); then as_root=(sudo -n); fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300)
  {
    "${as_root[@]}" update && "${as_root[@]}" install -y --no-install-recommends rsync
  } >"$DIR/begin.log" 2>&1 </dev/null || {
    tail -n 5 "$DIR/begin.log"
    echo "@moe-pod error rsync is not in this image and cannot be installed"
    exit 1
  }
fi

known=fresh
run=$DIR/runs/$key
mkdir -p "$run" "$DIR/source" "$DIR/inputs" "$BASE/models"
# What is fetched to models/ is for all. One that is sent replaces the link: it is the run's own.
[[ -e $DIR/source/models || -L $DIR/source/models ]] || ln -s "$BASE/models" "$DIR/source/models"
if [[ $(cat "$run/pod" 2>/dev/null) == "$id" ]]; then
  known=known
else
  rm -f "$run"/*.status "$run"/*.pid "$run"/*.log "$run"/*.starting
  printf '%s' "$id" >"$run/pod"
fi
echo "@moe-pod dir $DIR $known"
