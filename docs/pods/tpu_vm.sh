#!/bin/bash
# Training on the hosts of a TPU VM slice. Before: the slice, and this project with its extra `tpu` on every host.
#
#   gcloud compute tpus queued-resources create NAME --zone=ZONE --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 \
#     --node-id=NAME     (several slices: --node-count=2 --node-prefix=NAME in place of --node-id)
#   NAME=.. ZONE=.. bash docs/pods/tpu_vm.sh
#
# The session must not own the process: it goes on when ssh ends. Stop it with SIGTERM on any host:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0 --command="pkill -TERM -f launch.train"
set -eu
: "${NAME:?the slice}" "${ZONE:?its zone}" "${SIZE:=8b}" "${DATA:=/mnt/data}" "${WORKDIR:=/mnt/runs/$SIZE}"

gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="
  cd internvl_jax
  nohup setsid python -m launch.train --config=sft:$SIZE --distributed=auto \
    --config.data.meta=$DATA/meta.json --config.run.init_from=$DATA/model --config.run.workdir=$WORKDIR \
    > train.log 2>&1 < /dev/null &
"
