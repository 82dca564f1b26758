import pytest

from benchmarks.family import experiment
from benchmarks.family.experiment import DATA, PROTOCOLS, Cell, Run, beyond, pool, sizes
from benchmarks.family.methods import GROUPS, METHODS, of_protocol
from pipeline.core.errors import UserError
from pipeline.params import TrainParams
from tests.benchmarks.family.made_up import GRID, REAL, RUN

CELL = Cell(RUN, "all", GRID[0], 0)
OF_EACH = ["core r=4", "LoRA r=1", "every weight", "head alone"]


@pytest.mark.parametrize("method", REAL)
def test_a_cell_sets_what_its_method_rate_layers_and_seed_say(method, monkeypatch):
    chosen = REAL[method]
    monkeypatch.setitem(METHODS, method, chosen)
    for place in chosen.places:
        view = Cell(Run("short", "tweets", method), place, 0.123, 3).view()
        assert (view.data, view.seed) == ("tweets", 3)
        assert view.adapter == chosen.overrides["adapter"]
        rate = view.train.head_learning_rate if view.adapter == "head" else view.section.learning_rate
        assert rate == 0.123
        if view.adapter in ("lsr", "lora"):
            assert view.section.layers == place
        for name, value in chosen.overrides.items():
            section, _, field = name.partition(".")
            assert not field or getattr(view.train if section == "train" else view.section, field) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", OF_EACH)
def test_a_cell_leaves_nothing_to_params(method, protocol):
    cell = Cell(Run(protocol, "tweets", method), "all", GRID[0], 0)
    view, chosen = cell.view(), cell.overrides()
    sections = {"train": TrainParams, chosen["adapter"]: type(view.section)}
    fields = {f"{name}.{field}" for name, section in sections.items() for field in section.model_fields}
    assert fields <= set(chosen) | set(experiment.LATER)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VERSION", experiment.VERSION + 1),
        ("DATA", {**DATA, "movie-reviews": DATA["movie-reviews"]._replace(short=experiment.SHORT._replace(test=7))}),
        ("PROTOCOLS", PROTOCOLS | {"short": PROTOCOLS["short"]._replace(sees_all=True)}),
        (
            "PROTOCOLS",
            PROTOCOLS
            | {"short": PROTOCOLS["short"]._replace(overrides=PROTOCOLS["short"].overrides | {"train.epochs": 2})},
        ),
    ],
)
def test_a_key_changes_with_the_protocol(name, value, monkeypatch):
    before = CELL.key()
    assert CELL.key() == before
    monkeypatch.setattr(experiment, name, value)
    assert CELL.key() != before


def test_a_key_of_pooled_frames_changes_with_the_data_of_the_pool(monkeypatch):
    pooled = Cell(RUN._replace(method="pooled core r=4"), "all", GRID[0], 0)
    before = pooled.key(), CELL.key()
    monkeypatch.setattr(
        experiment, "DATA", {**DATA, "tweets": DATA["tweets"]._replace(short=experiment.Sizes(train=7))}
    )
    assert pooled.key() != before[0]
    assert CELL.key() == before[1]


def test_a_key_does_not_change_with_what_another_adapter_is_set_to(monkeypatch):
    lora = Cell(RUN._replace(method="LoRA r=1"), "all", GRID[0], 0)
    before = lora.key(), CELL.key()
    short = PROTOCOLS["short"]
    changed = short._replace(overrides={**short.overrides, "lsr.dropout": 0.5})
    monkeypatch.setattr(experiment, "PROTOCOLS", {**PROTOCOLS, "short": changed})
    assert lora.key() == before[0]
    assert CELL.key() != before[1]


def test_keys_tell_cells_apart(monkeypatch):
    for method, chosen in REAL.items():
        monkeypatch.setitem(METHODS, method, chosen)
    cells = [
        Cell(Run(protocol, data, method), place, rate, seed)
        for protocol in PROTOCOLS
        for data in ("tweets", "movie-pairs")
        for method in REAL
        for place in REAL[method].places
        for rate in GRID[:2]
        for seed in (0, 1)
    ]
    assert len({cell.key() for cell in cells}) == len(cells)


def test_the_grid_is_the_same_for_all_methods_but_for_its_scale():
    assert RUN.rates() == GRID
    every = RUN._replace(method="every weight").rates()
    assert every == pytest.approx([rate / 100 for rate in GRID])
    assert [f"{rate}" for rate in every] == ["1.5e-05", "3e-05", "6e-05", "0.00012"]


def test_beyond_an_edge_is_one_step_further():
    assert beyond(GRID[0], GRID) == GRID[0] / 2
    assert beyond(GRID[-1], GRID) == GRID[-1] * 2
    assert [beyond(rate, GRID) for rate in GRID[1:-1]] == [None, None]


def test_a_pool_leaves_out_all_data_sets_of_the_same_texts():
    assert pool("tweets", "pooled") == tuple(DATA)
    assert set(pool("movie-pairs", "left out")) == {"tweets", "amazon-reviews"}
    assert set(DATA) - set(pool("tweets", "left out")) == {"tweets"}
    left_out = Cell(Run("short", "movie-ratings", "left-out core r=4"), "all", GRID[0], 0).view()
    assert set(left_out.section.frames_from) == {"tweets", "amazon-reviews"}
    assert CELL.view().section.frames_from == ()


def test_frames_of_another_data_set_are_made_of_that_one():
    assert pool("movie-ratings", "tweets") == ("tweets",)
    cell = Cell(Run("short", "movie-ratings", "foreign core r=4"), "all", GRID[0], 0)
    assert cell.view().section.frames_from == ("tweets",)


def test_the_long_protocol_sees_all_and_has_a_few_methods():
    assert sizes("long", "movie-pairs") == experiment.Sizes()
    assert sizes("short", "tweets") == experiment.SHORT
    assert set(of_protocol("long")) < set(of_protocol("short")) == set(METHODS)
    assert {"LoRA r=1", "LoRA r=8"} < set(of_protocol("long"))


def test_every_method_has_a_group_of_the_legend():
    assert {method.group for method in REAL.values()} <= set(GROUPS)


def test_a_word_that_params_does_not_know_is_one_line_that_names_the_run(monkeypatch):
    monkeypatch.setitem(
        METHODS, "core r=4", METHODS["core r=4"]._replace(overrides={"adapter": "lsr", "lsr.init": "x"})
    )
    with pytest.raises(UserError, match=r"short movie-reviews: core r=4\.lsr\.") as error:
        CELL.view()
    assert "'x'" in str(error.value)
