"""Run commands of DVC, with the Python that runs this program."""

import subprocess
import sys


def run_dvc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Return a finished command of DVC, which may have failed, with what it has printed."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
