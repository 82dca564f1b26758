#!/usr/bin/env bash
# One line of a list a task of the array:
#
#     sbatch --array=1-"$(wc -l < jobs.txt)" --export=ALL,REPOSITORY=git@example.org:me/lsr-adapt.git examples/cluster/slurm.sh
#
# At most 8 at once: --array=1-200%8. Another partition, time or card: the words of sbatch, before this file.
#SBATCH --job-name=lsr-adapt
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=02:00:00
#SBATCH --output=slurm-%A_%a.txt
#SBATCH --requeue
set -euo pipefail
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# A copy of this script runs elsewhere, so paths are those of the folder where sbatch was called.
cd "$SLURM_SUBMIT_DIR"
export PATH=$PWD/.venv/bin:$PATH
examples/cluster/job.sh "$REPOSITORY" jobs.txt "$SLURM_ARRAY_TASK_ID"
