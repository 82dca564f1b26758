"""Whatever a data file holds, it is tokenized or refused in few plain lines."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from pipeline import params, stage
from stages import tokenize
from tests import mutations, workspace
from tests.torture.children import check_plain, ended
from tests.torture.trials import Case, Trial, many

ENDINGS = ("csv", "tsv", "jsonl")
ROW = {
    "text": ["text"],
    "label": {"column": "label", "names": ["0", "1"]},
    "metrics": ["accuracy"],
    "cut": {"validation": 0.2, "test": 0.2},
}


def trials(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Write a file, and run the stage that reads it."""
    for ending in ENDINGS:
        table = workspace.make(folder / ending, data="mine") / "pipeline/datasets.yaml"
        source = {"kind": "files", "files": {"train": f"mine.{ending}"}}
        workspace.write_yaml(table, workspace.read_yaml(table) | {"mine": {"source": source, **ROW}})

    def trial(ending: str, content: bytes) -> None:
        (folder / ending / f"mine.{ending}").write_bytes(content)
        check_plain(ended(folder / ending, read), {0, 2})

    drawn = many(mutations.data_files(), random)
    for number in range(count):
        ending, content = next(drawn)
        yield Trial(f"{number}: {ending}: {content!r}", partial(trial, ending, content))


def read() -> None:
    """Run the stage."""
    stage.run(tokenize.main, params.TokenizeView)


CASES = (Case("data-files", 200, trials),)
