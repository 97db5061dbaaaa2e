#!/bin/bash
# 100 shards of COCO-Stuff on one GPU each; a shard that fails or is preempted is started again and goes on.
#
#   id=$(sbatch --parsable slurm_array.sh)
#   sbatch --dependency=afterok:$id slurm_merge.sh
#
#SBATCH --job-name=gla-jax
#SBATCH --array=0-99
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

gla-jax eval coco_stuff164k --data "$DATA" --out "$RESULTS" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
  --batch 8 --threads 8
