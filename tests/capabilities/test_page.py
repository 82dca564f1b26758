"""What PEFT's users expect is there or refused in words, as the page of capabilities says."""

import re

import pytest

from tests.capabilities.__main__ import HAS, PAGE, column, page
from tests.capabilities.probes import BEHAVIORS
from tests.capabilities.subjects import COLUMNS
from tests.workspace import ROOT

TEXT = PAGE.read_text(encoding="utf-8")
REFUSED = {  # by PEFT or transformers themselves: what a user reads
    "`hotswap_adapter`": "Hotswapping only supports LORA but LSR was passed.",
    "`PeftMixedModel` with LoRA": "The provided `peft_type` 'LSR' is not compatible with the `PeftMixedModel`.",
}
MATRIX = [
    pytest.param(behavior, subject, id=f"{behavior.replace('`', '')}-{name}")
    for behavior, entry in BEHAVIORS.items()
    for name, subject in entry.on.items()
]


@pytest.mark.parametrize(("behavior", "subject"), MATRIX)
def test_a_behavior_is_there_or_refused_in_words(behavior, subject, tmp_path):
    probe = BEHAVIORS[behavior].probe
    if (message := REFUSED.get(behavior)) is not None:
        with pytest.raises(ValueError, match=re.escape(message)):
            probe(subject, tmp_path)
    else:
        probe(subject, tmp_path)


def passed(method):
    """The behaviors that the page says a method has."""
    header, *rows = (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if "|" in line
    )
    return {name for name, *cells in rows if name in BEHAVIORS and cells[header.index(method) - 1] == HAS}


def test_the_page_says_of_lsr_what_its_tests_prove():
    assert passed("LSR") == BEHAVIORS.keys() - REFUSED.keys(), "run: python -m tests.capabilities"


@pytest.mark.nightly
def test_the_page_is_what_the_probes_find_for_every_method():
    assert page({method: column(method) for method in COLUMNS}) == TEXT, "run: python -m tests.capabilities"


def test_the_documentation_counts_what_the_page_says():
    said = " ".join((ROOT / "docs/how-to/peft.md").read_text(encoding="utf-8").split())
    for method in COLUMNS:
        assert re.search(rf"\b{method} (passes )?{len(passed(method))}\b", said), method
    assert f"of {len(BEHAVIORS)} rows LSR passes" in said
