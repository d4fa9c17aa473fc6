#!/usr/bin/env bash
# Start (or go on with) a training on all workers of a TPU VM slice.
#
#   TPU_NAME=my-slice ZONE=us-east5-a WORKDIR=gs://bucket/run launch/tpu_vm.sh [--dry-run] \
#       --config configs/tpu_v5.py:stage1 [more flags of pyratok_jax.train]
#
# The same command resumes: training goes on from the newest checkpoint in WORKDIR.
set -euo pipefail

TPU_NAME=${TPU_NAME:?set TPU_NAME to the name of the TPU VM}
ZONE=${ZONE:?set ZONE to its zone}
WORKDIR=${WORKDIR:?set WORKDIR to a gs:// folder that all workers can write}
PROJECT=${PROJECT:-}
REPOSITORY=${REPOSITORY:-\$HOME/pyratok-jax}

run=()
if [ "${1:-}" = "--dry-run" ]; then
  run=(echo)
  shift
fi

arguments=$(printf '%q ' "$@" --config.multi_host=true "--workdir=$WORKDIR")
remote="cd $REPOSITORY && .venv/bin/python -m pyratok_jax.train $arguments 2>&1 | tee -a train.log"
"${run[@]}" gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" \
  ${PROJECT:+--project="$PROJECT"} --worker=all --command="$remote"
