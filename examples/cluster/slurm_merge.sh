#!/bin/bash
# Puts the shards together; it refuses, and names what is missing, while one of them is not finished.
#
#SBATCH --job-name=gla-jax-merge
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=00:30:00
#SBATCH --output=%x-%j.log
set -euo pipefail

JAX_PLATFORMS=cpu gla-jax eval merge "$RESULTS"
