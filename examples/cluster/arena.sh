#!/usr/bin/env bash
# Run a part of the comparison of methods in a clone of its own, and keep its finished cells in a folder that all jobs see:
#
#     arena.sh REPOSITORY FOLDER TEXT
#
# TEXT is what the names of the cells hold, such as "short tweets:". A job that is started again goes on where it was.
set -euo pipefail
mkdir -p "$2"
cells=$(cd "$2" && pwd)/${3//[^A-Za-z0-9]/-}.jsonl
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet "$1" "$folder/clone"
cd "$folder/clone"
here=benchmarks/results/family/cells.jsonl
touch "$cells"
sort -u "$here" "$cells" > "$cells.new"
mv "$cells.new" "$cells"
ln -sf "$cells" "$here" # a finished cell is there at once
python -m benchmarks.family --workers "${WORKERS:-2}" --only "$3"
