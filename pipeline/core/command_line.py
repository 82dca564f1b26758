"""What the commands of the pipeline share: their parser, and what DVC needs of Git."""

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import NoReturn

from pipeline.core import console
from pipeline.core.errors import MISTAKE


class Parser(argparse.ArgumentParser):
    """An argument parser that keeps the lines of its description, and reports errors in one line."""

    def __init__(self, prog: str, description: str | None, epilog: str | None = None) -> None:
        super().__init__(prog, None, description, epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number within these bounds."""

    def parsed(word: str) -> int:
        if not word.isdecimal() or not least <= int(word) <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}, got {word}")
        return int(word)

    return parsed


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
