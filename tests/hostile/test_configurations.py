"""Whatever a configuration of any method of PEFT holds, its adapter is loaded or refused in a line, in time."""

import random

import pytest
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType

from lsr.errors import InputError
from lsr.loading.adapters import load_onto
from lsr.tuner.files import CONFIG
from tests.kit import LONGEST, NIGHTLY, edit
from tests.lsr.methods import METHODS, in_time, model_of, save

TRIALS = 40 if NIGHTLY else 2  # of each method
VALUES = [
    *[None, True, -1, 0, 1, 3, 10**4, 10**9, 2**70, 10**400, 0.5, -1e300, 1e300, "", "x", "TEXT", "/dev/zero"],
    *["pissa_niter_1000000000", [], {}, [0], [10**9], ["x"], [[0, 10**9]], {"a": 10**9}, {"query": -1}, [None] * 1000],
]


def reason(call, *arguments):
    """Return the message with which a call is refused, or nothing."""
    try:
        call(*arguments)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("method", METHODS)
def test_whatever_a_field_of_any_method_holds_the_adapter_is_loaded_or_refused_in_a_line(method, tmp_path, trials):
    chance = random.Random(method)
    fields = sorted(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)].__dataclass_fields__.keys() - {"peft_type"})
    for turn in range(TRIALS):
        trials["trials"] += 1
        folder = save(tmp_path / f"{turn}", method)
        edit(folder / CONFIG, **{chance.choice(fields): chance.choice(VALUES) for _ in range(chance.choice((1, 1, 3)))})
        with in_time():
            line = reason(load_onto, model_of(method), folder)
        assert len(line) <= LONGEST
        assert "\n" not in line
