from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.init import experiment
from benchmarks.init.experiment import METHODS, RATES, REFERENCES, SETTINGS, Cell, nearest_terms
from pipeline.errors import UserError
from pipeline.params import TrainParams

CELL = Cell(SETTINGS[0], "row space", RATES[0], 0)


@pytest.fixture(autouse=True)
def one_size(monkeypatch):
    """No model is built to count its parameters."""
    monkeypatch.setattr(experiment, "parameters_a_term", lambda *form: 100)


@given(budget=st.integers(1, 10_000), size=st.integers(1, 1_000))
def test_no_number_of_terms_is_nearer_to_the_budget(budget, size):
    terms = nearest_terms(budget, size)
    distances = {n: abs(n * size - budget) for n in range(1, budget // size + 3)}
    assert distances[terms] == min(distances.values())
    assert terms == 1 or distances[terms] <= size / 2


def test_equal_budgets_get_equal_terms_and_smaller_terms_more_of_them(monkeypatch):
    sizes = {"factors": 160, "first": 96}
    monkeypatch.setattr(experiment, "parameters_a_term", lambda data, ranks, targets, train: sizes[train])
    found = {
        method: Cell(SETTINGS[1], method, RATES[0], 0).view().section.separation_rank
        for method in ("random", "row space", "gradient", "random, train=first")
    }
    assert found == {"random": 4, "row space": 4, "gradient": 4, "random, train=first": 7}


@pytest.mark.parametrize(
    ("setting", "method"), [(setting, method) for setting in SETTINGS for method in setting.methods], ids=str
)
def test_a_cell_sets_what_its_setting_method_rate_and_seed_say(setting, method):
    view = Cell(setting, method, 0.123, 3).view()
    assert (view.data, view.seed) == (setting.data, 3)
    if method in METHODS:
        assert view.section.learning_rate == 0.123
        assert view.section.alpha == 4 * prod(setting.rank_shape)
        assert view.section.target_modules == setting.target_modules
        assert view.section.init == METHODS[method]["lsr.init"]
        assert view.section.train == METHODS[method].get("lsr.train", "factors")
        assert view.section.rank_shape == setting.rank_shape
    elif view.adapter == "lora":
        assert view.section.learning_rate == 0.123
        assert view.section.lora_alpha == 2 * view.section.r
    else:
        assert view.train.head_learning_rate == 0.123


def test_a_section_takes_nothing_else_from_one_cell_to_the_next():
    Cell(SETTINGS[0], "row space, train=first", RATES[0], 0).view()
    assert CELL.view().section.train == "factors"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VERSION", experiment.VERSION + 1),
        ("SIZES", experiment.SIZES._replace(train=8)),
        ("SIZES", experiment.SIZES._replace(longest=9)),
        ("PROTOCOL", {**experiment.PROTOCOL, "train.epochs": 3}),
        ("UPDATE_SCALE", 3),
    ],
)
def test_a_key_changes_with_the_protocol(name, value, monkeypatch):
    before = CELL.key()
    assert CELL.key() == before
    monkeypatch.setattr(experiment, name, value)
    assert CELL.key() != before


@pytest.mark.parametrize("method", ["row space", *REFERENCES])
def test_a_cell_leaves_nothing_to_params(method):
    chosen = Cell(SETTINGS[0], method, RATES[0], 0).overrides()
    sections = {"train": TrainParams, chosen["adapter"]: type(Cell(SETTINGS[0], method, RATES[0], 0).view().section)}
    fields = {f"{name}.{field}" for name, section in sections.items() for field in section.model_fields}
    assert fields <= set(chosen)


def test_a_key_does_not_change_with_what_another_adapter_is_set_to(monkeypatch):
    cell = Cell(SETTINGS[0], "LoRA r=1", RATES[0], 0)
    before = cell.key(), CELL.key()
    monkeypatch.setattr(experiment, "PROTOCOL", {**experiment.PROTOCOL, "lsr.dropout": 0.5})
    assert cell.key() == before[0]
    assert CELL.key() != before[1]


def test_keys_tell_cells_apart_and_share_the_references():
    cells = [Cell(SETTINGS[0], method, rate, seed) for method in METHODS for rate in RATES for seed in (0, 1)]
    assert len({cell.key() for cell in cells}) == len(cells)
    few, many = (Cell(setting, "LoRA r=1", RATES[0], 0).key() for setting in SETTINGS[:2])
    assert few == many


def test_a_word_that_params_does_not_know_is_one_line_that_names_the_cell(monkeypatch):
    monkeypatch.setitem(METHODS, "row space", {"lsr.init": "row_spice"})
    with pytest.raises(UserError, match=r"movie-reviews r=4 s=1: row space\.lsr\.init: .*'row_spice'") as error:
        CELL.view()
    assert "\n" not in str(error.value)
