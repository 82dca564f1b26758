"""Whatever an adapter's folder holds, the commands that read it end well or in a line, in bounded time and memory."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from lsr.__main__ import main
from tests import mutations
from tests.lsr.saved import CASES as SAVED
from tests.lsr.saved import save
from tests.torture.children import check_plain, ended
from tests.torture.trials import Case, Trial, many

WEIGHTS, CONFIG = mutations.WEIGHTS, mutations.CONFIG
LONGEST = 500  # characters of what is wrong that a report shows
KINDS = ("a head of one layer", "folded", "patterns", "one factor", "a core")
COMMANDS = (
    ("inspect", "adapter"),
    ("inspect", "adapter", "--base", "base", "--json"),
    ("export", "adapter", "--to", "lora", "-o", "out", "--force", "--base", "base"),
    ("export", "adapter", "--to", "merged", "-o", "out", "--force", "--base", "base"),
    ("frames", "--from", "adapter", "adapter", "-o", "out", "--force"),
)


def declare_much(random: Random, adapter: Path) -> str:
    """Write a header that says that a tensor has more entries than any memory holds, or a header of any length."""
    much = random.choice((2**31, 2**40, 2**62))
    header = json.dumps({"x": {"dtype": "F32", "shape": [much, 4], "data_offsets": [0, 16 * much % 2**64]}}).encode()
    size = random.choice((len(header), 2**30, 2**63))
    (adapter / WEIGHTS).write_bytes(size.to_bytes(8, "little") + header + bytes(64))
    return f"{WEIGHTS}: a header of {size} bytes, {much} rows"


def replace_file(random: Random, adapter: Path) -> str:
    """Have a file be none, a folder, a pipe, a device, a pickle or something else."""
    path = adapter / random.choice((WEIGHTS, CONFIG))
    path.unlink()
    kinds: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "empty": path.touch,
        "zeros": lambda: path.write_bytes(bytes(1000)),
        "deep": lambda: path.write_text("[" * 100_000),
        "a long number": lambda: path.write_text('{"peft_type": "LSR", "rank_shape": ' + "9" * 100_000 + "}"),
        "a list": lambda: path.write_text("[1, 2]"),
        "a pickle": lambda: torch.save({"x": torch.zeros(2)}, path),
    }
    what = random.choice(sorted(kinds))
    kinds[what]()
    return f"{path.name}: {what}"


def trials(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Harm an adapter, and give it to a command."""
    drawn = {}
    for kind in KINDS:
        name, fields = SAVED[kind]
        save(name, folder / kind, **fields)
        drawn[kind] = many(mutations.adapters(folder / kind / "adapter"), random)

    def trial(work: Path, command: tuple[str, ...]) -> None:
        before = sorted(path.name for path in work.iterdir())
        end = ended(work, partial(main, command))
        check_plain(end, {0, 1, 2})
        after = sorted(path.name for path in work.iterdir())
        assert after == before or (end.status == 0 and after == sorted([*before, "out"])), after
        shutil.rmtree(work)

    for number in range(count):
        kind, command = random.choice(KINDS), random.choice(COMMANDS)
        work = folder / str(number)
        shutil.copytree(folder / kind, work)
        if random.random() < 0.3:
            what = random.choice((declare_much, replace_file))(random, work / "adapter")
        else:
            what, changes = next(drawn[kind])
            mutations.harm(work / "adapter", changes)
        yield Trial(f"{number}: {' '.join(command)}: {kind}: {what[:LONGEST]}", partial(trial, work, command))


CASES = (Case("adapters", 300, trials),)
