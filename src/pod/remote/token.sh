#!/usr/bin/env bash
# token.sh KEY: keeps the Hub's token that comes on stdin in memory, until the step that needs it reads and deletes it.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
umask 077
file=$(variable MOE_POD_SHM)
file=${file:-/dev/shm}/moe-outliers-$1.token
rm -f "$file"
cat >"$file"
echo "@moe-pod token"
