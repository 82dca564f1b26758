"""Whatever an adapter's folder holds, which a stranger may have made, is read or refused in one line."""

import json
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lsr.__main__ import main
from tests.lsr.saved import CASES, save

COUNT = 200 if os.environ.get("LSR_NIGHTLY") == "1" else 20
EXPORT = ("export", "adapter", "--to", "lora", "-o", "out", "--force", "--base", "base")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
VALUES = [
    *[None, True, -1, 0, 3, 25, 10**6, 2**63, 10**300, 0.5, 1e300, "", "none", "(", ".*", "\0", "x" * 2000],
    *["([a-z0-9.]+)+X", [], [0], [None, "query"], [10**6, 3], {}, {"query": -1}, {"": [2, 2]}, {"é": None}],
]
TENSORS = (
    lambda value: value[:0],
    lambda value: value.flatten(),
    lambda value: torch.cat([value, value]),
    lambda value: value.flatten()[0].clone(),
    lambda value: value / 0,
    lambda value: torch.full_like(value, 1e38, dtype=torch.float32),
    lambda value: value.to(torch.int64),
    lambda value: value.to(torch.complex64),
    lambda value: value.to(torch.float16),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An adapter beside its base, which nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    name, fields = CASES["patterns"]
    save(name, folder, **fields)
    return folder


def harm(folder, chance):
    """Change a field, a tensor or a few bytes of an adapter; return what."""
    kind, fields = chance.choice(("field", "tensor", "bytes")), json.loads((folder / CONFIG).read_text())
    if kind == "field":
        at = chance.choice([fields, fields, fields["resolved"], fields["resolved"]["usual"]])
        name, value = chance.choice(sorted(at)), chance.choice(VALUES)
        at[name] = value
        (folder / CONFIG).write_text(json.dumps(fields))
        return name, value
    path = folder / (WEIGHTS if kind == "tensor" else chance.choice((CONFIG, WEIGHTS)))
    if kind == "tensor":
        tensors = load_file(path)
        name, change = chance.choice(sorted(tensors)), chance.randrange(len(TENSORS))
        save_file({**tensors, name: TENSORS[change](tensors[name]).contiguous()}, path)
        return name, change
    content = bytearray(path.read_bytes())
    at = chance.randrange(min(len(content), 2000))
    content[at : at + chance.choice((1, 2, len(content)))] = chance.randbytes(chance.randrange(3))
    path.write_bytes(content)
    return path.name, bytes(content)


def test_a_harmed_adapter_is_read_or_refused_in_one_line(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole / "base", "base")
    chance = random.Random(0)
    for _ in range(COUNT):
        shutil.copytree(whole / "adapter", "adapter")
        what = harm(tmp_path / "adapter", chance)
        code, said = main(EXPORT), capsys.readouterr().err
        assert code in (0, 2), what
        assert len(said.splitlines()) == (code != 0), what
        assert len(said) <= 301, what
        assert {path.name for path in tmp_path.iterdir()} <= {"adapter", "base", *({"out"} if code == 0 else ())}, what
        for name in ("adapter", "out"):
            shutil.rmtree(name, ignore_errors=True)
