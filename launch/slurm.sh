#!/usr/bin/env bash
# A run on a SLURM partition, one process a node. Options of sbatch given on its command line win:
#
#   sbatch --partition=PARTITION --nodes=4 --time=24:00:00 launch/slurm.sh \
#       --config=configs/fsae.py:paper --workdir=/shared/runs/fsae
#
# With --ntasks-per-node=8 there is one process a GPU. Five minutes before its time ends the run
# saves, and the job is put into the queue again; so it is after a node failed. scancel ends it.
#SBATCH --job-name=vidlatent
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u

INTERRUPTED=130 # exit status of a run that was asked to stop, saved and left
LOST=75         # a process was killed or hung, and starting again may help

if [ $# -eq 0 ]; then
    echo "usage: sbatch [options] launch/slurm.sh --config=... --workdir=... [flags of vidlatent.main]" >&2
    exit 2
fi

signals=0
# Signals the steps of the job, not this shell.
trap 'signals=$((signals + 1)); scancel --signal=TERM "$SLURM_JOB_ID"' USR1

# Processes save together and need not end in the same second: nobody is killed for it.
srun --kill-on-bad-exit=0 --wait=120 "${PYTHON:-python}" -m vidlatent.main "$@" &
step=$!
while :; do
    before=$signals
    wait "$step"
    status=$?
    # A signal ends wait, not the step.
    [ "$signals" -eq "$before" ] && break
done

if [ "$signals" -gt 0 ] && [ "$status" -eq "$INTERRUPTED" ] || [ "$status" -eq "$LOST" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
