#!/usr/bin/env bash
# Run the experiments of one line of a list in a clone of its own, and push what comes of them:
#
#     job.sh REPOSITORY LIST NUMBER
#
# REPOSITORY is what `git clone` takes. Each line of LIST holds values as they stand after `dvc exp run --queue`, where
# several values make several experiments: -S adapter=lora -S lora.r=1,4 -S 'seed=range(0, 5)'. NUMBER is the line to run.
# DVC lets one process at a time change a clone, so each job has one. Where DVC_CACHE names a folder that all jobs see, on
# a shared disk for one, nothing is copied from the remote or to it. Beside Git and DVC, this needs setsid and pkill.
set -euo pipefail
values=$(sed -n "${3}p" "$2")
if [ -z "$values" ]; then
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
eval "dvc exp run --queue $values" # as it would be typed
setsid dvc exp run --run-all &
session=$!
# DVC works in the background: what is left of that ends with this script, even where nothing is left to run the trap.
end="pkill -KILL -s $session || true; rm -rf '$folder' || true" # its check for updates may still write
trap "$end" EXIT
exec 3> >(exec setsid bash -c "read -r; $end")
status=0
wait "$session" || status=$?
for name in $(dvc exp list --name-only); do # what has ended well is pushed in any case
    dvc exp push ${DVC_CACHE:+--no-cache} origin "$name"
done
if dvc queue status | grep -E ' (Failed|Queued|Running)$'; then # of which DVC ends with 0, too
    status=1
fi
exit "$status"
