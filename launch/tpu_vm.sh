#!/usr/bin/env bash
# A run on all hosts of a TPU VM (or of slices from queued resources, one call for each slice):
#
#   launch/tpu_vm.sh NAME ZONE --config=configs/fsae.py:paper --workdir=/shared/runs/fsae
#   launch/tpu_vm.sh NAME ZONE stop
#
# The hosts find each other by the VM's metadata. The package is expected in ~/vidlatent with its
# environment in ~/vidlatent/.venv; FOLDER and PYTHON name others. "stop" makes the run save and leave.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: launch/tpu_vm.sh NAME ZONE --config=... --workdir=... [flags of vidlatent.main] | stop" >&2
    exit 2
fi
name=$1 zone=$2
shift 2

if [ "$*" = stop ]; then
    # The brackets keep the pattern from finding the shell that holds it.
    command="pkill -TERM -f 'vidlatent[.]main'"
else
    # Quoted for the remote shell, which splits the command again.
    flags=$(printf ' %q' "$@")
    command="cd ${FOLDER:-vidlatent} && exec ${PYTHON:-.venv/bin/python} -m vidlatent.main$flags"
fi
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
