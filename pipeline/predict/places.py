"""Paths for a command that runs from any folder: missing paths are looked up in the repository of its code."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def here_or_in_the_repository(path: Path) -> Path:
    """Return a relative path, or the same path in the repository if only that exists."""
    there = REPOSITORY / path
    return path if path.exists() or not there.exists() else there
