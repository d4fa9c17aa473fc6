#!/usr/bin/env bash
# Train on several TPU slices joined over the data-centre network, by one queued resource.
#
#   TPU_NAME=my-slices SLICES=4 ZONE=us-east5-a TYPE=v5p-128 BUCKET=my-bucket SOURCE=... \
#       launch/multislice.sh [--dry-run] --config configs/tpu_v5.py:stage1 [more flags]
#
# Variables as in launch/queued_resource.sh. Only gradients cross between slices: the slices are the
# outermost axis of config.mesh, and every slice holds all parameters.
set -euo pipefail

SLICES=${SLICES:?set SLICES to the number of slices}
if ! [[ $SLICES =~ ^[0-9]+$ ]] || [ "$SLICES" -lt 2 ]; then
  echo "SLICES is $SLICES, expected a number of at least 2; for one slice: queued_resource.sh" >&2
  exit 2
fi
export SLICES
exec "$(cd "$(dirname "$0")" && pwd)/queued_resource.sh" "$@"
