"""What PEFT's users expect of a method works with LSR, or is refused in words."""

import re

import pytest

from tests.capabilities.probes import BEHAVIORS, REFUSED

MATRIX = [
    pytest.param(behavior, subject, id=f"{behavior.replace('`', '')}-{name}")
    for behavior, entry in BEHAVIORS.items()
    for name, subject in entry.on.items()
]


@pytest.mark.parametrize(("behavior", "subject"), MATRIX)
def test_a_behavior_is_there_or_refused_in_words(behavior, subject, tmp_path):
    probe = BEHAVIORS[behavior].probe
    if behavior not in REFUSED:
        probe(subject, tmp_path)
        return
    with pytest.raises(ValueError, match=re.escape(REFUSED[behavior])):
        probe(subject, tmp_path)
