#!/bin/bash
# One large image over all chips of a TPU slice: every host runs the same command, and the windows of the image are
# split over the 16 chips of a v5litepod-16 (4 hosts). The death of one host ends all; start them again.
#
#   NAME=slice ZONE=us-central1-a IMAGE=gs://BUCKET/large.tif OUT=gs://BUCKET/large bash tpu_slice.sh
set -euo pipefail

gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command="
  gla-jax segment '$IMAGE' --short-side native --classes roof --classes road --classes tree --classes water \
    --mesh 1x16 --distributed --out '$OUT'"
