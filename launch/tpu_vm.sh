#!/usr/bin/env bash
# Start (or resume) a training on all workers of a TPU VM slice that exists.
#
#   TPU_NAME=my-slice ZONE=us-east5-a BUCKET=my-bucket launch/tpu_vm.sh [--dry-run] \
#       --config configs/tpu_v5.py:stage1 [more flags of pyratok_jax.train]
#
# Variables: RUN (folder inside the bucket), PROJECT, REPOSITORY (on the workers), RESTARTS.
# The same command resumes: training starts from the newest checkpoint of RUN.
set -euo pipefail

TPU_NAME=${TPU_NAME:?set TPU_NAME to the name of the TPU VM}
ZONE=${ZONE:?set ZONE to its zone}
BUCKET=${BUCKET:?set BUCKET to a bucket that all workers can write to}
RUN=${RUN:-pyratok}
PROJECT=${PROJECT:-}
RESTARTS=${RESTARTS:-10}

# shellcheck source-path=SCRIPTDIR source=dry_run.sh
source "$(dirname "$0")/dry_run.sh"
check_numbers RESTARTS
check_names TPU_NAME ZONE

# Everything that comes from a variable or an argument is quoted for the workers' shell, except
# REPOSITORY's own default, which that shell has to expand.
logs=$(printf '%q' "gs://$BUCKET/$RUN/logs")
if [ -n "${REPOSITORY:-}" ]; then repository=$(printf '%q' "$REPOSITORY"); else
  repository="\"\$HOME/pyratok-jax\""
fi
arguments=$(printf '%q ' "$@" --config.multi_host=true "--workdir=gs://$BUCKET/$RUN")
remote="set -o pipefail; log=\$(mktemp) && cd $repository &&"
remote+=" .venv/bin/python -m pyratok_jax.train $arguments 2>&1"
remote+=" | tee \"\$log\"; code=\$?;"
remote+=" .venv/bin/python -m pyratok_jax.pods.keep_log \"\$log\" $logs; rm -f \"\$log\"; exit \$code"
command=(
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}
  --worker=all "--command=$remote"
)
if [ -n "$dry_run" ]; then
  run "${command[@]}"
  exit 0
fi
for ((round = 0; ; round++)); do
  code=0
  "${command[@]}" || code=$?
  # 0: finished; 2: a mistake of the user; 4: some inputs were rejected; 130: stopped on request.
  case $code in 0 | 2 | 4 | 130) exit "$code" ;; esac
  if [ "$round" -ge "$RESTARTS" ]; then exit "$code"; fi
  echo "exit code $code; resuming from the last checkpoint in 30 s ($((round + 1)) of $RESTARTS)" >&2
  sleep 30
done
