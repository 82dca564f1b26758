#!/usr/bin/env bash
# Run all lines of a list on machines that SSH reaches, one at a time on each, by GNU parallel:
#
#     ssh.sh REPOSITORY LIST HOSTS FOLDER
#
# HOSTS is a file with a name a line, `:` for this machine; FOLDER is the path of this repository, with .venv and LIST, on
# each of them. What failed runs again when the same command is typed again, and nothing else does.
set -euo pipefail
seq "$(grep -c "" "$2")" | parallel --sshloginfile "$3" --jobs 1 --joblog "$2.log" --resume-failed \
    "cd $(printf %q "$4") && PATH=\$PWD/.venv/bin:\$PATH examples/cluster/job.sh $(printf %q "$1") $(printf %q "$2") {}"
