#!/usr/bin/env bash
# folder.sh PATH: makes a folder; a relative one in $DIR/source.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$DIR/source"
mkdir -p "$1"
