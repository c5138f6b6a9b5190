#!/usr/bin/env bash
# sum.sh OUTPUT: "@moe-pod sum SHA256 BYTES" of the result.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
touch "$DIR/contact"
cd "$DIR/source"
[[ -f $1 ]] || { echo "@moe-pod sum none 0"; exit 0; }
sum=$(sha256sum <"$1")
echo "@moe-pod sum ${sum%% *} $(stat -c %s "$1")"
