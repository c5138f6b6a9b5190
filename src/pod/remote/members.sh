#!/usr/bin/env bash
# members.sh NONCE: on rank 0 of a cluster. Keeps the members' addresses, which come on stdin as a hostfile, and makes
# the key by which rank 0 starts programs on them. Prints its public part.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
umask 077
mkdir -p "$DIR/cluster"
cat >"$DIR/hosts.new"
mv "$DIR/hosts.new" "$DIR/hosts"
[[ -f $DIR/cluster/id_ed25519 ]] || ssh-keygen -q -t ed25519 -N '' -C moe-pod -f "$DIR/cluster/id_ed25519"
printf '%s\n' "$1" >"$DIR/cluster/nonce"
sync -f "$DIR" 2>/dev/null || true
echo "@moe-pod key $(cut -d ' ' -f 1,2 "$DIR/cluster/id_ed25519.pub")"
