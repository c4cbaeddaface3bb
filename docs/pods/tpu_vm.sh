#!/bin/bash
# Training on the hosts of a TPU VM slice. Before: the slice, and this project with its extra `tpu` on every host.
#
#   gcloud compute tpus queued-resources create NAME --zone=ZONE --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 \
#     --node-id=NAME                               several slices: --node-count=2 --node-prefix=NAME, named NAME-0, NAME-1
#   NAME=.. ZONE=.. bash docs/pods/tpu_vm.sh       several slices: SLICES=2 besides
#
# The session must not own the process: it goes on when ssh ends. Stop it with SIGTERM on any host:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=0 --command="pkill -TERM -f launch.train"
set -eu
: "${NAME:?the slice, or what the names of several begin with}" "${ZONE:?its zone}" "${SLICES:=1}"
: "${SIZE:=8b}" "${DATA:=/mnt/data}" "${WORKDIR:=/mnt/runs/$SIZE}"

MESH="fsdp=-1" NODES="$NAME"
if [ "$SLICES" -gt 1 ]; then
  MESH="data=$SLICES,fsdp=-1" # what alone crosses the network between slices
  NODES=$(seq -f "$NAME-%.0f" 0 $((SLICES - 1)))
fi

SSH=""
for NODE in $NODES; do # at once: the processes of all slices wait for each other
  gcloud compute tpus tpu-vm ssh "$NODE" --zone="$ZONE" --worker=all --command="
    cd internvl_jax
    nohup setsid python -m launch.train --config=sft:$SIZE --distributed=auto --config.run.mesh=$MESH \
      --config.data.meta=$DATA/meta.json --config.run.init_from=$DATA/model --config.run.workdir=$WORKDIR \
      > train.log 2>&1 < /dev/null &
  " &
  SSH="$SSH $!"
done
for EACH in $SSH; do wait "$EACH"; done # fails where one of them did
