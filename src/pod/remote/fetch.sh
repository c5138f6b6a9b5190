#!/usr/bin/env bash
# fetch.sh KEY MODEL TOKENS PATH: brings the model's and the token file of $DIR/runs/KEY/KEY.cfg. MODEL and TOKENS:
# yes, or no where they are here, made up or read from the network. PATH: the model's folder.
set -euo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
key=$1 model=$2 tokens=$3 path=$4
file=$(variable MOE_POD_SHM)
file=${file:-/dev/shm}/moe-outliers-$key.token
token=
if [[ -f $file ]]; then
  token=$(<"$file")
  rm -f "$file"
fi
# with_token COMMAND...: no other program needs it.
with_token() (
  if [[ -n $token ]]; then export HF_TOKEN=$token; fi
  exec "$@"
)
export HF_HOME=${HF_HOME:-$BASE/hub} # the watchdog sees it grow
# Of two pods with the same model one fetches it.
exec 9>"$BASE/models/.$(printf '%s' "$path" | sha256sum | cut -c 1-16).lock"
flock 9
cd "$DIR/source"
config=$DIR/runs/$key/$key.cfg
if [[ $model == yes ]]; then
  with_token scripts/fetch "$config"
  # A run is continued only where files have the times that they had: on every pod the same.
  find -L "$path" -maxdepth 1 -type f -exec touch -d @946684800 {} +
fi
if [[ $tokens == yes ]]; then with_token scripts/tokens "$config"; fi
say "model and tokens are here"
