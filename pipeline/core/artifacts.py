"""Paths of all stages, and writers that are atomic and reproducible."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from pipeline.core.errors import UserError, describe_disk_error

INPUTS = Path("artifacts/inputs.json")
TOKENS = Path("artifacts/tokens")
INIT = Path("artifacts/init")
ADAPTER = Path("artifacts/adapter")
BANK = Path("artifacts/bank")
CARD = Path("artifacts/card.md")

TOKENIZE_SPLITS = Path("reports/tokenize/splits.csv")
TOKENIZE_LENGTHS = Path("reports/tokenize/lengths.csv")
FACTORIZE_METRICS = Path("reports/factorize_init/metrics.json")
FACTORIZE_START = Path("reports/factorize_init/start.csv")
TRAIN_METRICS = Path("reports/train/metrics.json")
TRAIN_LOSS = Path("reports/train/curves/loss.csv")
TRAIN_VALIDATION_LOSS = Path("reports/train/curves/validation_loss.csv")
TRAIN_VALIDATION_SCORE = Path("reports/train/curves/validation_score.csv")
EVALUATE_METRICS = Path("reports/evaluate/metrics.json")
EVALUATE_PREDICTIONS = Path("reports/evaluate/predictions.csv")
EVALUATE_CLASSES = Path("reports/evaluate/classes.csv")
EVALUATE_RELIABILITY = Path("reports/evaluate/reliability.csv")
EVALUATE_COVERAGE = Path("reports/evaluate/coverage.csv")
EVALUATE_TENANTS = Path("reports/evaluate/tenants.csv")
EVALUATE_HELD_OUT = Path("reports/evaluate/held_out_tenants.csv")
ARENA = Path("reports/arena")  # one folder of records per preset; they are not outs of the DVC pipeline

Value = str | int | float
QUOTING: tuple[Literal[0], Literal[2]] = (csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC)


def tokens(split: str) -> Path:
    """Return the Arrow file of a split: train, validation or test."""
    return TOKENS / f"{split}.arrow"


def is_bank(folder: Path) -> bool:
    """Return whether a folder is a bank: adapters of tenants in one file."""
    return (folder / "bank.safetensors").is_file()


def repository() -> Path:
    """Return the repository, rather than the temporary copy in which DVC may run an experiment."""
    return Path(os.environ.get("DVC_ROOT", "."))


def is_temporary_copy() -> bool:
    """Return whether this is a temporary copy in which DVC runs an experiment; it has only what Git tracks."""
    return repository().resolve() != Path.cwd()


def write_metrics(path: Path, metrics: Mapping[str, Value], shown: Collection[str] | None = None) -> None:
    """Write flat JSON with sorted keys and floats of six digits, so that a diff shows real changes only.

    `score` comes first, because DVC's tables keep the file's order. If `shown` names metrics, all others are in the
    list `details`, since DVC's tables leave out lists.
    """
    written: dict[str, Any] = {}
    details = {}
    for name in sorted(metrics, key=lambda name: (name != "score", name)):
        value = metrics[name]
        rounded = float(f"{value:.6g}") if isinstance(value, float) else value
        if shown is None or name in shown:
            written[name] = rounded
        else:
            details[name] = rounded
    if shown is not None:
        written["details"] = [details]
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the metrics of a file as one mapping, including those in `details`."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    return metrics | dict(*metrics.pop("details", []))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    """Write a table with a header line; floats have six digits."""
    with replace_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writers = {style: csv.writer(file, lineterminator="\n", quoting=style) for style in QUOTING}
        writers[quoting_of(columns)].writerow(columns)
        for row in rows:
            shown = [f"{value:.6g}" if isinstance(value, float) else value for value in row]
            writers[quoting_of(shown)].writerow(shown)


def quoting_of(values: Iterable[object]) -> Literal[0, 2]:
    """Return how to quote cells of a CSV file, one of QUOTING: all texts if one has a carriage return.

    Readers end a row there, and before Python 3.13 the module csv does not quote it by itself.
    """
    usual, all_texts = QUOTING
    return all_texts if any(isinstance(value, str) and "\r" in value for value in values) else usual


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, for a file or a folder, which replaces `path` on success.

    Raises:
        UserError: if the disk rejects it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    old = path.with_name(f".{path.name}.old")
    _move_back(old, path)
    for left in (temporary, old):  # left by a killed run
        remove(left)
    try:
        with name_path_on_error(path):
            yield temporary
        for file in temporary.rglob("*"):  # follows the umask: nobody else may read what safetensors writes
            if file.is_file() and not file.is_symlink():
                file.chmod(temporary.stat().st_mode & 0o666)
        if path.is_dir():
            path.rename(old)  # removed afterwards: a reader never meets a folder of which some files are gone
        temporary.replace(path)
        remove(old)
    finally:
        _move_back(old, path)
        remove(old)
        remove(temporary)


def _move_back(old: Path, path: Path) -> None:
    """Move back a folder if a command was stopped or killed after it had moved it aside."""
    if old.exists() and not path.exists():
        old.rename(path)


def identity(folder: Path) -> tuple[int, int] | None:
    """Return an identifier that changes when a folder is replaced; None if it does not exist."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def check_not_replaced(folder: Path, before: tuple[int, int] | None) -> None:
    """Check that a folder still has the identity `before`, so that all files read belong to one adapter.

    Raises:
        UserError: if it was replaced.
    """
    if identity(folder) != before:
        raise UserError(f"{folder}: was replaced while it was read; run the command again")


def build_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return a file or folder, built by `make` at a temporary path if it is missing; other processes wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with replace_atomically(path) as temporary:
                make(temporary)
    return path


@contextmanager
def name_path_on_error(path: Path) -> Iterator[None]:
    """Add the path to errors of writing, whose own message does not name it.

    Raises:
        UserError: with the path and the reason.
    """
    try:
        yield
    except Exception as error:
        reason = describe_disk_error(error)
        if reason is None or getattr(error, "filename", None) is not None:
            raise
        raise UserError(f"{path}: cannot be written: {reason}") from None


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
