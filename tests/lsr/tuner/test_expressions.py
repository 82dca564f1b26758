"""Expressions that PEFT would match for ever are refused by name, and those that users write are not."""

import re
import sys

import pytest
from peft import LoraConfig, get_peft_model

from lsr import LsrConfig
from lsr.tuner import expressions
from lsr.tuner.expressions import check_expressions, check_syntax
from lsr.tuner.targets import check_names
from tests.capabilities.models import tiny

NAMES = [f"model.layers.{number}.self_attn.{name}_proj" for number in range(64) for name in "qkvo"]
ENDLESS = [  # groups in groups, branches that are the same, many repetitions, and one that looks ahead
    *("([a-z0-9._]+)+X", r"(?:[\w.][\w.]|[\w.])*X", "(.*.*.*.*.*.*.*.*.*.*.*.*)X", "(?=(.*.*.*.*.*.*.*.*.*.*X)).*"),
]
USUAL = [
    *("all-linear", r".*\.q_proj", "q_proj|v_proj", r".*layers\.(0|1|2[0-9])\..*(q|v)_proj", r"(?!.*lm_head).*_proj"),
    *(r"^(?:model\.)?layers\.\d+\.self_attn\.[qkvo]_proj$", r".*\.(\d+\.)*self_attn\.(q|k)_proj"),
]


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.5)


@pytest.mark.parametrize("word", ENDLESS)
def test_what_never_ends_is_refused(word, hurry):
    with pytest.raises(
        ValueError, match=re.escape(f"target_modules: {word!r} takes over 0.5 s on the names of the la")
    ):
        check_expressions({"target_modules": word}, NAMES)


@pytest.mark.parametrize(
    "config",
    [
        {"exclude_modules": ENDLESS[0]},
        {"modules_to_save": ["head", ENDLESS[0]]},
        {"layers_pattern": ENDLESS[0]},
        {"rank_pattern": {"q_proj": 2, "(q|v)_proj": 3, ENDLESS[0]: 1}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_its_field_and_the_first_that_does_not_end_are_named(config, hurry):
    (field,) = config
    with pytest.raises(ValueError, match=re.escape(f"{field}: {ENDLESS[0]!r} takes over")):
        check_expressions(config, NAMES)


@pytest.mark.parametrize("word", USUAL)
def test_what_users_write_is_taken(word):
    config = {"target_modules": word, "exclude_modules": word, "rank_pattern": {word: 2}, "layers_pattern": ["layers"]}
    check_expressions(config, NAMES)


def test_words_and_single_repetitions_need_no_other_process(monkeypatch):
    monkeypatch.setattr(sys, "executable", "nowhere")
    check_expressions({"target_modules": r".*\.q_proj|v_proj", "rank_pattern": {re.escape(n): 2 for n in NAMES}}, NAMES)
    with pytest.raises(ValueError, match="regular expressions cannot be tried: "):
        check_expressions({"target_modules": "(q|v)_proj"}, NAMES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules_to_save": ["(head"]}, "modules_to_save: '(head' is not a valid regular expression: missing )"),
        ({"layers_pattern": "*"}, "layers_pattern: '*' takes over"),
        ({"target_modules": "(" * 500}, "is not a valid regular expression: "),
        ({"exclude_modules": "(x)" * 5000}, "exclude_modules: an expression of 15,000 characters; at most 10,000"),
        ({"alpha_pattern": "query"}, "alpha_pattern: must hold names of layers and values, got 'query'"),
        ({"rank_pattern": {f"layer{n}": 1 for n in range(1001)}}, "rank_pattern: 1,001 entries; at most 1,000 are all"),
    ],
)
def test_what_is_no_expression_or_too_much_is_refused(config, message, hurry):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_expressions(config, ["." * 64 + "x"])


def test_fields_of_other_types_are_none_of_its_business():
    assert check_syntax({"target_modules": {"(", "q"}, "layers_pattern": 3, "modules_to_save": [1, None]}) == []


@pytest.mark.parametrize("kind", [LoraConfig, LsrConfig])
def test_it_is_asked_before_peft_matches(kind, hurry):
    base = tiny("bert")
    config = kind(target_modules=["query"], exclude_modules="([a-z0-9.]+)+X")
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(ValueError, match=r"exclude_modules: '.*' takes over"):
        check_names(config, names) if kind is LoraConfig else get_peft_model(base, config)
