import pytest

from benchmarks.family import experiment, plan
from benchmarks.family.experiment import DATA, SEEDS, STEP, Cell, Run
from benchmarks.family.methods import METHODS
from tests.benchmarks.family.made_up import GRID, PLACES, RUN, TABLE, line

PLACED = RUN._replace(method="LoRA r=1, one layer")


def tried(run, scores, **fields):
    """The lines of the grid of a run, with validation scores in its order."""
    found = {}
    for cell, score in zip(plan.grid(run), scores, strict=True):
        found |= line(cell, validation=score, **fields)
    return found


def test_the_rate_is_tuned_on_the_validation_score_alone():
    found = tried(RUN, [0.6, 0.7, 0.65, 0.5])
    for cell, test in zip(plan.grid(RUN), [0.9, 0.1, 0.8, 0.7], strict=True):
        found[cell.key()]["test"] = test
    assert plan.tuned(RUN, found) == Cell(RUN, "all", GRID[1], SEEDS[0])


def test_of_two_best_rates_the_smaller_is_taken():
    assert plan.tuned(RUN, tried(RUN, [0.6, 0.7, 0.7, 0.5])).rate == GRID[1]


def test_layers_are_tuned_as_the_rate_is():
    count = len(PLACES)
    scores = [0.1] * len(GRID) * count
    scores[2 * len(GRID) + 1] = 0.9
    assert plan.tuned(PLACED, tried(PLACED, scores)) == Cell(PLACED, PLACES[2], GRID[1], SEEDS[0])
    assert all(cell.layers == PLACES[2] for cell in plan.seeds(PLACED, tried(PLACED, scores)))


def test_nothing_is_tuned_and_no_seed_runs_before_all_rates_are_there():
    found = tried(RUN, [0.6, 0.7, 0.7, 0.5])
    found.popitem()
    assert plan.tuned(RUN, found) is None
    assert plan.seeds(RUN, found) == plan.wider(RUN, found) == []


@pytest.mark.parametrize(
    ("scores", "rate"), [([0.7, 0.6, 0.5, 0.4], GRID[0] / STEP), ([0.4, 0.5, 0.6, 0.7], GRID[-1] * STEP)]
)
def test_the_best_at_an_edge_is_tuned_once_one_more_rate_is_there(scores, rate):
    found = tried(RUN, scores)
    assert plan.tuned(RUN, found) is None
    (further,) = plan.wider(RUN, found)
    assert further == Cell(RUN, "all", rate, SEEDS[0])
    worse, better = (plan.tuned(RUN, found | line(further, validation=score)) for score in (0.1, 0.9))
    assert worse.rate in (GRID[0], GRID[-1])
    assert not plan.is_at_edge(worse)
    assert better == further
    assert plan.is_at_edge(better)


def test_a_best_rate_inside_of_the_grid_needs_no_more():
    assert plan.wider(RUN, tried(RUN, [0.6, 0.7, 0.65, 0.5])) == []


def simulate(only, found, score=lambda cell: -abs(cell.rate / cell.run.rates()[1] - 1)):
    """Run all batches with made-up scores; return the cells in their order."""
    ran = []
    for batch in plan.batches("short", only, found):
        ran += batch
        for cell in batch:
            found |= line(cell, validation=score(cell))
    return ran


def test_every_cell_runs_once_and_no_more_than_were_announced():
    announced = plan.count_missing("short", [""], {})
    ran = simulate([""], {})
    assert len({cell.key() for cell in ran}) == len(ran)
    runs = plan.runs("short")
    assert len(ran) == announced - sum(not METHODS[run.method].like for run in runs)  # no best was at an edge
    assert len(runs) == len(TABLE) * len(DATA) - 1  # frames of another data set have none for that one
    assert len(simulate([""], {}, lambda cell: cell.rate)) == announced


def test_a_run_is_tuned_with_the_first_seed_before_its_seeds_run():
    ran = simulate(["tweets: diagonal r=12"], {}, lambda cell: cell.rate)
    first = [cell for cell in ran if cell.seed == SEEDS[0]]
    assert ran[: len(first)] == first
    assert {cell.rate for cell in ran if cell.seed != SEEDS[0]} == {GRID[-1] * STEP}
    assert [cell.seed for cell in ran] == sorted(cell.seed for cell in ran)


@pytest.mark.parametrize("kept", [0, 1, len(GRID), len(GRID) + 2, len(GRID) + len(SEEDS)])
def test_what_is_finished_is_not_run_again(kept):
    only = ["movie-reviews: LoRA r=8"]
    ran = simulate(only, {}, lambda cell: cell.rate)
    assert len(ran) == len(GRID) + len(SEEDS)
    found = {}
    for cell in ran[:kept]:
        found |= line(cell, validation=cell.rate)
    assert plan.count_missing("short", only, found) == len(ran) - kept
    assert simulate(only, found, lambda cell: cell.rate) == ran[kept:]


def test_a_run_that_is_like_another_takes_its_rate_and_has_no_tries():
    other, run = (RUN._replace(method=method) for method in ("core r=4", "foreign core r=4"))
    assert plan.grid(run) == plan.wider(run, {}) == plan.seeds(run, {}) == []
    found = tried(other, [0.4, 0.5, 0.6, 0.5])
    assert plan.seeds(run, found) == [Cell(run, "all", GRID[2], seed) for seed in SEEDS]
    assert plan.count_missing("short", [run.name], found) == plan.count_missing("short", [run.name], {}) == len(SEEDS)
    assert run._replace(data="tweets") not in plan.runs("short")


def test_only_chooses_by_the_words_of_protocol_data_and_method():
    assert {run.data for run in plan.runs("short", ["short tweets"])} == {"tweets"}
    assert {run.method for run in plan.runs("short", [": LoRA r=8"])} == {"LoRA r=8"}
    assert plan.count_missing("short", ["no such words"], {}) == 0
    assert plan.runs("long", ["short"]) == []
    assert plan.runs("long", ["tweets: core r=4"]) == [
        Run("long", "tweets", "core r=4"),
        Run("long", "tweets", "core r=4, last layers"),
    ]
    assert plan.runs("long", ["long tweets: core r=4"]) == [Run("long", "tweets", "core r=4")]
    both = plan.runs("short", ["tweets: LoRA r=8", "long", "movie-reviews: LoRA r=8"])
    assert [run.data for run in both] == ["movie-reviews", "tweets"]


def test_a_changed_protocol_runs_everything_again(monkeypatch):
    found = {}
    simulate(["tweets: core"], found)
    assert plan.count_missing("short", ["tweets: core"], found) == 0
    monkeypatch.setattr(experiment, "VERSION", -1)
    assert plan.count_missing("short", ["tweets: core"], found) == plan.count_missing("short", ["tweets: core"], {})
