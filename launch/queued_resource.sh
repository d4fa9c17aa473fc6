#!/usr/bin/env bash
# Ask for a TPU slice, wait until it is there, set it up and train on it; ask again when it is lost.
#
#   TPU_NAME=my-slice ZONE=us-east5-a TYPE=v5p-128 BUCKET=my-bucket launch/queued_resource.sh \
#       [--dry-run] --config configs/tpu_v5.py:stage1 [more flags of pyratok_jax.train]
#
# Variables: VERSION (software), SOURCE (git address of this repository), SPOT=1 (cheaper, can be
# preempted), SLICES (more than 1: that many slices, joined over the data-centre network), RUN,
# PROJECT, ROUNDS (how many slices to use up). Delete it with the last line of the dry run.
set -euo pipefail

TPU_NAME=${TPU_NAME:?set TPU_NAME to a name for the slice}
ZONE=${ZONE:?set ZONE to a zone with quota}
TYPE=${TYPE:?set TYPE to an accelerator type, such as v5p-128 or v5litepod-64}
BUCKET=${BUCKET:?set BUCKET to a bucket that all workers can write to}
VERSION=${VERSION:-v2-alpha-tpuv5}
SOURCE=${SOURCE:?set SOURCE to the git address of this repository}
SPOT=${SPOT:-}
SLICES=${SLICES:-1}
PROJECT=${PROJECT:-}
ROUNDS=${ROUNDS:-20}
here=$(cd "$(dirname "$0")" && pwd)

# shellcheck source-path=SCRIPTDIR source=dry_run.sh
source "$here/dry_run.sh"
check_numbers SLICES ROUNDS
check_names TPU_NAME ZONE

place=("--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
request=(
  gcloud compute tpus queued-resources create "$TPU_NAME" "${place[@]}"
  "--accelerator-type=$TYPE" "--runtime-version=$VERSION"
)
nodes=("$TPU_NAME")
if [ "$SLICES" -gt 1 ]; then
  request+=("--node-count=$SLICES" "--node-prefix=$TPU_NAME")
  nodes=()
  for ((i = 0; i < SLICES; i++)); do nodes+=("$TPU_NAME-$i"); done
  set -- "$@" "--config.mesh.slices=$SLICES"
else
  request+=("--node-id=$TPU_NAME")
fi
if [ -n "$SPOT" ]; then request+=(--spot); fi
state=(
  gcloud compute tpus queued-resources describe "$TPU_NAME" "${place[@]}"
  "--format=value(state.state)"
)
delete=(
  gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force --quiet
)
setup="set -e; [ -d pyratok-jax ] || git clone -- $(printf '%q' "$SOURCE") pyratok-jax;"
setup+=" cd pyratok-jax;"
setup+=" [ -d .venv ] || python3 -m venv .venv; .venv/bin/pip install -q -e '.[tpu,gcs]'"

# Wait until the slices are there; fails when they will not come.
await() {
  while true; do
    case $("${state[@]}") in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED) return 1 ;;
    esac
    sleep 60
  done
}

# Train on every slice at once; the code of the first that fails.
train() {
  local pids=() code=0
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all "--command=$setup" ||
      return 1
  done
  for node in "${nodes[@]}"; do
    TPU_NAME=$node RESTARTS=${RESTARTS:-3} "$here/tpu_vm.sh" ${dry_run:+--dry-run} "$@" &
    pids+=($!)
    if [ -n "$dry_run" ]; then wait "${pids[-1]}"; fi
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || { local failed=$?; [ "$code" -ne 0 ] || code=$failed; }
  done
  return "$code"
}

export ZONE BUCKET PROJECT
for ((round = 0; round < ROUNDS; round++)); do
  code=0
  run "${request[@]}" || code=$?
  if [ -n "$dry_run" ]; then
    run "${state[@]}"
    train "$@"
    run "${delete[@]}"
    exit 0
  fi
  # A request of this name may be there from before: then that one is used.
  if await; then
    code=0
    train "$@" || code=$?
    case $code in
      0 | 2 | 4 | 130)
        echo "done with code $code; the slice stays: ${delete[*]}"
        exit "$code"
        ;;
    esac
    # The slice is there and the training fails on it: no reason to ask for another.
    if [ "$("${state[@]}")" = ACTIVE ]; then exit "$code"; fi
  fi
  echo "the slice was lost or refused; asking again" >&2
  "${delete[@]}" || true
done
exit 1
