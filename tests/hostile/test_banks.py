"""A bank's file of which anything is changed is refused in a line, or harms nobody without an adapter."""

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lsr import AdapterBank
from lsr.serve import file
from lsr.tuner.mistakes import InputError
from tests.capabilities.models import tiny
from tests.hostile.test_server import TRIALS
from tests.kit import LONGEST
from tests.lsr.saved import asked, save, save_lora, says

NAMES = ["__base__", "core", "lora", "__base__"]
ENTRIES = (0.5, -1.0, 1e-30, 1e30, 3e38, torch.nan, torch.inf)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "8bit", "3bit"])
def bank(request, tmp_path_factory):
    """The folder of a bank with a core, a LoRA, and their heads."""
    folder = tmp_path_factory.mktemp("bank")
    held = AdapterBank(tiny("bert-wide"), precision=request.param)
    held.add("core", save(folder / "core", "bert-wide", rank_shape=(3,), separation_rank=1, train="core"))
    held.add("lora", save_lora(folder / "lora", "bert-wide", labels=5))
    held.save(folder / "bank")
    return folder / "bank"


def harm(tensors, chance):
    """Change an entry, a row or a byte of one of the tensors, mostly where all rows of a batch look."""
    name = chance.choice(sorted(tensors))
    value = tensors[name]
    if chance.random() < 0.3:
        entries = value.flatten().view(torch.uint8)
        entries[chance.randrange(len(entries))] ^= 1 << chance.randrange(8)
    elif value.is_floating_point():
        value[0 if chance.random() < 0.5 else chance.randrange(len(value))] = chance.choice(ENTRIES)
    else:
        row = 0 if chance.random() < 0.5 else chance.randrange(len(value))
        value[row] = chance.randrange(256) if value.dtype is torch.uint8 else chance.choice((-1, 0, 1, 2, 3, 2**40))
    return name


def loaded(folder):
    """Return the bank in a folder, or the line with which it is refused."""
    try:
        return AdapterBank.load(tiny("bert-wide"), folder), ""
    except InputError as error:
        return None, str(error)


def test_what_is_changed_is_refused_in_a_line_or_harms_no_row_without_an_adapter(bank, tmp_path, trials):
    with safe_open(bank / file.FILE, framework="pt") as content:
        metadata = content.metadata()
    chance, refusals = random.Random(0), 0
    expected = says("bert-wide", None, len(NAMES), torch.float32)
    for turn in range(TRIALS):
        trials["trials"] += 1
        tensors = {name: value.clone() for name, value in load_file(bank / file.FILE).items()}
        harmed = harm(tensors, chance)
        save_file(tensors, tmp_path / file.FILE, metadata=metadata)
        again, line = loaded(tmp_path)
        if again is None:
            refusals += 1
            assert 0 < len(line) <= LONGEST, line
            continue
        found = asked(again, NAMES)[:, : expected.shape[1]]
        for row in (0, 3):
            assert torch.equal(found[row], expected[row]), (turn, harmed, json.dumps(again.notes))
    assert 0 < refusals < TRIALS
