"""The four stages over options that have nothing to do with each other: every pair of them meets in one run.

Of a family of five forms, starts, kinds of task, architectures, ways to train and uses, 25 runs hold each of the 375
pairs once: they are the points of a plane over the numbers modulo five. Methods of others go through once each.
"""

import copy
import re
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lsr import AdapterBank, export_lora, export_merged, round_adapter, squeeze_adapter
from lsr.init import INITIALIZATIONS
from lsr.init.random_factors import fresh_core
from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.methods import adapters
from pipeline.params.sections import READ
from pipeline.predict.__main__ import main as predict
from tests import architectures, tasks, workspace
from tests.kit import digests, said, table
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, base_model, base_of, logits, report, run, trained

OPTIONS = workspace.read_yaml(Path(__file__).with_name("options.yaml"))
KINDS, OTHERS = OPTIONS["kinds"], OPTIONS.pop("others")


def point(i, j):
    """The options of a run. Two numbers modulo five give six, of which each two take each pair of values once."""
    numbers = (i, j, i + j, i + 2 * j, i + 3 * j, i + 4 * j)
    return tuple(list(options)[number % 5] for options, number in zip(OPTIONS.values(), numbers, strict=True))


FAMILY = [point(i, j) for i in range(5) for j in range(5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with every architecture and kind of task."""
    folder = workspace.make(tmp_path_factory.mktemp("world"), train={"epochs": 1})
    tasks.use_files(folder, "multirc", "copa", train=24, test=8)
    for model in OPTIONS["models"]:
        if model != "tiny":
            architectures.save(folder / model, Path(model).name)
    return folder


@pytest.fixture
def go(world, monkeypatch):
    """A function that runs the four stages with changes to params.yaml, and returns what training sees of them."""
    usual = (world / "params.yaml").read_bytes()
    monkeypatch.chdir(world)

    def stages(**changes):
        workspace.change(**changes)
        run(TOKENIZE, FACTORIZE)
        first = digests(artifacts.INIT)
        run(FACTORIZE)
        assert digests(artifacts.INIT) == first
        run(TRAIN, EVALUATE)
        return params.load(params.TrainView)

    yield stages
    (world / "params.yaml").write_bytes(usual)


@pytest.mark.parametrize(("form", "start", "kind", "model", "training", "use"), FAMILY, ids=map("-".join, FAMILY))
def test_two_options_of_the_family_go_together_from_texts_to_answers(
    go, tmp_path, form, start, kind, model, training, use
):
    forms, models = OPTIONS["forms"], OPTIONS["models"]
    train, section = OPTIONS["trainings"][training]
    read = {"examples": 16, "head_steps": 2} if start in READ else {}
    section = {"init": start, **read, "learning_rate": 0.02, **models[model], **section}
    view = go(data=kind, model=model, train=train, lsr=forms[form] | section)
    check(view, changes_nothing=INITIALIZATIONS[start].core is fresh_core)
    # Eight bits keep an update within some hundredths; anything else is rounding in float32.
    assert torch.allclose(used(view, use, tmp_path), logits(trained(view)), atol=0.05 if use == "rounded" else 1e-4)


@pytest.mark.parametrize(("word", "section", "kind", "model"), OTHERS, ids=["-".join((w, m)) for w, _, _, m in OTHERS])
def test_a_method_of_others_goes_from_texts_to_answers(go, word, section, kind, model):
    view = go(data=kind, model=model, adapter=word, **({word: section} if section else {}))
    moves = word == "directions" or section.get("init_lora_weights") == "pissa"  # a part of the weight, and back
    check(view, changes_nothing=not moves)


def check(view, *, changes_nothing):
    """What holds of every run: how it starts, that all of what trains has moved, and that what is said of it is so."""
    fresh = adapters.load_adapter(base_model(view), artifacts.INIT, trainable=True)
    # In memory of its own, as the base: where a tensor of a file begins decides how a product is rounded.
    assert torch.equal(logits(copy.deepcopy(fresh)), logits(base_model(view))) == changes_nothing
    before, after = (load_file(folder / WEIGHTS) for folder in (artifacts.INIT, artifacts.ADAPTER))
    frozen = {name for name, tensor in fresh.state_dict(keep_vars=True).items() if not tensor.requires_grad}
    assert before.keys() == after.keys()
    stood = {name for name in before if torch.equal(before[name], after[name])}
    assert stood == {name for name in before if names_in_model(name) & frozen}

    columns, labels = KINDS[view.data]
    task, scores = report(artifacts.ADAPTER / "task.json"), report(artifacts.EVALUATE_METRICS)
    assert (columns or task["columns"], labels, 24) == (task["columns"], task["labels"], task["max_length"])
    metric = view.dataset.metrics[0]
    low, high = (scores[f"{metric}_{end}"] for end in ("low", "high"))
    assert low <= scores[metric] == scores["score"] <= high
    assert scores["adapter_bytes"] == (artifacts.ADAPTER / WEIGHTS).stat().st_size
    counts = adapters.count_parameters(trained(view, trainable=True), view.base_model)
    assert counts.items() <= scores.items()
    check_answers(view.data)
    run_card(artifacts.ADAPTER, view.base_model.source.path)


def names_in_model(name):
    """The names that a tensor of the file may have in the model, where the adapter's own name is part of it."""
    stem, _, last = name.rpartition(".")
    return {name, f"{name}.default", f"{stem}.default.{last}"}


def check_answers(kind):
    """The command that asks the adapter says of each text what was scored."""
    scored = table(artifacts.EVALUATE_PREDICTIONS)
    columns = ("text", "text_pair")[: 1 + ("text_pair" in scored[0])]
    asked = table(said(predict, "--file", artifacts.EVALUATE_PREDICTIONS.as_posix(), "--column", *columns))
    assert len(asked) == len(scored) > 3
    for row, expected in zip(asked, scored, strict=True):
        if kind == "ratings":
            assert float(row["number"]) == pytest.approx(float(expected["predicted"]), abs=1e-3)
        elif kind != "copa":  # where choices are scored beside each other, and asked one by one
            assert row["label"] == expected["predicted"]
            assert float(row[f"p({row['label']})"]) == pytest.approx(float(expected["confidence"]), abs=0.0051)


def run_card(folder, base):
    """Run the snippet of an adapter's card where it lies, beside the base model that it names."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    link = folder / Path(base).parts[0]
    link.symlink_to(Path(link.name).resolve())
    with chdir(folder):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102 what the card says is asked for
    link.unlink()


def used(view, use, folder):
    """The logits of the trained adapter where it goes."""
    if use == "lora":
        export_lora(artifacts.ADAPTER, folder / "lora")
        assert "import lsr" not in (folder / "lora/README.md").read_text()
        run_card(folder / "lora", view.base_model.source.path)
        return logits(PeftModel.from_pretrained(base_of(view), str(folder / "lora")))
    if use == "merged":
        tokenizer = AutoTokenizer.from_pretrained(view.base_model.source.path)
        export_merged(trained(view), folder / "merged", tokenizer=tokenizer)
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        assert report(folder / "merged/config.json")["pad_token_id"] == padding is not None
        return logits(type(base_of(view)).from_pretrained(folder / "merged"))
    if use == "bank":
        bank = AdapterBank(base_of(view))
        bank.add("it", artifacts.ADAPTER)
        return logits(bank, adapter_names=["it"] * 3)
    if use == "rounded":
        round_adapter(artifacts.ADAPTER, folder / "small", "8bit")
    else:
        squeeze_adapter(artifacts.ADAPTER, folder / "small", "directions:9999")
    return logits(adapters.load_adapter(base_of(view), folder / "small", trainable=False))
