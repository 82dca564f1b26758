"""What PEFT's users expect of a method: there, or refused in words, over configurations that cover the options."""

import re

import pytest

from tests.capabilities.probes import BEHAVIORS
from tests.capabilities.subjects import EVERY, PAIRS, Subject
from tests.lsr import subjects

REFUSED = {  # by PEFT or transformers themselves: what a user reads
    "`hotswap_adapter`": "Hotswapping only supports LORA but LSR was passed.",
    "`PeftMixedModel` with LoRA": "The provided `peft_type` 'LSR' is not compatible with the `PeftMixedModel`.",
    "transformers' `add_adapter`, `disable_adapters`, `delete_adapter`": "The version of PEFT you are using",
}
ON = {EVERY: subjects.CASES, PAIRS: subjects.PAIRS}
MATRIX = [
    pytest.param(behavior, subject, id=f"{behavior.replace('`', '')}-{name}")
    for behavior, entry in BEHAVIORS.items()
    for name, subject in (ON.get(entry.on) or {model: Subject(model) for model in entry.on}).items()
]


@pytest.mark.parametrize(("behavior", "subject"), MATRIX)
def test_a_behavior_is_there_or_refused_in_words(behavior, subject, tmp_path):
    probe = BEHAVIORS[behavior].probe
    if (message := REFUSED.get(behavior)) is not None:
        with pytest.raises(ValueError, match=re.escape(message)):
            probe(subject, tmp_path)
    else:
        probe(subject, tmp_path)
