"""Run commands of DVC, with the Python that runs this program."""

import subprocess
import sys


def run_dvc(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of DVC to its end, and return its exit code and output; a failure raises no error."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
