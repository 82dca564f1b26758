"""A bank's file in which anything is changed is refused in a line.

If its checksums are computed anew, it is refused in a line or harms no row without an adapter.
"""

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lsr import AdapterBank
from lsr.algebra.rounding import BITS
from lsr.errors import InputError
from lsr.serve import file
from tests.hostile.damaged import change_bytes
from tests.hostile.test_adapters import VALUES
from tests.kit import LONGEST, NIGHTLY, write
from tests.lsr.saved import FORMS, asked, save, save_lora, says
from tests.lsr.serve import decoding
from tests.lsr.serve.sealing import seal
from tests.lsr.serve.test_shared_adapter import TENANTS, rows_of, save_tenants
from tests.old_tiny.models import tiny
from tests.old_tiny.subjects import DENSE

CHANGES = 1_500 if NIGHTLY else 125  # of the bytes of each bank's files
RESEALED = 1_000 if NIGHTLY else 40
NAMES = ["__base__", "core", "lora", "__base__"]
ENTRIES = (0.5, -1.0, 1e-30, 1e30, 3e38, torch.nan, torch.inf)


def of_classes(folder, precision="float32"):
    """A bank of classes, of pairs with labels of their own, of several labels with thresholds, and of a number."""
    task_infos = {
        "classes": {"kind": "classes", "columns": ["text"], "labels": ["a", "b", "c"]},
        "pairs": {"kind": "classes", "columns": ["premise", "hypothesis"], "labels": ["no", "yes"]},
        "multi_label": {"columns": ["text"], "labels": list("vwxyz"), "thresholds": [0.1, 0.2, 0.3, 0.4, 0.5]},
        "number": {"kind": "number", "columns": ["text"], "labels": None},
    }
    held = AdapterBank(tiny("bert-wide"), precision=precision)
    for seed, (name, task_info) in enumerate(task_infos.items()):
        outputs = len(task_info["labels"] or "1")
        if seed % 2:
            save_lora(folder / name, "bert-wide", seed, labels=outputs)
        else:
            save(folder / name, "bert-wide", seed, labels=outputs, **DENSE)
        write(folder / name / "task.json", task_info)
        held.add(name, folder / name)
    if precision == "float32":
        count = len(task_infos)
        logits = [says("bert-wide", folder / name, count, torch.float32, held.outputs(name)) for name in task_infos]
    else:
        held.save(folder / "whole")
        stored = decoding.read(folder / "whole", tiny("bert-wide"), BITS[precision])
        logits = [decoding.logits(tiny("bert-wide"), stored[name][0], len(task_infos)).float() for name in task_infos]
    return held, "bert-wide", {name: logits[row][row] for row, name in enumerate(task_infos)}


def of_form(form):
    """A function that makes a bank of two adapters of a form."""

    def make(folder):
        model, fields = FORMS[form]
        held = AdapterBank(tiny(model))
        for seed, name in enumerate("ab"):
            held.add(name, save(folder / name, model, seed, **fields))
        return held, model, {name: says(model, folder / name, 2, torch.float32)[row] for row, name in enumerate("ab")}

    return make


def of_tenants(folder, precision="float32"):
    """A bank of tenants who share a LoRA."""
    model = save_tenants(folder / "adapter")
    held = AdapterBank.of_tenants(folder / "adapter", precision=precision)
    if precision != "float32":  # all rows of this small model are in bfloat16
        last = model.get_submodule("base_model.model.classifier.modules_to_save.default.out_proj")
        last.to(torch.bfloat16).float()
    return held, "roberta", dict(zip(TENANTS, rows_of(model, [*TENANTS]), strict=True))


BANKS = {  # a function that saves adapters in a folder, and returns their bank, its base model and what PEFT answers
    "classes, pairs and numbers": of_classes,
    "the same in 8 bits": lambda folder: of_classes(folder, "8bit"),
    "the same in 4 bits": lambda folder: of_classes(folder, "4bit"),
    "cores on shared bases": of_form("diagonal cores on shared bases"),
    "a head of two modules": of_form("a head of two modules"),
    "generated text": of_form("no head"),
    "tenants with a shared adapter": of_tenants,
    "the same tenants in 3 bits": lambda folder: of_tenants(folder, "3bit"),
}
QUICK = ("classes, pairs and numbers", "tenants with a shared adapter")


def loaded(base, folder):
    """Return the bank in a folder and nothing, or None and the line with which it is refused."""
    try:
        return AdapterBank.load(base, folder), ""
    except InputError as error:
        return None, str(error)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.nightly) for kind in BANKS]
)
def test_a_bank_answers_as_peft_and_any_change_of_its_bytes_is_refused_in_a_line(kind, tmp_path, trials):
    held, model, expected = BANKS[kind](tmp_path)
    held.save(tmp_path / "bank")
    base = None if held.shared_adapter else tiny(model)
    again = AdapterBank.load(base and tiny(model), tmp_path / "bank")
    for name, row in zip(expected, asked(again, [*expected]), strict=True):
        assert_close(row[..., : expected[name].shape[-1]], expected[name], rtol=1e-5, atol=1e-5)
    whole = {path: path.read_bytes() for path in sorted((tmp_path / "bank").rglob("*")) if path.is_file()}
    assert len(whole) == 1 + 2 * bool(held.shared_adapter)
    chance = random.Random(kind)
    for turn in range(CHANGES):
        path = chance.choice([*whole])
        changed = change_bytes(whole[path], chance)
        if changed == whole[path]:
            continue
        trials["trials"] += 1
        path.write_bytes(changed)
        _, line = loaded(base, tmp_path / "bank")
        assert 0 < len(line) <= LONGEST, (turn, path.name, line)
        assert "\n" not in line
        path.write_bytes(whole[path])
    AdapterBank.load(base, tmp_path / "bank")


@pytest.fixture(scope="module", params=["float32", "bfloat16", "8bit", "3bit"])
def bank(request, tmp_path_factory):
    """The folder of a bank with a core, a LoRA, and their heads."""
    folder = tmp_path_factory.mktemp("bank")
    held = AdapterBank(tiny("bert-wide"), precision=request.param)
    held.add("core", save(folder / "core", "bert-wide", rank_shape=(3,), separation_rank=1, train="core"))
    held.add("lora", save_lora(folder / "lora", "bert-wide", labels=5))
    held.save(folder / "bank")
    return folder / "bank"


def harm(header, tensors, chance):
    """Change a value of the header, or an entry, a row or a byte of a tensor, mostly where all rows of a batch look."""
    if chance.random() < 0.25:
        inner = [value for value in header.values() if isinstance(value, dict | list) and value]
        place = chance.choice([header, *inner])
        key = chance.choice([*place]) if isinstance(place, dict) else chance.randrange(len(place))
        place[key] = chance.choice(VALUES)
        return
    value = tensors[chance.choice(sorted(tensors))]
    if chance.random() < 0.3:
        entries = value.flatten().view(torch.uint8)
        entries[chance.randrange(len(entries))] ^= 1 << chance.randrange(8)
    elif value.is_floating_point():
        value[0 if chance.random() < 0.5 else chance.randrange(len(value))] = chance.choice(ENTRIES)
    else:
        row = 0 if chance.random() < 0.5 else chance.randrange(len(value))
        value[row] = chance.randrange(256) if value.dtype is torch.uint8 else chance.choice((-1, 0, 1, 2, 3, 2**40))


def test_what_is_changed_with_its_checksums_is_refused_in_a_line_or_harms_no_row_without_an_adapter(
    bank, tmp_path, trials
):
    with safe_open(bank / file.FILE, framework="pt") as content:
        text = content.metadata()[file.HEADER]
    chance = random.Random(0)
    refusals = 0
    expected = says("bert-wide", None, len(NAMES), torch.float32)
    for turn in range(RESEALED):
        trials["trials"] += 1
        tensors = {name: value.clone() for name, value in load_file(bank / file.FILE).items()}
        header = json.loads(text)
        harm(header, tensors, chance)
        save_file(tensors, tmp_path / file.FILE, metadata={file.HEADER: json.dumps(header)})
        seal(tmp_path / file.FILE)
        again, line = loaded(tiny("bert-wide"), tmp_path)
        if again is None:
            refusals += 1
            assert 0 < len(line) <= LONGEST, line
            continue
        names = [name if name in again.names else "__base__" for name in NAMES]
        logits = asked(again, names)
        for row in (0, 3):
            assert torch.equal(logits[row, : expected.shape[1]], expected[row]), (turn, header)
    assert 0 < refusals < RESEALED
