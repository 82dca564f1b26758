import json

import pytest

from benchmarks.init import __main__ as program
from benchmarks.init import experiment, plan, store, summary
from benchmarks.init.experiment import QUERY_VALUE, RATES, SETTINGS, VALUE_OUTPUT_INTERMEDIATE, Cell
from pipeline.errors import UserError
from tests.workspace import ROOT

FOUND = store.load(ROOT / program.CELLS)
SIZES = {  # of a term in MiniLM, as `parameters_a_term` counts
    ((2, 2), QUERY_VALUE): {"factors": 1920, "first": 1152},
    ((4, 4), QUERY_VALUE): {"factors": 3840, "first": 2304},
    ((2, 2), VALUE_OUTPUT_INTERMEDIATE): {"factors": 4776, "first": 2784},
    ((2, 2), "all-linear"): {"factors": 6856, "first": 4032},
}
REMOVED = [(setting, method) for setting in SETTINGS for method in setting.removed]


@pytest.fixture
def sizes(monkeypatch):
    """No model is built to count its parameters."""
    monkeypatch.setattr(
        experiment, "parameters_a_term", lambda data, ranks, targets, train: SIZES[ranks, targets][train]
    )


def test_finished_cells_are_found_though_knobs_have_gone(sizes):
    assert plan.count_missing("", FOUND) == 0


def test_the_committed_table_is_what_the_committed_cells_say(sizes):
    committed = json.loads((ROOT / program.RESULTS / "table.json").read_text())
    for row, fields in zip(summary.rows(FOUND), committed, strict=True):
        assert row.flat() == pytest.approx(fields)


def test_every_committed_cell_is_in_the_table(sizes):
    runs = [(setting, method) for setting in SETTINGS for method in (*setting.methods, *setting.removed)]
    cells = [cell for run in runs for cell in (*plan.tuning(*run).values(), *plan.seeds(*run, FOUND))]
    assert {cell.key() for cell in cells} == FOUND.keys()


@pytest.mark.parametrize(("setting", "method"), REMOVED, ids=str)
def test_what_is_removed_is_found_without_a_model_and_cannot_run(setting, method, monkeypatch):
    monkeypatch.setattr(experiment, "parameters_a_term", None)
    assert plan.tuned_rate(setting, method, FOUND)
    with pytest.raises(UserError, match=r"lsr\."):
        Cell(setting, method, RATES[0], 0).view()


def test_every_removed_row_says_so():
    assert all("(removed)" in Cell(setting, method, RATES[0], 0).name for setting, method in REMOVED)
