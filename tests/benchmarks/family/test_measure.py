import json

import numpy as np
import pytest
import torch

from benchmarks.family import experiment, inputs, measure
from benchmarks.family.experiment import PROTOCOLS, Cell, Data, Run, Sizes
from benchmarks.family.methods import ALL
from pipeline.arena.inputs import splits
from pipeline.evaluation import inference
from pipeline.params import changed
from tests import workspace
from tests.benchmarks.family.made_up import TABLE

SMALL = Sizes(train=36, validation=16, test=24, longest=24)
OF_EACH = [name for name, method in TABLE.items() if method.places == ALL]  # a tiny model has two layers
CACHES = (changed._committed, changed._row, inputs.task)
RATE = 0.003


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The workspace of the other tests: a tiny RoBERTa and made-up sentences."""
    folder = workspace.make(tmp_path_factory.mktemp("tiny"))
    data = {"glue": Data("glue", SMALL), "ratings": Data("csv", SMALL), "comparisons": Data("csv", SMALL)}
    overrides = {"model": "tiny", "lsr.examples": 24, "tokenize.max_length": 24, "lsr.head_steps": 4}
    protocols = {
        name: protocol._replace(overrides={**protocol.overrides, **overrides}) for name, protocol in PROTOCOLS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(experiment, "DATA", data)
        patch.setattr(experiment, "PROTOCOLS", protocols)
        for cache in CACHES:
            cache.cache_clear()
        yield patch
    for cache in CACHES:
        cache.cache_clear()


def cell(method, data="glue", seed=0, protocol="short", layers="all"):
    return Cell(Run(protocol, data, method), layers, RATE, seed)


@pytest.mark.parametrize("method", OF_EACH)
def test_a_cell_of_every_kind_runs(tiny, method):
    line = measure.measure(cell(method))
    assert json.loads(json.dumps(line))["key"] == cell(method).key()
    assert 0 <= line["test"] <= 1
    assert line["test"] * 24 == pytest.approx(round(line["test"] * 24))
    assert line["stored"] >= line["trained"]


def test_what_is_counted_is_that_of_four_layers_of_24_by_24(tiny):
    methods = ("diagonal r=12", "core r=4", "pooled core r=4", "shared r=2", "LoRA r=1")
    lines = {method: measure.measure(cell(method)) for method in methods}
    assert {method: (line["trained"], line["stored"], line["pooled"]) for method, line in lines.items()} == {
        "diagonal r=12": (4 * 12, 4 * (12 + 12 * 48), 0),
        "core r=4": (4 * 16, 4 * (16 + 4 * 48), 0),
        "pooled core r=4": (4 * 16, 4 * 16, 4 * 4 * 48),
        "shared r=2": (2 * 2 * 48 + 4 * 4, 2 * 2 * 48 + 4 * 4, 0),
        "LoRA r=1": (4 * 48, 4 * 48, 0),
    }


def test_directions_are_as_many_as_are_named(tiny):
    assert measure.measure(cell("9 directions, all linear"))["trained"] == 9


def test_a_few_layers_are_those_that_are_named(tiny):
    model = measure.started(cell("LoRA r=1, one layer", layers=(1,)))
    names = [name for name, value in model.named_parameters() if value.requires_grad and "lora_" in name]
    assert len(names) == 4
    assert all(".layer.1." in name for name in names)


@pytest.mark.parametrize("data", ["ratings", "comparisons"])
def test_numbers_and_pairs_run(tiny, data):
    assert -1 <= measure.measure(cell("core r=4", data))["test"] <= 1


def test_the_long_protocol_sees_all_rows(tiny):
    seen = cell("core r=4", protocol="long")
    found = read("glue", seen.sizes())
    assert len(found["train"]) + len(found["validation"]) == 160
    assert len(found["test"]) == 40
    assert measure.measure(seen)["trained"] == 64


def read(data, sizes):
    return splits(inputs.task(data, "tiny", 24, sizes))


def trained(chosen):
    """The trained parameters of a cell, adapter and head, after the training."""
    view = chosen.view()
    model = measure.started(chosen)
    measure.train(model, view, read(view.data, chosen.sizes()))
    return torch.cat([value.detach().flatten() for value in model.parameters() if value.requires_grad])


def test_a_cell_comes_out_the_same_whatever_ran_before(tiny):
    first = trained(cell("core r=4"))
    trained(cell("LoRA r=8", "ratings", seed=1))
    trained(cell("pooled core r=4", "ratings"))
    assert torch.equal(trained(cell("core r=4")), first)  # with gradients from their file
    assert not torch.equal(trained(cell("core r=4", seed=1)), first)


def test_methods_start_with_the_same_head_and_the_same_model(tiny):
    outputs = []
    for method in ("core r=4", "pooled core r=4", "LoRA r=8", "head alone", "every weight"):
        chosen = cell(method)
        split = read("glue", chosen.sizes())["test"]
        outputs.append(
            inference.logits(measure.started(chosen), split, measure._collator(chosen.view()), 8, lambda done: None)
        )
    assert all(torch.equal(found, outputs[0]) for found in outputs[1:])


def frames(method, data="glue"):
    model = measure.started(cell(method, data))
    return {name: value for name, value in model.named_buffers() if "factor_" in name}


def test_frames_depend_on_whose_gradients_make_them(tiny):
    own, pooled, left_out = (frames(method) for method in ("core r=4", "pooled core r=4", "left-out core r=4"))
    assert len(own) == 8
    for other in (pooled, left_out, frames("LoRA-SB r=12"), frames("LoRA-XS r=12")):
        assert own.keys() == other.keys()
        assert not any(own[name].shape == other[name].shape and torch.equal(own[name], other[name]) for name in own)
    assert all(torch.equal(frames("left-out core r=4", "comparisons")[name], alone) for name, alone in own.items())


def test_splits_are_the_first_rows_that_are_short_enough(tiny):
    everything = read("glue", Sizes())
    few = read("glue", Sizes(train=1000, validation=16, test=24, longest=22))
    for split, rows in few.items():
        lengths = np.array(rows["length"])
        assert 0 < len(lengths) <= {"train": 1000, "validation": 16, "test": 24}[split]
        assert lengths.max() <= 22
        kept = [row["input_ids"] for row in everything[split] if row["length"] <= 22]
        assert [row["input_ids"] for row in rows] == kept[: len(rows)]
    assert "text" not in few["train"].column_names


def test_a_training_that_diverged_scores_as_a_constant_does(tiny):
    chosen = cell("head alone")
    view, found = chosen.view(), read("glue", chosen.sizes())
    model = measure.started(chosen)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(torch.nan)
    labels = np.array(found["test"]["label"])
    assert measure._score(model, view, found["test"]) == np.mean(labels == 0)
