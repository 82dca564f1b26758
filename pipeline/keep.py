"""Keep the last trained adapter in `models/NAME`, with its card and test scores; without a name, list those kept.

A kept adapter is a folder like any other: `--adapter models/NAME`, `lsr serve models/NAME`, `-S lsr.init=models/NAME`.
The bank of tenants is in `models/NAME/bank`.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lsr_onnx.errors import first_line
from pipeline import previous
from pipeline.core import artifacts, console
from pipeline.core.console import Parser
from pipeline.core.dvc import run_dvc
from pipeline.core.errors import UserError
from pipeline.params import PARAMS, load_entry
from pipeline.params.yaml_file import read_yaml

FOLDER = Path("models")
RECORD = "kept.json"  # file in the folder of a kept adapter with its run and its scores
BANK = "bank"
CARD = "README.md"  # the name that PEFT and the Hub use
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RULE = "a name begins with a letter or digit and has at most 64 letters, digits, dots, hyphens and underscores"
CHOSEN = ("adapter", "data", "model", "seed")  # keys of params.yaml that a record has
EVALUATED = (artifacts.ADAPTER, artifacts.BANK, artifacts.CARD, artifacts.EVALUATE_METRICS)
COLUMNS = ("name", *CHOSEN, "trained", "test score", "95 % interval")


def main(arguments: Sequence[str] | None = None) -> None:
    """Keep the last adapter under a name, or print the table of those that are kept.

    Raises:
        UserError: if the adapter cannot be kept, or an option has no effect.
    """
    parser = Parser(
        "python -m pipeline.keep",
        "Keep the last trained adapter with its card, test scores and bank in models/NAME; without NAME, list the kept "
        "ones. Predict with --adapter models/NAME, or continue training with -S lsr.init=models/NAME.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the new folder in models/ (default: list)")
    parser.add_argument("--force", action="store_true", help="overwrite the adapter kept under this name")
    with parser.parse(arguments, before=f"{parser.prog}: ") as options:
        if options.name is not None:
            keep(options.name, replaces=options.force)
        elif options.force:
            raise UserError("--force: has no effect without a name")
        else:
            rows = list(list_kept())
            console.table("kept adapters", COLUMNS, rows)
            if not rows:
                console.line("none is kept; to keep the last one: python -m pipeline.keep NAME")


def keep(name: str, *, replaces: bool = False) -> None:
    """Copy the last adapter, its card and its bank, if it has tenants, to `models/NAME`, atomically.

    Raises:
        UserError: if the name is invalid or taken, or the adapter is not the one that was evaluated last.
    """
    folder = FOLDER / name
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r}: {RULE}")
    _check_free(folder, replaces=replaces)
    _check_evaluated()
    with artifacts.replace_atomically(folder) as new:
        shutil.copytree(artifacts.ADAPTER, new)
        shutil.copyfile(artifacts.CARD, new / CARD)
        if artifacts.is_bank(artifacts.BANK):
            shutil.copytree(artifacts.BANK, new / BANK)
        record = json.dumps(_record(), indent=2)
        (new / RECORD).write_text(f"{record}\n", encoding="utf-8")
    console.line(f"{folder}: kept")


def list_kept() -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each kept adapter, by name: COLUMNS.

    Raises:
        UserError: if a record cannot be read.
    """
    for path in sorted(FOLDER.glob(f"*/{RECORD}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            yield path.parent.name, *_cells(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{path}: not a record of a kept adapter: {reason}") from None


def _cells(record: dict[str, Any]) -> Iterator[str]:
    """Yield the cells of a record, in the order of COLUMNS."""
    metrics = record["metrics"]
    for key in CHOSEN:
        yield str(record[key])
    yield f"{metrics['adapter_trained']:,}"
    metric = record["metric"]
    yield f"{metric} {metrics[metric]:.4g}"
    low = metrics.get(f"{metric}_low")
    high = metrics.get(f"{metric}_high")
    yield "" if low is None else f"{low:.4g} to {high:.4g}"


def _record() -> dict[str, Any]:
    """Return the last training run's data from dvc.lock, and its test scores."""
    values = read_yaml(previous.LOCK)["stages"]["train"]["params"][str(PARAMS)]
    chosen = {key: values[key] for key in CHOSEN}
    first = load_entry("data", chosen["data"]).metrics[0]
    metrics = artifacts.read_metrics(artifacts.EVALUATE_METRICS)
    return {**chosen, "metric": first, "metrics": metrics}


def _check_free(folder: Path, *, replaces: bool) -> None:
    """Check that an adapter can be kept in a folder.

    Raises:
        UserError: if the folder has something else, or another adapter that may not be replaced.
    """
    if not folder.exists():
        return
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: exists and is not a kept adapter; choose another name")
    if not replaces:
        raise UserError(f"{folder}: exists; choose another name, or replace it with --force")


def _check_evaluated() -> None:
    """Check that adapter, card and scores are those that DVC recorded when the stage evaluate ended.

    Raises:
        UserError: if one has changed.
    """
    run = run_dvc("status", "--json", "evaluate")
    if run.returncode:
        reason = run.stderr.strip().removeprefix("ERROR: ")
        raise UserError(f"DVC: {reason}")
    changes = json.loads(run.stdout).get("evaluate", [])
    watched = {path.as_posix() for path in EVALUATED}
    for change in changes:
        if not isinstance(change, dict):
            continue
        for states in change.values():
            for path, state in states.items():
                if path in watched:
                    raise UserError(f"{path}: {state} since the last evaluation; run dvc repro first")
    for path in (artifacts.ADAPTER, artifacts.CARD):
        if not path.exists():
            raise UserError(f"{path}: not found; run dvc repro first")


if __name__ == "__main__":
    main()
