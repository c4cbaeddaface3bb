#!/bin/bash
# Training on TPUs of GKE with XPK. Before: `xpk cluster create`, and an image with this project and its extra `tpu`
# (docs/deploy/Dockerfile with EXTRA=tpu).
#
#   CLUSTER=.. IMAGE=.. bash docs/pods/xpk.sh
#
# A run that is stopped (75) or loses a process (76) starts again by itself, --max-restarts times; XPK by itself restarts
# what a signal ended. An error (1) ends the workload.
set -eu
: "${CLUSTER:?the cluster}" "${IMAGE:?the image}" "${SIZE:=8b}" "${TPU:=v5p-128}" "${SLICES:=1}"
: "${DATA:=/mnt/data}" "${WORKDIR:=/mnt/runs/$SIZE}"

MESH="fsdp=-1"
if [ "$SLICES" -gt 1 ]; then MESH="data=$SLICES,fsdp=-1"; fi

xpk workload create --workload="train-$SIZE" --cluster="$CLUSTER" --tpu-type="$TPU" --num-slices="$SLICES" \
  --docker-image="$IMAGE" --max-restarts=20 --restart-on-exit-codes=75,76 \
  --termination-grace-period-seconds=300 \
  --command="python -m launch.train --config=sft:$SIZE --distributed=auto --config.run.mesh=$MESH \
    --config.data.meta=$DATA/meta.json --config.run.init_from=$DATA/model --config.run.workdir=$WORKDIR"
