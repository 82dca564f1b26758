import pytest

from benchmarks.family import experiment, plan, rates
from tests.benchmarks.family.made_up import RUN, line


def tuned(run, *scores):
    """The lines of a run's grid, with these validation scores."""
    cells = plan.grid(run)
    return {
        key: its for cell, score in zip(cells, scores, strict=True) for key, its in line(cell, validation=score).items()
    }


@pytest.fixture
def grid(monkeypatch):
    monkeypatch.setattr(rates, "GRID", experiment.GRID)


def of(found, data="tweets", method=RUN.method):
    return tuned(RUN._replace(data=data, method=method), *found)


def test_a_loss_is_to_the_best_rate_of_the_same_data_set():
    found = (
        of([0.5, 0.6, 0.7, 0.4]) | of([0.9, 0.8, 0.9, 0.9], "movie-reviews") | of([0.5, 0.5, 0.9, 0.5], "movie-pairs")
    )
    (row,) = rates.losses("short", found)
    assert row.mean == pytest.approx((10, 10, 0, 15))
    assert row.worst == pytest.approx((20, 10, 0, 30))
    assert row.apart == pytest.approx((40, 40, 0, 40))
    assert (row.method, row.data) == (RUN.method, 2)


def test_unfinished_grids_and_methods_with_several_places_are_left_out():
    found = of([0.5, 0.6, 0.7, 0.4])
    assert rates.losses("short", found) == []  # a mean of one is none
    found |= of([0.9, 0.8, 0.9, 0.9], "movie-reviews")
    del found[plan.grid(RUN._replace(data="tweets"))[0].key()]
    assert rates.losses("short", found) == []
    few = "LoRA r=1, two layers"
    scores = [0.5] * len(plan.grid(RUN._replace(method=few)))
    assert rates.losses("short", of(scores, "tweets", few) | of(scores, "movie-reviews", few)) == []


def test_the_page_has_a_line_for_each_method_and_the_same_bytes_each_time(grid, tmp_path):
    found = of([0.5, 0.6, 0.7, 0.4]) | of([0.9, 0.8, 0.9, 0.9], "movie-reviews")
    rates.write(found, tmp_path)
    text = (tmp_path / rates.FILE).read_text()
    assert f"| {RUN.method} | 2 | 10.0 (20.0) | 10.0 (10.0) | 0.0 (0.0) | 15.0 (30.0) |  |  |  |  |" in text
    assert "## short" in text
    assert "## long" not in text
    rates.write(found, tmp_path)
    assert (tmp_path / rates.FILE).read_text() == text
