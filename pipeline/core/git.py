"""What DVC needs of Git."""

import os
import shutil
import subprocess

from pipeline.core import console


def warn_without_identity() -> None:
    """Say how to give Git a name: without one, `dvc exp run` fails before it starts anything of ours."""
    git = shutil.which("git")

    def is_known(what: str) -> bool:
        found = git and subprocess.run([git, "config", f"user.{what}"], capture_output=True, check=False)  # noqa: S603
        return f"GIT_COMMITTER_{what.upper()}" in os.environ or bool(found and found.stdout.strip())

    if not (is_known("name") and is_known("email")):
        console.warn(
            "Git does not know your name, which `dvc exp run` needs: "
            "git config user.name 'Your Name' && git config user.email you@example.com"
        )
