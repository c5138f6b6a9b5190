#!/usr/bin/env bash
# Ends this pod when nobody else does: at its deadline; when all that was started has ended and no client has been
# here for `grace` seconds; when nothing has got on for `stall` seconds. Settings: $DIR/watchdog.conf, which a client
# may replace at any time. One per pod. It never gives up: what has not ended the pod is tried again.
set -uo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
exec 7>"$DIR/watchdog.lock"
flock -n 7 || exit 0
tick=$(variable MOE_POD_TICK)
tick=${tick:-30} # may have a fraction
pause=$tick
if [[ ${tick%%.*} =~ ^[0-9]{2,}$ ]]; then pause=10; fi
long=$tick # between two attempts to end the pod: ten ticks
for _ in {1..9}; do long="$long $tick"; done
deadline=0 grace=900 stall=1800 api='' cluster=''

read_settings() {
  local name value
  while IFS='=' read -r name value; do
    case $name in
      deadline | grace | stall) [[ $value =~ ^[0-9]+$ ]] && printf -v "$name" '%s' "$value" ;;
      api | cluster) printf -v "$name" '%s' "$value" ;;
    esac
  done <"$DIR/watchdog.conf"
}

now() { date +%s; }

age() { # seconds since the youngest of the files changed
  local newest=0 at file
  for file in "$@"; do
    at=$(stat -c %Y "$file" 2>/dev/null) || continue
    ((at > newest)) && newest=$at
  done
  echo $(($(now) - newest))
}

# Something that changes as long as work gets on: what is stored, and what the logs say of it, not that time goes by.
# What runs share counts while this one may be writing there, or waiting for one that does.
progress() {
  local log pid folders=("$DIR")
  for pid in "$DIR"/runs/*/{setup,fetch}.pid; do
    alive "$pid" && folders=("$DIR" "$BASE"/builds "$BASE"/hub "$BASE"/models)
  done
  du -scb --exclude='*.log' --exclude=contact "${folders[@]}" 2>/dev/null | tail -n 1
  for log in "$DIR"/runs/*/*.log; do
    [[ ! -r $log ]] || grep -avE 'nothing read for|working: ' "$log" | wc -c
    [[ ! -r $log ]] || tail -c 4000 "$log" | grep -aoE '[0-9]+ %, [0-9.e+]+ of' | tail -n 1
  done
}

# Whether a step runs, or none has been started yet.
busy() {
  local pid any=1
  for pid in "$DIR"/runs/*/*.pid; do
    [[ -e $pid ]] || continue
    any=0
    alive "$pid" && return 0
  done
  return "$((1 - any))"
}

# The key goes over stdin: other processes' arguments can be read.
delete() {
  local key
  key=$(variable RUNPOD_API_KEY)
  [[ -n $key && -n $api ]] || return 1
  printf 'header = "Authorization: Bearer %s"\n' "$key" |
    curl --silent --show-error --fail --max-time 60 --output /dev/null --config - --request DELETE "$api/v2/$1"
}

# Stops the container from the inside, which ends its work but keeps no account of it. No signal from inside ends a
# container's first process, but it ends by itself when its children are gone: so all others are ended, if the first
# process's environment says that this is that container. This one is left, and goes on.
stop_container() {
  local id init
  id=$(variable RUNPOD_POD_ID)
  init=$(variable MOE_POD_INIT)
  if [[ -n $init ]]; then
    echo "$(date -u +%FT%TZ) DELETE did not end it: stopping the container (process $init)"
    kill -TERM "$init" 2>/dev/null
    sleep "$pause"
    kill -KILL "$init" 2>/dev/null
  elif [[ -n $id && -z ${MOE_POD_ENVIRON:-} ]] && grep -qzx "RUNPOD_POD_ID=$id" /proc/1/environ; then
    echo "$(date -u +%FT%TZ) DELETE did not end it: ending all processes of the container"
    kill -TERM -- -1
    sleep "$pause"
    kill -KILL -- -1
  fi
}

end() {
  local id
  echo "$(date -u +%FT%TZ) ending: $*"
  id=$(variable RUNPOD_POD_ID)
  for _ in 1 2 3; do
    if [[ -n $cluster ]]; then
      if delete "clusters/$cluster"; then break; fi
    elif [[ -n $id ]]; then
      if delete "pods/$id"; then break; fi
    fi
    sleep "$pause"
  done
  sleep "$tick"
  stop_container # still here
}

# The end is decided; nothing but the container's own keeps this from trying.
end_for_good() {
  while :; do
    end "$@"
    # shellcheck disable=SC2086 # words
    sleep $long
  done
}

# A transfer by rsync that goes on, which may take longer than anything else; one that hangs ends itself.
transferring() {
  grep -aslzx -e --server /proc/[0-9]*/cmdline | xargs -r grep -aslF -e "$DIR/" | grep -q .
}

seen='' since=$SECONDS
watched=$(variable MOE_POD_WATCHED)
watched=${watched:-$HOME/.moe-outliers-watched}
while :; do
  touch "$watched" # the guard of the container's start sees it
  read_settings
  if transferring; then
    touch "$DIR/contact"
    since=$SECONDS
  fi
  if ((deadline > 0 && $(now) >= deadline)); then
    end_for_good "its time is over"
  fi
  if ! busy && (($(age "$DIR/contact" "$DIR"/runs/*/*.status) > grace)); then
    end_for_good "all is done, and no client has come for $grace s"
  fi
  state=$(progress)
  if [[ $state != "$seen" ]]; then
    seen=$state since=$SECONDS
  elif ((SECONDS - since > stall)); then
    end_for_good "nothing has got on for $stall s"
  fi
  sleep "$tick" 7>&- &
  wait "$!"
done
