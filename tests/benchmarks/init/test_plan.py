import pytest

from benchmarks.init import experiment, plan
from benchmarks.init.experiment import METHODS, RATES, SEEDS, SETTINGS

SETTING = SETTINGS[0]


@pytest.fixture(autouse=True)
def one_size(monkeypatch):
    monkeypatch.setattr(experiment, "parameters_a_term", lambda *form: 100)


def lines(*cells, **fields):
    return {cell.key(): {"key": cell.key(), "last": 0.5, "test": 0.5} | fields for cell in cells}


def tuned(method, **scores):
    """The tuning lines of a method, with one list of fields by learning rate."""
    found = {}
    for position, cell in enumerate(plan.tuning(SETTING, method).values()):
        found |= lines(cell, **{name: values[position] for name, values in scores.items()})
    return found


def test_the_rate_is_tuned_on_the_validation_score_alone():
    found = tuned("random", last=[0.6, 0.7, 0.65, 0.5], test=[0.9, 0.1, 0.8, 0.7], best=[0.99, 0.7, 0.65, 0.5])
    assert plan.tuned_rate(SETTING, "random", found) == RATES[1]


def test_of_two_best_rates_the_smaller_is_taken():
    assert plan.tuned_rate(SETTING, "random", tuned("random", last=[0.6, 0.7, 0.7, 0.5])) == RATES[1]


def test_no_rate_is_tuned_and_no_seed_runs_before_all_rates_are_there():
    found = tuned("random", last=[0.6, 0.7, 0.7, 0.5])
    found.popitem()
    assert plan.tuned_rate(SETTING, "random", found) is None
    assert plan.seeds(SETTING, "random", found) == []


def simulate(only, found, score=lambda cell: cell.rate):
    """Run all batches with made-up scores; return the cells in their order."""
    ran = []
    for batch in plan.batches(only, found):
        ran += batch
        for cell in batch:
            found |= lines(cell, last=score(cell))
    return ran


def test_every_cell_runs_once_and_as_many_as_were_announced():
    announced = plan.count_missing("", {})
    ran = simulate("", {})
    assert len({cell.key() for cell in ran}) == len(ran) == announced
    chosen = [method for setting in SETTINGS for method in setting.methods]
    ours = [method for method in chosen if method in METHODS]
    assert all(cell.method in cell.setting.methods for cell in ran)  # nothing that is removed
    a_method = len(RATES) + len(SEEDS) - 1
    assert a_method * len(ours) < announced < a_method * len(chosen)  # settings share references


def test_a_setting_is_tuned_with_the_first_seed_before_its_seeds_run_at_the_best_rate():
    ran = simulate(f"{SETTING.name}: row space", {})
    tuning = [cell for cell in ran if cell.seed == SEEDS[0]]
    assert ran[: len(tuning)] == tuning
    assert {cell.rate for cell in tuning} == set(RATES)
    assert {cell.rate for cell in ran[len(tuning) :]} == {RATES[-1]}


@pytest.mark.parametrize("kept", [0, 1, len(RATES), len(RATES) + 2, len(RATES) + len(SEEDS) - 1])
def test_what_is_finished_is_not_run_again(kept):
    name = f"{SETTING.name}: random"
    ran = [cell for cell in simulate(name, {}) if cell.method == "random"]
    found = {}
    for cell in ran[:kept]:
        found |= lines(cell, last=cell.rate)
    missing = plan.count_missing(name, found)
    again = [cell for cell in simulate(name, found) if cell.method == "random"]
    assert again == ran[kept:]
    assert missing == plan.count_missing(name, {}) - kept


def test_only_chooses_by_the_words_of_setting_and_method():
    assert {cell.setting.data for cell in simulate("tweets", {})} == {"tweets"}
    assert {cell.method for cell in simulate(": LoRA", {})} == {"LoRA r=1", "LoRA r=8"}
    assert plan.count_missing("no such words", {}) == 0


def test_a_changed_protocol_runs_everything_again(monkeypatch):
    found = {}
    simulate("tweets", found)
    assert plan.count_missing("tweets", found) == 0
    monkeypatch.setattr(experiment, "SIZES", experiment.SIZES._replace(test=7))
    assert plan.count_missing("tweets", found) == plan.count_missing("tweets", {})
