#!/usr/bin/env bash
# Run a part of a comparison of methods in a clone of its own, and keep its records in a folder that all jobs see:
#
#     arena.sh REPOSITORY FOLDER PRESET TEXT
#
# TEXT is what the titles of the runs hold, such as "tweets:". A job that is started again goes on where it was. Labels of
# test splits that the repository has not are kept in FOLDER/PRESET-labels; those of files of your own are not.
set -euo pipefail
mkdir -p "$2"
name=$3-${4//[^A-Za-z0-9]/-}
shared=$(cd "$2" && pwd)
records=$shared/$name.jsonl
touch "$records"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet "$1" "$folder/clone"
cd "$folder/clone"
mkdir -p "reports/arena/$3"
ln -s "$records" "reports/arena/$3/$name.jsonl" # a finished training is there at once
labels=reports/arena/$3/labels
if [ ! -e "$labels" ]; then
    mkdir -p "$shared/$3-labels"
    ln -s "$shared/$3-labels" "$labels"
fi
python -m pipeline.arena "$3" --jobs "${JOBS:-2}" --only "$4" --write "$name"
