#!/usr/bin/env bash
# Run one training as N processes on this machine, over loopback (for tests of multi-host code).
#
#   launch/local.sh N [--dry-run] --config configs/demo.py [more flags of pyratok_jax.train]
set -euo pipefail

PYTHON=${PYTHON:-python3}
PORT=${PORT:-$((20000 + RANDOM % 20000))}

if [ $# -lt 1 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
count=$1
shift
dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=1
  shift
fi

pids=()
for ((i = 0; i < count; i++)); do
  variables=(
    "PYRATOK_COORDINATOR=127.0.0.1:$PORT" "PYRATOK_PROCESSES=$count" "PYRATOK_PROCESS_ID=$i"
  )
  command=(env "${variables[@]}" "$PYTHON" -m pyratok_jax.train "$@")
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" &
    pids+=($!)
  fi
done

# A stop request goes to every process; one that fails takes the others down.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
status=0
for ((left = ${#pids[@]}; left > 0; left--)); do
  code=0
  wait -n || code=$?
  if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
    status=$code
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
done
exit "$status"
