"""Whoever came, was replaced or left: a bank is the fresh one of its adapters, and each row what PEFT says alone."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr import AdapterBank
from lsr.errors import InputError
from lsr.loading.contents import read_on
from lsr_onnx.names import BASE
from tests.lsr.saved import asked, save, save_lora, says
from tests.old_tiny.models import tiny
from tests.old_tiny.subjects import BASES, DENSE, SHARED

ATTENTION = {"target_modules": ["q_lin", "v_lin"]}
KINDS = {  # how each is saved, and its fields; some can only be in a bank without some others
    "cores": (save, BASES),
    "cores between other bases": (save, {**BASES, "init_weights": True}),
    "diagonal cores on shared bases": (save, {**SHARED, "core": "diagonal"}),
    "factors": (save, {**DENSE, "target_modules": ["out_lin"]}),
    "sums": (save, {"labels": 5}),
    "LoRA": (save_lora, ATTENTION),
    "LoRA of a number": (save_lora, {**ATTENTION, "labels": 1, "use_rslora": True, "r": 8}),
    "LoRA of many labels": (save_lora, {"target_modules": ["lin1"], "labels": 9, "r": 1}),
    "LoRA of ranks": (save_lora, {**ATTENTION, "rank_pattern": {"0.attention.q_lin": 7}}),
    "one module of the head": (save_lora, {**ATTENTION, "task_type": None, "modules_to_save": ["pre_classifier"]}),
    "the head adapted": (save_lora, {"task_type": None, "target_modules": ["pre_classifier"]}),
}
CHANGES = st.tuples(st.sampled_from("abcd"), st.sampled_from([*KINDS, None]))  # who; None: leaves


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of an adapter of each kind."""
    made = tmp_path_factory.mktemp("kinds")
    for seed, (kind, (saved, fields)) in enumerate(KINDS.items()):
        saved(made / kind, "distilbert", seed, **fields)
    return made


@pytest.fixture(scope="module")
def kinds(folder):
    """The contents of an adapter of each kind."""
    bank = AdapterBank(tiny("distilbert"))
    return {kind: read_on(bank.of_base, folder / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def alone(folder):
    """A function that returns what PEFT says of so many rows with an adapter of a kind, or without any."""

    @cache
    def logits(kind, rows):
        labels = KINDS[kind][1].get("labels") if kind else None
        return says("distilbert", folder / kind if kind else None, rows, torch.float32, labels)

    return logits


def filled(held, kinds):
    bank = AdapterBank(tiny("distilbert"))
    for name, kind in held.items():
        bank.add(name, kinds[kind])
    return bank


@given(
    changes=st.lists(CHANGES, min_size=1, max_size=9), rows=st.lists(st.sampled_from("abcd_"), min_size=1, max_size=6)
)
def test_a_bank_is_that_of_its_adapters_alone(changes, rows, kinds, alone):
    bank = AdapterBank(tiny("distilbert"))
    held = {}
    for name, kind in changes:
        if kind is None and name in held:
            bank.remove(name)
            del held[name]
        elif kind is not None:
            try:
                bank.add(name, kinds[kind], replace=True)
            except InputError:
                with pytest.raises(InputError):
                    filled(held, kinds).add(name, kinds[kind], replace=True)
            else:
                held[name] = kind
    fresh = filled(held, kinds)
    assert bank.layers.keys() == fresh.layers.keys()
    assert bank.heads.keys() == fresh.heads.keys()
    assert (bank.base_fields, bank.task_infos) == (fresh.base_fields, fresh.task_infos)
    assert {*bank.names} == {*fresh.names}
    assert bank.nbytes <= 6 * fresh.nbytes + 20_000
    names = [name if name in held else BASE for name in rows]
    actual = asked(bank, names)
    assert_close(actual, asked(fresh, names), rtol=1e-5, atol=1e-6)
    for row, name in enumerate(names):
        count = bank.outputs(name)
        assert_close(actual[row, :count], alone(held.get(name), len(names))[row], rtol=1e-5, atol=1e-6)
        assert (actual[row, count:] == -torch.inf).all()
