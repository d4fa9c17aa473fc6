#!/usr/bin/env bash
# Run one training as N processes on this machine, over loopback (for tests of multi-host code).
#
#   launch/local.sh N [--dry-run] --config configs/demo.py [more flags of pyratok_jax.train]
#
# Variables: PYTHON, PORT (of the coordinator), MODULE, RESTARTS (how often to restart after a failure).
set -euo pipefail

PYTHON=${PYTHON:-python3}
PORT=${PORT:-$((20000 + RANDOM % 20000))}
MODULE=${MODULE:-pyratok_jax.train}
RESTARTS=${RESTARTS:-0}

if [ $# -lt 1 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
count=$1
shift
# shellcheck source-path=SCRIPTDIR source=dry_run.sh
source "$(dirname "$0")/dry_run.sh"
check_numbers PORT RESTARTS

pids=()
stopped=""

# Start all processes; sets pids.
start() {
  pids=()
  for ((i = 0; i < count; i++)); do
    variables=(
      "PYRATOK_COORDINATOR=127.0.0.1:$PORT" "PYRATOK_PROCESSES=$count" "PYRATOK_PROCESS_ID=$i"
    )
    command=(env "${variables[@]}" "$PYTHON" -m "$MODULE" "$@")
    if [ -n "$dry_run" ]; then
      printf '%q ' "${command[@]}"
      echo
    else
      "${command[@]}" &
      pids+=($!)
    fi
  done
}

# Wait for all processes; sets status to the first code that is not 0. They end each other.
finish() {
  status=0
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do # A signal to this script ended the wait alone.
      code=0
      wait "$pid" || code=$?
    done
    if [ "$status" -eq 0 ]; then status=$code; fi
  done
}

trap 'stopped=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((round = 0; ; round++)); do
  start "$@"
  if [ -n "$dry_run" ]; then exit 0; fi
  finish
  # 0: finished; 2: a mistake of the user; 4: some inputs were rejected; 130: stopped on request.
  case $status in 0 | 2 | 4 | 130) break ;; esac
  if [ -n "$stopped" ] || [ "$round" -ge "$RESTARTS" ]; then break; fi
  echo "exit code $status; resuming from the last checkpoint ($((round + 1)) of $RESTARTS)" >&2
  PORT=$((PORT + 1))
done
exit "$status"
