"""The command runs from any folder: what is not here is looked for in the repository that its code lies in."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def here_or_in_the_repository(path: Path) -> Path:
    """Return a relative path, or, if nothing is there, the same one in the repository if something is there."""
    there = REPOSITORY / path
    return path if path.exists() or not there.exists() else there
