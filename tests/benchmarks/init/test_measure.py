import json

import numpy as np
import pytest
import torch

from benchmarks import views
from benchmarks.init import experiment, measure
from benchmarks.init.experiment import METHODS, QUERY_VALUE, RATES, REFERENCES, Cell, Setting, Sizes
from pipeline.data import tokens
from pipeline.evaluation import inference
from pipeline.methods import base_models
from tests import workspace

SETTING = Setting("tiny", "glue", separation_rank=2)
CACHES = (views._committed, views._row, experiment.parameters_a_term, measure._tokenized)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The workspace of the other tests: a tiny RoBERTa and made-up sentences."""
    folder = workspace.make(tmp_path_factory.mktemp("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(experiment, "PROTOCOL", {**experiment.PROTOCOL, "model": "tiny", "lsr.examples": 16})
        patch.setattr(experiment, "SIZES", Sizes(train=36, validation=16, test=24, longest=24, evaluations=2))
        for cache in CACHES:
            cache.cache_clear()
        yield patch
    for cache in CACHES:
        cache.cache_clear()


@pytest.mark.parametrize("method", METHODS | REFERENCES)
def test_a_cell_of_every_method_runs(tiny, method):
    cell = Cell(SETTING, method, RATES[1], 0)
    line = measure.measure(cell)
    assert json.loads(json.dumps(line))["key"] == cell.key()
    # 36 rows are 5 batches of 8: the curve has a point after 3 steps and one at the end.
    assert [step for step, _ in line["curve"]] == [3, 5]
    assert line["last"] == line["curve"][-1][1]
    assert line["best"] == max(score for _, score in line["curve"])
    assert 0 <= line["test"] <= 1
    assert line["test"] * 24 == pytest.approx(round(line["test"] * 24))
    budget, size = 2 * 4 * 2 * (2 * 6 + 2 * 4), experiment.parameters_a_term("glue", (2, 2), QUERY_VALUE, "factors")
    assert size == budget / 2
    if method in METHODS:
        assert abs(line["trained"] - budget) <= size
        assert line["stored"] >= line["trained"]


def test_first_factors_that_train_alone_are_smaller_and_so_have_more_terms(tiny):
    views = {method: Cell(SETTING, method, RATES[1], 0).view() for method in ("random", "random, train=first")}
    factors, first = (
        experiment.parameters_a_term("glue", (2, 2), QUERY_VALUE, train) for train in ("factors", "first")
    )
    assert first < factors
    assert views["random"].section.separation_rank == 2
    assert views["random, train=first"].section.separation_rank == experiment.nearest_terms(2 * factors, first)


@pytest.mark.parametrize("targets", [experiment.VALUE_OUTPUT_INTERMEDIATE, "all-linear"])
def test_target_sets_train_equally_many_parameters_within_one_term(tiny, targets):
    setting = SETTING._replace(separation_rank=5, target_modules=targets)
    size = experiment.parameters_a_term("glue", (2, 2), targets, "factors")
    budget = 5 * experiment.parameters_a_term("glue", (2, 2), QUERY_VALUE, "factors")
    terms = Cell(setting, "random", RATES[0], 0).view().section.separation_rank
    assert terms == 1 or abs(terms * size - budget) <= size / 2


def trained(method, seed):
    """The trained parameters of a cell, adapter and head, after the training."""
    view = Cell(SETTING, method, RATES[1], seed).view()
    splits = measure._splits(view)
    model = measure._started(view, splits["train"])
    measure._train(model, view, splits)
    return torch.cat([value.detach().flatten() for value in model.parameters() if value.requires_grad])


def test_a_cell_comes_out_the_same_again_and_otherwise_with_another_seed(tiny):
    first, again, other = (trained("row space", seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_methods_start_with_the_same_head_and_the_same_model(tiny):
    views = [Cell(SETTING, method, RATES[1], 0).view() for method in ("random", "LoRA r=8", "head alone")]
    outputs = [
        inference.logits(
            measure._started(view, measure._splits(view)["train"]),
            measure._splits(view)["test"],
            tokens.collator(base_models.load_tokenizer(view.base_model)),
            8,
            int,
        )
        for view in views
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_splits_are_the_first_rows_that_are_short_enough(tiny):
    view = Cell(SETTING, "random", RATES[0], 0).view()
    tiny.setattr(experiment, "SIZES", Sizes(train=1000, validation=16, test=24, longest=22, evaluations=2))
    splits = measure._splits(view)
    lengths = {split: np.array(rows["length"]) for split, rows in splits.items()}
    assert 0 < len(lengths["train"]) < 160
    assert max(map(max, lengths.values())) <= 22
    assert all(np.diff(lengths["validation"]) <= 0)
    assert "text" not in splits["train"].column_names
