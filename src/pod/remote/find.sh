#!/usr/bin/env bash
# find.sh PATH...: "@moe-pod found N" for each PATH that is a file, or a folder with a config.json, on the pod;
# relative ones in $DIR/source. Not a model that scripts/fetch, maybe another pod's, has not finished.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$DIR/source"
n=0
for path in "$@"; do
  if [[ -f $path || (-f $path/config.json && ! -d $path/.fetch) ]]; then echo "@moe-pod found $n"; fi
  n=$((n + 1))
done
