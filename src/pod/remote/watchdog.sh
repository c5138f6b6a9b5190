#!/usr/bin/env bash
# Ends this pod when nobody else does: at its deadline; when all that was started has ended and no client has been
# here for `grace` seconds; when nothing has got on for `stall` seconds. Settings: $DIR/watchdog.conf, which a client
# may replace at any time. One per pod.
set -uo pipefail
# shellcheck source=src/pod/remote/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
exec 7>"$DIR/watchdog.lock"
flock -n 7 || exit 0
tick=$(variable MOE_POD_TICK)
tick=${tick:-30} # may have a fraction
pause=$tick
if [[ ${tick%%.*} =~ ^[0-9]{2,}$ ]]; then pause=10; fi
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
progress() {
  du -sb --exclude='*.log' --exclude=contact "$DIR" 2>/dev/null | cut -f 1
  local log
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

end() {
  local id init
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
  # Still here: the container is stopped from the inside, which ends its work but keeps no account of it.
  init=$(variable MOE_POD_INIT)
  if [[ -z $init && -z ${MOE_POD_ENVIRON:-} ]]; then init=1; fi
  [[ -n $init ]] || return
  echo "$(date -u +%FT%TZ) DELETE did not end it: stopping the container (process $init)"
  kill -TERM "$init" 2>/dev/null
  sleep "$pause"
  kill -KILL "$init" 2>/dev/null
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
    end "its time is over"
    exit 0
  fi
  if ! busy && (($(age "$DIR/contact" "$DIR"/runs/*/*.status) > grace)); then
    end "all is done, and no client has come for $grace s"
    exit 0
  fi
  state=$(progress)
  if [[ $state != "$seen" ]]; then
    seen=$state since=$SECONDS
  elif ((SECONDS - since > stall)); then
    end "nothing has got on for $stall s"
    exit 0
  fi
  sleep "$tick" 7>&- &
  wait "$!"
done
