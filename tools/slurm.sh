#!/bin/bash
# One run on the GPUs of a SLURM cluster, one process a GPU, which goes on by itself until it is done:
#
#   sbatch tools/slurm.sh vit --preset cifar-1d --seed 0
#   sbatch --nodes 2 tools/slurm.sh ...        # options given here win over those below
#
# Five minutes before its time is over SLURM sends SIGUSR1 to every process; they save after the same step and leave
# with exit code 75. Then the job goes back into the queue, and its next turn resumes from that step.
#SBATCH --job-name=papers
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
paper=${1:?"the paper comes first: sbatch tools/slurm.sh vit --preset laptop"}
shift

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) WORLD_SIZE=$SLURM_NTASKS

# A launcher between SLURM and the processes would not hand the signal on: srun starts them, accelerate finds its ranks.
# All leave within a moment of each other; one that is left alone is ended after a minute.
code=0
srun --kill-on-bad-exit=0 --wait=60 bash -c \
  'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec python -m "papers.$0.train" "$@"' \
  "$paper" "$@" --resume auto --output-dir "runs/$paper/slurm-$SLURM_JOB_ID" || code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
