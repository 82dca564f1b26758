"""LSR behaves in PEFT as PEFT's own methods do: the matrix of behaviours and configurations."""

import re

import pytest

from tests.lsr.citizenship import BEHAVIOURS, EVERY
from tests.lsr.subjects import CASES, Subject

REFUSED = {  # by PEFT or transformers themselves: what a user reads
    "`hotswap_adapter`": "Hotswapping only supports LORA but LSR was passed.",
    "`PeftMixedModel` with LoRA": "The provided `peft_type` 'LSR' is not compatible with the `PeftMixedModel`.",
    "transformers' `add_adapter`, `disable_adapters`, `delete_adapter`": "The version of PEFT you are using",
}
MATRIX = [
    pytest.param(behaviour, subject, id=f"{behaviour.replace('`', '')}-{name}")
    for behaviour, entry in BEHAVIOURS.items()
    for name, subject in (CASES if entry.on == EVERY else {model: Subject(model) for model in entry.on}).items()
]


@pytest.mark.parametrize(("behaviour", "subject"), MATRIX)
def test_a_behaviour_is_there_or_refused_in_words(behaviour, subject, tmp_path):
    probe = BEHAVIOURS[behaviour].probe
    if behaviour in REFUSED:
        with pytest.raises(ValueError, match=re.escape(REFUSED[behaviour])):
            probe(subject, tmp_path)
    else:
        probe(subject, tmp_path)


def test_everything_that_is_refused_is_a_behaviour():
    assert REFUSED.keys() <= BEHAVIOURS.keys()
