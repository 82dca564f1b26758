#!/usr/bin/env bash
# Run one experiment in a clone of its own, and push what comes of it:
#
#     job.sh REPOSITORY LIST NUMBER
#
# REPOSITORY is what `git clone` takes, LIST what `python -m pipeline.sweep` has printed, NUMBER the line to run. DVC lets
# one process at a time change a clone, so each job has one. Where DVC_CACHE names a folder that all jobs see, on a shared
# disk for one, nothing is copied from the remote or to it.
set -euo pipefail
command=$(sed -n "${3}p" "$2")
if [ -z "$command" ]; then
    echo "job.sh: $2: has no line $3" >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet "$1" "$folder/clone"
cd "$folder/clone"
if [ -n "${DVC_CACHE:-}" ]; then
    dvc cache dir --local "$DVC_CACHE"
    dvc config --local cache.shared group
else
    dvc pull --quiet --run-cache --allow-missing
fi
bash -c "$command"
name=$(dvc exp list --name-only)
if [ -n "${DVC_CACHE:-}" ]; then
    dvc exp push --no-cache origin "$name"
else
    dvc exp push origin "$name"
fi
