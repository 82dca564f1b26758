"""The four stages over options that have nothing to do with each other: every pair of them meets in some run.

Of a family of forms, starts, task types, architectures, ways to train and uses, a greedy cover makes a few dozen runs,
the first of which bring most pairs together. Methods of others go through once each.
"""

import copy
import re
from contextlib import chdir
from itertools import combinations
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lsr import AdapterBank, compress_adapter, export_lora, export_merged, quantize_adapter
from lsr.init import INITIALIZATIONS
from lsr.init.random_factors import fresh_core
from lsr.tuner.files import WEIGHTS
from pipeline import params, score
from pipeline.core import artifacts
from pipeline.methods import adapters
from pipeline.params.sections import READ
from pipeline.predict.__main__ import main as predict
from tests import architectures, tasks, workspace, writers
from tests.kit import digests, said, table, write
from tests.pipeline.tasks import animals
from tests.stages import shops
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, base_model, base_of, logits, report, run, trained

OPTIONS = workspace.read_yaml(Path(__file__).with_name("options.yaml"))
KINDS, OTHERS = OPTIONS["kinds"], OPTIONS.pop("others")


GENERATING = "models/gpt2"  # the files of the other models have no head that generates
USUAL = 25  # runs of every day; the others are nightly


def fits(chosen):
    """Whether the chosen values, by option, go together."""
    return chosen.get("kinds") != "writing" or chosen.get("models", GENERATING) == GENERATING


def pairs_of(run):
    """The pairs of values that meet in a run."""
    return {frozenset(pair) for pair in combinations(run.items(), 2)}


def cover(options):
    """Runs in which each two values meet that go together.

    A run begins with a pair that has not met, and takes of each other option the value that brings the most new pairs.
    """
    missing = dict.fromkeys(
        ((name, value), (other_name, other))
        for name, other_name in combinations(options, 2)
        for value in options[name]
        for other in options[other_name]
        if fits({name: value, other_name: other})
    )
    runs = []
    while missing:
        run = dict(next(iter(missing)))
        for name in [name for name in options if name not in run]:
            candidates = [run | {name: value} for value in options[name]]
            fitting = [candidate for candidate in candidates if fits(candidate)]
            run = max(fitting, key=lambda candidate: len(pairs_of(candidate) & {*map(frozenset, missing)}))
        missing = {pair: None for pair in missing if frozenset(pair) not in pairs_of(run)}
        runs.append(tuple(run[name] for name in options))
    return runs


RUNS = cover({name: list(values) for name, values in OPTIONS.items()})
FAMILY = [
    pytest.param(*run, id="-".join(run), marks=[] if number < USUAL else [pytest.mark.nightly])
    for number, run in enumerate(RUNS)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with every architecture and kind of task."""
    entries = {name: workspace.ROWS[name] for name in ("animals", "shops", "writing")}
    folder = workspace.make(tmp_path_factory.mktemp("world"), entries, train={"epochs": 1})
    tasks.use_files(folder, "multirc", "copa", train=24, test=8)
    write(folder / "animals.csv", animals.rows(120))
    write(folder / "data/shops.csv", shops.rows(shops.LABELS))
    write(folder / "writing.jsonl", writers.rows())
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


@pytest.mark.parametrize(("form", "start", "kind", "model", "training", "use"), FAMILY)
def test_two_options_of_the_family_go_together_from_texts_to_answers(
    go, tmp_path, form, start, kind, model, training, use
):
    forms, models = OPTIONS["forms"], OPTIONS["models"]
    train, section = OPTIONS["trainings"][training]
    read = {"init_examples": 16, "init_head_steps": 2} if start in READ else {}
    section = {"init": start, **read, "learning_rate": 0.02, **models[model], **section}
    view = go(data=kind, model=model, train=train, lsr=forms[form] | section, **answering(kind))
    check(view, changes_nothing=INITIALIZATIONS[start].core is fresh_core)
    # Eight bits keep an update within some hundredths; anything else is rounding in float32.
    found = used(view, use, tmp_path)
    expected = logits(trained(view))
    if use == "bank" and kind == "shops":  # of tenants, the first one's
        expected = expected[..., : found.shape[-1]]
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=0.05 if use == "quantized" else 1e-4)


@pytest.mark.parametrize(("word", "section", "kind", "model"), OTHERS, ids=["-".join((w, m)) for w, _, _, m in OTHERS])
def test_a_method_of_others_goes_from_texts_to_answers(go, word, section, kind, model):
    changed = {word: section} if section else {}
    view = go(data=kind, model=model, adapter=word, **changed, **answering(kind))
    moves = word == "directions" or section.get("init_lora_weights") == "pissa"  # a part of the weight, and back
    check(view, changes_nothing=not moves)


def answering(kind):
    """Changes of params.yaml with which a completion fits the positions of a tiny model."""
    return {"evaluate": {"max_new_tokens": 4}} if kind == "writing" else {}


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
    if view.data == "writing":
        assert scores["loss"] < scores["loss_baseline"]
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
    columns = [name for name in ("prompt", "text", "text_pair") if name in scored[0]]
    asked = [{name: row[name] for name in columns} | {"shop": row.get("tenant", "")} for row in scored]
    more = ["--max-new-tokens", "4"] if kind == "writing" else []
    if kind == "copa":  # questions are counted, not their two choices
        *_, line = said(score.main, kind, str(artifacts.ADAPTER)).splitlines()
        assert line.split()[-1] == str(len(scored) // 2)
    answers = table(said(predict, "--file", write("asked.csv", asked).as_posix(), "--column", *columns, *more))
    assert len(answers) == len(scored) > 3
    for row, expected in zip(answers, scored, strict=True):
        if kind == "writing":
            assert row["answer"] == expected["said"]
        elif kind == "ratings":
            assert float(row["number"]) == pytest.approx(float(expected["predicted"]), abs=0.00051)
        elif kind != "copa":  # where choices are scored beside each other, and asked one by one
            assert row["label"] == expected["predicted"]
            if kind == "animals":  # multi-label answers have no confidence
                continue
            confidence = row["p"] if kind == "shops" else row[f"p({row['label']})"]
            assert float(confidence) == pytest.approx(float(expected["confidence"]), abs=0.0051)


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
    if use == "bank" and view.data == "shops":
        bank = AdapterBank.of_tenants(artifacts.ADAPTER, None)
        width = len(shops.LABELS[bank.names[0]])
        return logits(bank, adapter_names=[bank.names[0]] * 3)[:, :width]
    if use == "bank":
        bank = AdapterBank(base_of(view))
        bank.add("it", artifacts.ADAPTER)
        return logits(bank, adapter_names=["it"] * 3)
    if use == "quantized":
        quantize_adapter(artifacts.ADAPTER, folder / "small", "8bit")
    else:
        compress_adapter(artifacts.ADAPTER, folder / "small", "directions:9999")
    return logits(adapters.load_adapter(base_of(view), folder / "small", trainable=False))
