"""What Git says of the repository, if Git is there: DVC needs no such command, so no command of ours does."""

import shutil
import subprocess
from pathlib import Path


def output(*words: str) -> bytes | None:
    """Return what a command of Git prints; None if it fails, or there is no Git."""
    git = shutil.which("git")
    if git is None:
        return None
    run = subprocess.run([git, *words], capture_output=True, check=False)  # noqa: S603
    return run.stdout if run.returncode == 0 else None


def read_committed(path: Path) -> bytes | None:
    """Return a file of the working folder as it is in the last commit; None if it is in none."""
    return output("show", f"HEAD:./{path.as_posix()}")
