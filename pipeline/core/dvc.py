"""Run commands of DVC, with the Python that runs this program."""

import subprocess
import sys


def run_dvc(*words: str) -> "subprocess.CompletedProcess[str]":
    """Return a finished command of DVC, which may have failed, with what it has printed."""
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
