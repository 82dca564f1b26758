"""The memory of a bank depends on the adapters that are in it, and not on those that it held before."""

import copy
import gc
import multiprocessing
import random
import types

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from lsr import AdapterBank
from lsr.loading.contents import Contents
from lsr.loading.updates import Bases, Update
from tests.kit import resident
from tests.lsr.saved import asked
from tests.lsr.serve import decoding
from tests.old_tiny.models import BERT, LABELS

WIDTH = 384
CONFIG = BertConfig(**BERT | {"hidden_size": WIDTH, "num_hidden_layers": 1, "intermediate_size": 8})
LAYERS = [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "value")]
RANKS = (1, 1, 2, 3, 8, 8, 16, 64, WIDTH)
MOST = 1.05  # times the memory of a new bank
NOT_STATE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


def base():
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(copy.deepcopy(CONFIG)).eval()


def random_bases(rank, generator):
    a = torch.randn(rank, WIDTH, generator=generator) / WIDTH**0.5
    return Bases(a=a, b=torch.randn(WIDTH, rank, generator=generator) / rank)


SHARED = random_bases(12, torch.Generator().manual_seed(0))


def adapter(seed, rank, labels=LABELS, *, is_core=False):
    """The contents of an adapter with random values: a LoRA, or a core between bases that all such adapters share."""
    generator = torch.Generator().manual_seed(seed)
    if is_core:
        cores = [torch.randn(12, 12, generator=generator) for _ in LAYERS]
        updates = {layer: Update(SHARED, 12, core) for layer, core in zip(LAYERS, cores, strict=True)}
    else:
        updates = {layer: Update(random_bases(rank, generator), rank) for layer in LAYERS}
    head = {"weight": torch.randn(labels, WIDTH, generator=generator), "bias": torch.randn(labels, generator=generator)}
    heads = {f"classifier.{name}": value for name, value in head.items()}
    return Contents(f"adapter {seed}", {}, updates, heads, (".classifier",), None)


def storage_bytes(root):
    """The bytes of the storages of all tensors that an object leads to, views counted as what they keep alive."""
    seen = set()
    storages = {}
    left = [root]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, NOT_STATE):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        else:
            left += gc.get_referents(thing)
    return sum(storages.values())


def filled(precision, adapters):
    bank = AdapterBank(base(), precision=precision)
    for name, contents in adapters.items():
        bank.add(name, contents)
    return bank


@pytest.mark.parametrize(
    ("operations", "precision"),
    [
        (150, "float32"),
        (40, "3bit"),
        pytest.param(3000, "float32", marks=pytest.mark.nightly),
        pytest.param(3000, "bfloat16", marks=pytest.mark.nightly),
    ],
)
def test_after_any_adds_replacements_and_removals_it_is_that_of_a_new_bank(operations, precision):
    chance = random.Random(0)
    held = dict[str, Contents]()
    bank = AdapterBank(base(), precision=precision)
    for operation in range(operations):
        name = f"tenant {chance.randrange(40)}"
        if name in held and chance.random() < 0.3:
            bank.remove(name)
            del held[name]
        else:
            rank = chance.choice([*RANKS, chance.randint(1, WIDTH)])
            held[name] = adapter(operation, rank, chance.choice((2, 3, 40)), is_core=chance.random() < 0.2)
            bank.add(name, held[name], replace=True)
    check(bank, held)
    small = [name for name, contents in held.items() if rank_of(contents) <= 12][:4]
    for name in [*held]:
        if name not in small:
            bank.remove(name)
            del held[name]
    check(bank, held)


def rank_of(contents):
    return len(contents.updates[LAYERS[0]].bases.a)


def check(bank, held):
    """Compare a bank with a new one of the adapters that it holds, in bytes and bits, and each LoRA with PEFT."""
    new = filled(bank.shared.precision, {name: held[name] for name in bank.names})
    without = storage_bytes(base())
    assert storage_bytes(bank) - without <= MOST * (storage_bytes(new) - without)
    assert bank.nbytes <= MOST * new.nbytes
    names = [*held, "__base__"]
    rows = asked(bank, names)
    assert torch.equal(rows, asked(new, names))
    for row, contents in enumerate(held.values()):
        if bank.shared.precision == "float32" and contents.updates[LAYERS[0]].core is None:
            expected = decoding.logits(base(), decoding.values_of(contents), len(names))[row]
            torch.testing.assert_close(rows[row, : len(expected)].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_large_adapter_takes_its_own_rows_alone_and_returns_them():
    small = {f"tenant {number}": adapter(number, 1, is_core=False) for number in range(200)}
    bank = filled("float32", small)
    before = bank.nbytes
    own = len(LAYERS) * WIDTH * 2 * WIDTH * 4
    bank.add("large", adapter(200, WIDTH, labels=LABELS))
    assert bank.nbytes <= MOST * (before + own)
    bank.remove("large")
    assert bank.nbytes <= MOST * before
    bank.add("tenant 7", adapter(201, WIDTH), replace=True)
    bank.add("tenant 7", small["tenant 7"], replace=True)
    assert bank.nbytes <= MOST * before


def growth(has_history):
    """By how much a process grows with a bank of 1,500 adapters of rank 8, some of which were large before."""
    torch.set_num_threads(1)
    bank = AdapterBank(base())
    bank.add("first", adapter(0, 8))
    asked(bank, ["first"])
    before = resident()
    for number in range(1500):
        was_large = has_history and number % 30 == 0
        bank.add(f"tenant {number}", adapter(number, WIDTH if was_large else 8))
    for number in range(0, 1500 if has_history else 0, 30):
        bank.add(f"tenant {number}", adapter(number, 8), replace=True)
    return resident() - before


@pytest.mark.nightly
def test_the_process_takes_no_more_either(record_property):
    context = multiprocessing.get_context("spawn")  # a process of its own for each, which has held nothing before
    grown = []
    for has_history in (False, True):
        with context.Pool(1) as pool:
            grown.append(pool.apply(growth, (has_history,)))
    new, old = grown
    record_property("measured", f"a bank of 1,500 adapters after 50 large ones: {old / new:.2f} of a new one")
    assert old <= 1.15 * new
