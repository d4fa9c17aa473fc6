#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster, by XPK (pip install xpk); restarts resume where they were.
#
#   CLUSTER=my-cluster ZONE=us-east5-a TPU_TYPE=v5p-128 BUCKET=my-bucket IMAGE=... \
#       launch/gke_xpk.sh [--dry-run] --config configs/tpu_v5.py:stage1 [more flags]
#
# Variables: WORKLOAD (name), SLICES, PROJECT, RUN (folder inside the bucket; the same folder is the
# same run), RESTARTS. IMAGE is made by launch/Dockerfile. A workload
# that has ended keeps its name until `xpk workload delete`.
set -euo pipefail

CLUSTER=${CLUSTER:?set CLUSTER to the name of the GKE cluster}
ZONE=${ZONE:?set ZONE to its zone}
TPU_TYPE=${TPU_TYPE:?set TPU_TYPE to the type of its slices, such as v5p-128}
BUCKET=${BUCKET:?set BUCKET to a bucket that the nodes can write to}
IMAGE=${IMAGE:?set IMAGE to an image made by launch/Dockerfile}
WORKLOAD=${WORKLOAD:-pyratok}
SLICES=${SLICES:-1}
PROJECT=${PROJECT:-}
RUN=${RUN:-$WORKLOAD}
RESTARTS=${RESTARTS:-10}

# shellcheck source-path=SCRIPTDIR source=dry_run.sh
source "$(dirname "$0")/dry_run.sh"
check_numbers SLICES RESTARTS
check_names CLUSTER ZONE WORKLOAD

place=("--cluster=$CLUSTER" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"})
# Everything that comes from a variable or an argument is quoted for the container's shell.
logs=$(printf '%q' "gs://$BUCKET/$RUN/logs")
arguments=$(printf '%q ' "$@" --config.multi_host=true "--config.mesh.slices=$SLICES" \
  "--workdir=gs://$BUCKET/$RUN")
# A container that must go gets SIGTERM: the training saves and ends with code 130.
inside="cd /app && log=\$(mktemp) || exit 1;"
inside+=" trap 'kill -TERM \$pid' TERM;"
inside+=" python -m pyratok_jax.train $arguments > \"\$log\" 2>&1 & pid=\$!;"
inside+=" tail -n +1 -f --pid=\$pid \"\$log\" & wait \$pid; code=\$?;"
inside+=" while kill -0 \$pid 2>/dev/null; do wait \$pid; code=\$?; done;"
inside+=" python -m pyratok_jax.pods.keep_log \"\$log\" $logs; wait; exit \$code"

# Left to itself XPK restarts what ended by a signal (so also code 130, saved on request) but neither
# a lost process (3) nor a defect (1), and gives 30 seconds for saving.
run xpk workload create "--workload=$WORKLOAD" "${place[@]}" "--tpu-type=$TPU_TYPE" \
  "--num-slices=$SLICES" "--docker-image=$IMAGE" "--max-restarts=$RESTARTS" \
  --restart-on-exit-codes=1,3 --termination-grace-period-seconds=300 \
  "--command=$inside"
