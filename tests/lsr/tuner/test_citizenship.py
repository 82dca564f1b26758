"""LSR behaves in PEFT as PEFT's own methods do: the matrix of behaviors and configurations."""

import re

import pytest

from tests.capabilities.behavior import EVERY
from tests.capabilities.probes import BEHAVIORS
from tests.capabilities.subjects import Subject
from tests.lsr.subjects import CASES, FAMILY

pytestmark = pytest.mark.usefixtures("remembered_fits")

REFUSED = {  # by PEFT or transformers themselves: what a user reads
    "`hotswap_adapter`": "Hotswapping only supports LORA but LSR was passed.",
    "`PeftMixedModel` with LoRA": "The provided `peft_type` 'LSR' is not compatible with the `PeftMixedModel`.",
    "transformers' `add_adapter`, `disable_adapters`, `delete_adapter`": "The version of PEFT you are using",
}
WEIGHTED = "`add_weighted_adapter`, exact (`cat`)"
ALL_LINEAR = '`target_modules="all-linear"`'


def of_the_family(behavior, models):
    """Those of one model, of which this can be asked: r1 * r2 parameters a core stay as many in the probe's pattern."""
    return {
        name: subject
        for name, subject in FAMILY.items()
        if subject.model in models and not (behavior == "`rank_pattern`" and subject.config().train == "core")
    }


def refusal(behavior, subject):
    """What a user reads where a behavior is refused; None where it is there."""
    config = subject.config()
    if behavior == WEIGHTED and config.has_core and len(config.rank_shape) > 1:
        return "with a core its update is no sum of Kronecker products; as LoRA (python -m lsr export --to lora)"
    if behavior == ALL_LINEAR and config.share == "layers" and subject.model == "bert":
        return "share='layers' needs two or more layers of a kind, and there is one bert.pooler.dense (24 x 24)"
    return REFUSED.get(behavior)


MATRIX = [
    pytest.param(behavior, subject, id=f"{behavior.replace('`', '')}-{name}")
    for behavior, entry in BEHAVIORS.items()
    for name, subject in (
        CASES
        if entry.on == EVERY
        else {model: Subject(model) for model in entry.on} | of_the_family(behavior, entry.on)
    ).items()
]


@pytest.mark.parametrize(("behavior", "subject"), MATRIX)
def test_a_behavior_is_there_or_refused_in_words(behavior, subject, tmp_path):
    probe = BEHAVIORS[behavior].probe
    if (message := refusal(behavior, subject)) is not None:
        with pytest.raises(ValueError, match=re.escape(message)):
            probe(subject, tmp_path)
    else:
        probe(subject, tmp_path)


def test_everything_that_is_refused_is_a_behavior():
    assert {*REFUSED, WEIGHTED, ALL_LINEAR} <= BEHAVIORS.keys()
