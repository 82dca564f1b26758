"""A change of a bank that lacks memory changes nothing: adapters answer as before, and later changes go through."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lsr import AdapterBank
from lsr.loading.contents import read_contents
from tests.lsr.saved import asked, save, save_lora
from tests.old_tiny.models import tiny
from tests.old_tiny.subjects import BASES

LARGE = 1000  # bytes
COUNT = 12  # adapters at first


class Lacking(TorchDispatchMode):
    """Let the n-th large tensor fail as torch does where memory is lacking."""

    def __init__(self, number):
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        result = operation(*arguments, **(named or {}))
        inputs = [value.untyped_storage().data_ptr() for value in arguments if torch.is_tensor(value)]
        is_new = torch.is_tensor(result) and result.untyped_storage().data_ptr() not in inputs
        if is_new and result.device.type == "cpu" and result.nbytes >= LARGE:
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return result


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Folders of adapters: LoRA and LSR with a core, of several ranks and numbers of labels."""
    folder = tmp_path_factory.mktemp("adapters")
    for number in range(COUNT):
        if number % 3:
            save_lora(folder / f"a{number}", seed=number, labels=2 + number % 2)
        else:
            save(folder / f"a{number}", seed=number, **BASES)
    save_lora(folder / "wide", labels=300)
    return folder


@pytest.fixture(scope="module")
def filled(there):
    bank = AdapterBank(tiny("bert"))
    for number in range(COUNT):
        bank.add(f"a{number}", there / f"a{number}")
    return bank


def answers(bank):
    """Return the logits of each adapter by name, and how many labels each has."""
    return {name: (bank.outputs(name), asked(bank, [name])[0, : bank.outputs(name)]) for name in bank.names}


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, (outputs, logits) in expected.items():
        assert found[name][0] == outputs
        assert_close(found[name][1], logits, rtol=1e-5, atol=1e-6)


@contextmanager
def copied(bank):
    """Copy a bank for one attempt; its lock cannot be copied."""
    lock = bank.shared.one_thread
    yield copy.deepcopy(bank, {id(lock): lock})


def lacks_memory(number, change, bank, new):
    """Return whether a change fails where its n-th large tensor cannot be allocated."""
    try:
        with Lacking(number):
            change(bank, new)
    except RuntimeError as error:
        return "can't allocate memory" in str(error)
    return False


CHANGES = {
    "add": lambda bank, new: bank.add("new", new["wide"]),
    "add_several": lambda bank, new: bank.add_all(
        {"new": new["wide"], "a1": new["a3"], "other": new["a2"]}, replace=True
    ),
    "replace": lambda bank, new: bank.add("a2", new["wide"], replace=True),
    "replace_by_less": lambda bank, new: bank.add("a3", new["a1"], replace=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_lacks_memory_changes_nothing(change, there, filled):
    new = {name: read_contents(there / name) for name in ("wide", "a1", "a2", "a3")}
    before = answers(filled)
    with copied(filled) as bank:
        CHANGES[change](bank, new)
        after = answers(bank)
    for number in range(1, 1000):
        with copied(filled) as bank:
            if not lacks_memory(number, CHANGES[change], bank, new):
                break
            check(answers(bank), before)
            assert bank.shared.size == 1 + COUNT
            CHANGES[change](bank, new)  # memory is back
            check(answers(bank), after)
    assert number > 3  # some attempts have failed
    check(answers(bank), after)


def test_adapters_are_removed_even_where_memory_is_lacking(there, filled):
    with copied(filled) as bank:
        before = answers(bank)
        for name in ("a0", "a11", "a4", "a5", "a6"):
            with Lacking(1):
                bank.remove(name)
            del before[name]
            check(answers(bank), before)
        used = bank.nbytes
        bank.remove("a7")  # memory is back
        del before["a7"]
        check(answers(bank), before)
        assert bank.nbytes < 0.8 * used
