"""Every task of GLUE and SuperGLUE, from files of the official formats to the file that the server takes."""

import json
import shutil
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.data import datasets, further, pretrained, tokens
from pipeline.evaluation import inference, scores, submission
from pipeline.evaluation.answers import answers
from pipeline.evaluation.intervals import share
from pipeline.methods import adapters, base_models
from pipeline.params.rows import INDEX, DatasetRow
from tests import tasks, workspace
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run

# Row: the files of its submission with what may stand there for a prediction.
GLUE = {
    "cola": {"CoLA.tsv": "01"},
    "sst2": {"SST-2.tsv": "01"},
    "mrpc": {"MRPC.tsv": "01"},
    "stsb": {"STS-B.tsv": None},
    "qqp": {"QQP.tsv": "01"},
    "mnli": dict.fromkeys(("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"), tasks.NLI),
    "qnli": {"QNLI.tsv": tasks.ENTAILMENT},
    "rte": {"RTE.tsv": tasks.ENTAILMENT},
    "wnli": {"WNLI.tsv": "01"},
}
SUPERGLUE = {
    "boolq": {"BoolQ.jsonl": ("true", "false")},
    "cb": {"CB.jsonl": tasks.NLI},
    "copa": {"COPA.jsonl": (0, 1)},
    "multirc": {"MultiRC.jsonl": (0, 1)},
    "superglue-rte": dict.fromkeys(("RTE.jsonl", "AX-b.jsonl", "AX-g.jsonl"), tasks.ENTAILMENT),
    "wic": {"WiC.jsonl": ("true", "false")},
    "wsc": {"WSC.jsonl": ("True", "False")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = workspace.make(tmp_path_factory.mktemp("tasks") / "workspace")
    tasks.save_glue(made / "data/glue")
    tasks.save_superglue(made / "data/superglue")
    return made


@pytest.fixture
def chosen(folder, monkeypatch):
    """A function that goes to the workspace, with a row chosen and other changes to params.yaml."""

    def choose(data, **changes):
        monkeypatch.chdir(folder)
        values = workspace.merged(workspace.read_yaml(workspace.ROOT / "params.yaml"), workspace.SMALL)
        workspace.write_yaml(folder / "params.yaml", workspace.merged(values, {"data": data, **changes}))
        return params.load(params.EvaluateView)

    monkeypatch.delenv("DVC_ROOT", raising=False)
    return choose


@cache
def model_of(num_labels):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained("tiny-roberta", num_labels=num_labels)


def written(view, folder):
    """Predict the hidden splits with a model that nobody trained; return the files."""
    collate = tokens.collator(pretrained.load_tokenizer(view.base_model))
    for split, row in view.dataset.hidden.items():
        examples = tokens.load_tokens(split)
        logits = inference.logits(model_of(row.num_labels), examples, collate, 32, lambda done: None)
        submission.write(folder, row, logits, tokens.groups_of(examples), tokens.load_column(split, INDEX))
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("task", GLUE)
def test_a_task_of_glue_goes_from_its_files_to_that_of_the_server(task, chosen, tmp_path):
    view = chosen(f"{task}-files")
    run(TOKENIZE)
    found = written(view, tmp_path)
    assert found.keys() == GLUE[task].keys()
    for name, allowed in GLUE[task].items():
        header, *lines = found[name].splitlines()
        assert header == "index\tprediction"
        numbers, predictions = zip(*(line.split("\t") for line in lines), strict=True)
        assert numbers == tuple(map(str, range(tasks.HIDDEN)))
        if allowed is None:
            assert all(len(value) == 5 and 0 <= float(value) <= 5 for value in predictions)  # as 3.142
        else:
            assert set(predictions) <= set(allowed)
    metrics = report(artifacts.TOKENIZE_METRICS)
    assert metrics["test_rows"] == tasks.HELD_OUT
    assert metrics["train_rows"] + metrics["validation_rows"] == tasks.TRAIN - (task == "qqp")  # one is torn
    assert metrics["rows_dropped_missing"] == 2 * (task == "qqp")


@pytest.mark.parametrize("task", SUPERGLUE)
def test_a_task_of_superglue_goes_from_its_files_to_that_of_the_server(task, chosen, tmp_path):
    view = chosen(f"{task}-files")
    run(TOKENIZE)
    found = written(view, tmp_path)
    assert found.keys() == SUPERGLUE[task].keys()
    for name, allowed in SUPERGLUE[task].items():
        lines = [json.loads(line) for line in found[name].splitlines()]
        assert [line["idx"] for line in lines] == list(range(tasks.HIDDEN))
        if task != "multirc":
            assert all(line.keys() == {"idx", "label"} and line["label"] in allowed for line in lines)
            continue
        for line in lines:
            first, second = line["passage"]["questions"]
            assert (first["idx"], second["idx"]) == (2 * line["idx"], 2 * line["idx"] + 1)
            places = [answer["idx"] for question in (first, second) for answer in question["answers"]]
            assert places == [5 * line["idx"] + place for place in range(5)]
            assert {answer["label"] for question in (first, second) for answer in question["answers"]} <= set(allowed)


def test_every_row_of_the_benchmarks_is_tried(chosen):
    rows = [name for name, row in params_rows(chosen).items() if row.submission is not None]
    assert sorted(rows) == sorted([*GLUE, *SUPERGLUE, *(f"{task}-files" for task in (*GLUE, *SUPERGLUE))])


def params_rows(chosen):
    chosen("glue")
    return params.load_rows("data")


def as_on_the_hub(task):
    """The splits of a task as the hub's Parquet files have them: class numbers, -1 where labels are hidden."""
    names = {"CB": ("entailment", "contradiction", "neutral"), "RTE": tasks.ENTAILMENT}.get(task)
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        records = [tasks.RECORDS[task](place, n, split == "test") for place, n in enumerate(tasks.numbers(split))]
        if task == "MultiRC":
            records = list(tasks.flat_multirc(records))
        for record in records:
            record |= record.pop("target", {})
            label = record.get("label", -1)
            record["label"] = names.index(label) if names and label != -1 else int(label)
        yield name, pd.DataFrame(records).drop(columns="version", errors="ignore")


@pytest.mark.parametrize(("task", "name"), [("COPA", "copa"), ("MultiRC", "multirc"), ("WSC", "wsc"), ("CB", "cb")])
def test_the_hub_and_the_files_give_the_same_examples(task, name, chosen, tmp_path):
    chosen(f"{name}-files")
    row = params.load_row("data", name)
    config = row.source.config
    (tmp_path / config).mkdir()
    for split, table in as_on_the_hub(task):
        table.to_parquet(tmp_path / config / f"{split}-0.parquet", index=False)
    splits = "".join(f"  - split: {split}\n    path: {config}/{split}-*\n" for split in ("train", "validation", "test"))
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{splits}---\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    here = row.source.model_copy(update={"path": str(tmp_path), "revision": None})
    for split, table in tables(row.model_copy(update={"source": here}), name).items():
        pd.testing.assert_frame_equal(table, tables(params.load_row("data", f"{name}-files"), name)[split])


def tables(row: DatasetRow, name):
    loaded = datasets.load(row, name)
    splits = loaded.splits | further.load(row, name, loaded.dropped)
    return {split: table.to_pandas() for split, table in splits.items()}


def test_the_spans_of_wsc_and_the_words_of_wic_are_marked(chosen):
    chosen("wsc-files")
    test = tables(params.load_row("data", "wsc-files"), "wsc")["test"]
    assert test["text"][:2].tolist() == [
        f"*The cat* number {n} saw the dog, but #it# slept" for n in (1000, 1001)
    ]  # whether or not the number of the pronoun's word is one too low
    test = tables(params.load_row("data", "wic-files"), "wic")["test"]
    assert test["text"][1] == 'the *owl* number 1001 sleeps in the "forest'
    assert test["text_pair"][1] == 'the owl number 1001 *rests* in the "forest'


def test_a_choice_is_an_example_for_each_and_right_for_one(chosen):
    chosen("copa-files")
    test = tables(params.load_row("data", "copa-files"), "copa")["test"]
    assert test["text"][0] == f"{tasks.sentence(1000)} What was the cause?"
    assert test["text_pair"][:4].tolist() == [
        f"{text} {n}" for n in (1000, 1001) for text in ("it rests", "nobody saw it")
    ]
    assert test["group"][:4].tolist() == [0, 0, 1, 1]
    assert test["label"][:8].tolist() == [1, 0, 1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("task", ["copa", "multirc"])
def test_no_cut_separates_the_examples_of_a_group(task, chosen):
    chosen(f"{task}-files")
    loaded = tables(params.load_row("data", f"{task}-files"), task)
    assert len(loaded["validation"]) > 1
    assert not set(loaded["train"]["group"]) & set(loaded["validation"]["group"])
    assert not set(loaded["train"]["text"]) & set(loaded["validation"]["text"])  # of MultiRC, the passage


def test_groups_are_scored_while_training_as_afterwards(chosen):
    chosen("multirc-files", train={"epochs": 1})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    view = params.load(params.TrainView)
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.ADAPTER, trainable=False)
    split = tokens.load_tokens("validation")
    collate = tokens.collator(pretrained.load_tokenizer(view.base_model))
    logits = inference.logits(model, split, collate, 16, lambda done: None).numpy()
    found = scores.score(view.dataset.metrics, *answers(logits, np.array(split["label"]), view.dataset, groups(split)))
    assert found["f1"] == pytest.approx(report(artifacts.TRAIN_METRICS)["best_score"], abs=1e-6)
    said = report(artifacts.EVALUATE_METRICS)
    for name in ("f1", "exact_match"):
        assert said[f"{name}_low"] <= said[name] <= said[f"{name}_high"]
    assert said["examples"] == 5 * tasks.HELD_OUT


def groups(split):
    return np.array(split["group"])


def evaluated(chosen, data, **changes):
    """What evaluate reports of an adapter that nobody trained."""
    chosen(data, **changes)
    run(TOKENIZE, FACTORIZE)
    shutil.copytree(artifacts.INIT, artifacts.ADAPTER, dirs_exist_ok=True)
    run(EVALUATE)
    return report(artifacts.EVALUATE_METRICS)


def test_the_sets_that_hang_on_a_row_are_scored_with_its_adapter(chosen, capsys):
    said = evaluated(chosen, "superglue-rte-files", evaluate={"submission": True})
    assert said["examples"] == tasks.HELD_OUT
    assert said["axb_examples"] == said["axg_examples"] == tasks.HIDDEN
    assert said["axb_score"] == said["axb_matthews_correlation"]
    assert {"axg_accuracy_low", "axg_gender_parity", "axg_loss"} <= said.keys()
    assert said["axg_accuracy_baseline"] == pytest.approx(2 / 3)  # labels 0 0 1 1 0 0
    assert {path.name for path in (artifacts.EXPORTS / "submission").iterdir()} == set(SUPERGLUE["superglue-rte"])
    shown = capsys.readouterr().out
    assert "evaluate: axg: metric | value | 95 % interval | one answer for all" in shown
    assert "predictions for the server: AX-b.jsonl, AX-g.jsonl, RTE.jsonl in artifacts/exports/submission" in shown


def test_choices_are_scored_by_the_question(chosen, capsys):
    said = evaluated(chosen, "copa-files", evaluate={"submission": False})
    rows = pd.read_csv(artifacts.EVALUATE_PREDICTIONS)
    chosen_right = rows[rows["predicted"] == "right"]
    assert len(rows) == said["examples"] == 2 * tasks.HELD_OUT
    assert len(chosen_right) == tasks.HELD_OUT  # one of each question
    assert said["accuracy"] == pytest.approx((chosen_right["actual"] == "right").mean())
    assert (said["accuracy_low"], said["accuracy_high"]) == pytest.approx(
        share(round(said["accuracy"] * tasks.HELD_OUT), tasks.HELD_OUT), abs=1e-5
    )
    assert said["accuracy_baseline"] == 0.5
    assert not (artifacts.EXPORTS / "submission").exists()


def test_a_set_without_training_rows_is_no_row(chosen):
    with pytest.raises(UserError, match=r"^params.yaml: data: 'ax' has no training rows; mnli is scored on it too$"):
        chosen("ax")


def test_a_submission_needs_a_hidden_split(chosen):
    message = r"^params.yaml: evaluate.submission: row ratings of pipeline/datasets.yaml has no hidden split to predict"
    with pytest.raises(UserError, match=message):
        chosen("ratings", evaluate={"submission": True})
