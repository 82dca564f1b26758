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
from safetensors.torch import load_file, save_file

from lsr.__main__ import main
from tests.lsr.saved import CASES as SAVED
from tests.lsr.saved import save
from tests.torture import mistakes
from tests.torture.children import check_plain, ended
from tests.torture.trials import Case, Trial

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KINDS = ("a head of one layer", "folded", "patterns", "one factor", "a core")
COMMANDS = (
    ("inspect", "adapter"),
    ("inspect", "adapter", "--base", "base", "--json"),
    ("export", "adapter", "--to", "lora", "-o", "out", "--force", "--base", "base"),
    ("export", "adapter", "--to", "merged", "-o", "out", "--force", "--base", "base"),
    ("prune", "adapter", "-o", "out", "--force", "--separation-rank", "1", "--base", "base"),
    ("compress", "adapter", "-o", "out", "--force", "--separation-rank", "1"),
    ("frames", "--from", "adapter", "adapter", "-o", "out", "--force"),
)


def change_config(random: Random, adapter: Path) -> str:
    """Change, add or remove fields, at any depth."""
    path = adapter / CONFIG
    fields = json.loads(path.read_text(encoding="utf-8"))
    changed = [mistakes.change(random, fields, ()) for _ in range(random.choice((1, 1, 2, 3)))]
    path.write_text(json.dumps(fields), encoding="utf-8")
    return f"{CONFIG}: {', '.join(changed)}"


def change_tensor(random: Random, adapter: Path) -> str:
    """Have a tensor be none, another one, or of another shape or kind."""
    tensors = load_file(adapter / WEIGHTS)
    name = random.choice(sorted(tensors))
    tensor = tensors.pop(name)
    changes: dict[str, Callable[[], Any]] = {
        "gone": dict,
        "renamed": lambda: {name[:-1]: tensor},
        "twice": lambda: {name: tensor, f"{name}.more": tensor.clone()},
        "empty": lambda: {name: tensor.new_empty(0, *tensor.shape)},
        "flat": lambda: {name: tensor.flatten()},
        "longer": lambda: {name: torch.cat([tensor, tensor])},
        "a number": lambda: {name: tensor.flatten()[:1].reshape(())},
        "NaN": lambda: {name: torch.full_like(tensor, float("nan"))},
        "infinite": lambda: {name: torch.full_like(tensor, float("inf"))},
        "huge": lambda: {name: torch.full_like(tensor, 1e38)},
        **{
            str(dtype): lambda dtype=dtype: {name: tensor.to(dtype)}
            for dtype in (torch.int64, torch.bool, torch.float16)
        },
    }
    what = random.choice(sorted(changes))
    save_file(tensors | changes[what](), adapter / WEIGHTS, metadata={"format": "pt"})
    return f"{WEIGHTS}: {name} {what}"


def spoil_bytes(random: Random, adapter: Path) -> str:
    """Change bytes, of the header of the weights most often, or cut a file off."""
    path = adapter / random.choice((WEIGHTS, WEIGHTS, CONFIG))
    content = bytearray(path.read_bytes())
    if random.random() < 0.3:
        del content[random.randrange(len(content)) :]
    for _ in range(random.randint(1, 3)):
        if content:
            at = random.randrange(min(len(content), 2000))
            content[at : at + 1] = random.randbytes(random.randint(0, 3))
    path.write_bytes(content)
    return f"{path.name}: bytes"


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


HARMS = (change_config, change_config, change_tensor, spoil_bytes, declare_much, replace_file)


def trials(folder: Path, count: int, random: Random) -> Iterator[Trial]:
    """Harm an adapter in one of these ways, and give it to a command."""
    for kind in KINDS:
        name, fields = SAVED[kind]
        save(name, folder / kind, **fields)

    def trial(work: Path, command: tuple[str, ...]) -> None:
        before = sorted(path.name for path in work.iterdir())
        end = ended(work, partial(main, command))
        check_plain(end, {0, 1, 2})
        after = sorted(path.name for path in work.iterdir())
        assert after == before or (end.status == 0 and after == sorted([*before, "out"])), after
        shutil.rmtree(work)

    for number in range(count):
        kind, command, harm = random.choice(KINDS), random.choice(COMMANDS), random.choice(HARMS)
        work = folder / str(number)
        shutil.copytree(folder / kind, work)
        what = harm(random, work / "adapter")
        yield Trial(f"{number}: {' '.join(command)}: {kind}: {what}", partial(trial, work, command))


CASES = (Case("adapters", 300, trials),)
