"""Read information from Git, if it is installed: neither DVC nor our commands require it."""

import shutil
import subprocess
from pathlib import Path


def output(*arguments: str) -> bytes | None:
    """Return the output of a Git command; None if it fails or Git is not installed."""
    git = shutil.which("git")
    if git is None:
        return None
    run = subprocess.run([git, *arguments], capture_output=True, check=False)  # noqa: S603
    return run.stdout if run.returncode == 0 else None


def read_committed(path: Path) -> bytes | None:
    """Return the contents of a file in the last commit; None if it is not in it."""
    return output("show", f"HEAD:./{path.as_posix()}")
