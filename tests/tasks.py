"""The files of official/: those of GLUE and SuperGLUE as their servers have them, with a few made-up rows of each.

SPLIT stands for words that are different in each split, and in each repetition of the rows. The spans of WSC are off by
some, and a row of QQP is broken in two, as it happens there.
"""

import json
from pathlib import Path

from tests import workspace
from tests.kit import write

OFFICIAL = Path(__file__).with_name("official")
EXAMPLES = json.loads((OFFICIAL / "examples.json").read_text(encoding="utf-8"))  # what the rows of each task are


def parts(name: str) -> tuple[str, str]:
    """Return the header of a task's file, which may be empty, and its rows."""
    (path,) = OFFICIAL.glob(f"{name}.*")
    text = path.read_bytes().decode("utf-8")
    if path.suffix == ".jsonl" or name == "cola":
        return "", text
    header, end, rows = text.partition("\n")
    return header + end, rows


def use_files(folder: Path, *names: str, train: int = 40, test: int = 8) -> None:
    """Choose `kind: files` in the rows of tasks, and write their files with so many repetitions of the rows."""
    path = folder / "pipeline/datasets.yaml"
    table = workspace.read_yaml(path)
    for name in names:
        table[name]["source"]["kind"] = "files"
        header, rows = parts(name)
        for split, count in (("train", train), ("test", test)):
            repeated = (rows.replace("SPLIT", f"{split} {number}") for number in range(count))
            write(folder / table[name]["source"]["files"][split], header + "".join(repeated))
    write(path, table)
