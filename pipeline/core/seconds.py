"""The seconds that stages took, beside DVC's outputs, whose bytes do not depend on the machine.

They are found by what the stage wrote, so those of a run that DVC restores are found again, if it ran in this clone. Of
a training that was killed and went on, they are the seconds since then.
"""

import hashlib
from pathlib import Path

from pipeline.core import artifacts

FOLDER = ".cache/seconds"


def record(stage: str, seconds: float) -> None:
    """Note how long a stage took that has just written its reports."""
    path = _path(stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{seconds:.1f}\n", encoding="utf-8")


def recorded(stage: str) -> float | None:
    """Return how long the run of a stage took that wrote its present reports; None if that is not known."""
    path = _path(stage)
    return float(path.read_text(encoding="utf-8")) if path.is_file() else None


def _path(stage: str) -> Path:
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path("reports", stage).glob("*.*"))))
    return artifacts.repository() / FOLDER / f"{stage}-{digest.hexdigest()[:16]}"
