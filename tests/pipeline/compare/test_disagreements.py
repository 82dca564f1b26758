"""Where methods answer differently, counted by hand."""

import pytest

from pipeline.compare import disagreements
from pipeline.compare.comparison import compare
from pipeline.compare.page import page
from tests.pipeline.compare.records import labels, record, save_examples


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_examples("rte")


def answering(method, wrong, seed=0):
    """A training that is right but for some examples."""
    said = [float(1 - label if place in wrong else label) for place, label in enumerate(labels("rte"))]
    score = {"accuracy": 1 - len(wrong) / len(said)}
    return record(method, seed=seed, predicted=said, test=[score] * 3)


def found(*records):
    return compare("small", records, "LoRA r=1", 100)


def test_what_differs_is_shown_with_seeds_that_are_right():
    one = found(
        answering("LoRA r=1", {3, 8}), answering("LoRA r=1", {3}, 1), answering("VeRA", {5}), answering("VeRA", {5}, 1)
    )
    shown = disagreements.of_task(one, "rte")
    assert [example[0] for example in shown["shown"]] == [3, 5, 8]
    assert shown["methods"]["LoRA r=1"]["right"] == [0, 1, 0.5]
    assert shown["methods"]["VeRA"]["right"] == [1, 0, 1]
    assert shown["methods"]["VeRA"]["answer"][1] == 1 - labels("rte")[5]
    place = shown["order"].index
    assert shown["counts"]["LoRA r=1"][place("VeRA")] == 1  # the fifth
    assert shown["counts"]["VeRA"][place("LoRA r=1")] == 2  # on the eighth one seed of two is no majority


def test_methods_that_agree_on_all_have_nothing_to_show():
    one = found(answering("LoRA r=1", {3}), answering("VeRA", {3}))
    shown = disagreements.of_task(one, "rte")
    assert shown["shown"] == []
    assert shown["methods"]["VeRA"]["answer"] == []
    assert one.pairs["rte"]["VeRA"].p == 1.0
    assert "</html>" in page(one)


def test_a_task_where_nothing_finished_has_none():
    assert disagreements.of_task(found(record(status="failed", reason="x")), "rte") is None
