"""Rows of a new file are answered as those of training: by its templates, whose texts Python formats here."""

from pathlib import Path

import pytest
import torch

from pipeline.core import artifacts
from pipeline.predict.__main__ import main as predict
from tests import kit, workspace
from tests.kit import refused, said, table
from tests.references import models, plain, texts
from tests.stages.running import FACTORIZE, TOKENIZE, TRAIN, report, run

LENGTH = 24  # tokens; some texts have more
FILLED = {  # `text` of the entry, and each text of a row as Python formats it
    "one": (["{herd}, {size}: {text}"], ["{herd}, {size}: {text}"]),
    "pair": (["{herd}: {text}", "other"], ["{herd}: {text}", "{other}"]),
}
OF_CLASSES = texts.ROWS["two"]
NEW = texts.examples(23)
COMPARED = texts.ROWS["comparisons"] | {"text": ["{herd}: {text}"]}
MARKED = OF_CLASSES | {"span": [{"column": "text", "word": "place", "text": "first"}], "text": ["text"]}
ROWS = {name: OF_CLASSES | {"text": templates} for name, (templates, _) in FILLED.items()}
ROWS |= {"compared": COMPARED, "marked": MARKED, "filled marked": MARKED | {"text": ["{herd}: {text}"]}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with the texts and a checkpoint, in which nothing has run."""
    folder = workspace.make(
        tmp_path_factory.mktemp("templates"),
        {name.replace(" ", "-"): row for name, row in ROWS.items()},
        adapter="lora",
        tokenize={"max_length": LENGTH},
        train={"epochs": 1, "batch_size": 8, "head_learning_rate": 0.05},
    )
    rows = [row | {"place": 0, "first": "the"} for row in texts.examples(100)]
    kit.write(folder / texts.FILE, rows)
    models.save(folder / "models/roberta", "roberta")
    return folder


@pytest.fixture
def trained(world, monkeypatch):
    """A function that trains on one of ROWS."""
    monkeypatch.chdir(world)

    def stages(name):
        workspace.change(data=name, model="models/roberta")
        run(TOKENIZE, FACTORIZE, TRAIN)

    return stages


def check(asked, *words):
    """Hold the printed probabilities to those of plain transformers and PEFT."""
    model = plain.adapted(plain.base_model(Path("models/roberta"), num_labels=2), artifacts.ADAPTER)
    expected = plain.logits_alone(model, Path("models/roberta"), asked, LENGTH).softmax(dim=1)
    assert (expected.amax(dim=0) - expected.amin(dim=0)).max() > 0.001  # the texts do not look alike
    names = report(artifacts.ADAPTER / "task.json")["labels"]
    printed = table(said(predict, *words))
    found = torch.tensor([[float(line[f"p({name})"]) for name in names] for line in printed], dtype=expected.dtype)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", FILLED)
def test_the_texts_of_a_file_are_composed_as_in_training(trained, name):
    trained(name)
    _, formats = FILLED[name]
    asked = [tuple(text.format(**row) for text in formats) for row in NEW]
    kit.write("new.csv", NEW)
    check(asked, "--file", "new.csv")
    ready = [{"a": texts_of[0], "b": texts_of[-1]} for texts_of in asked]
    kit.write("ready.csv", ready)
    check(asked, "--file", "ready.csv", "--column", *["a", "b"][: len(formats)])
    kit.write("pieces.csv", [{"h": row["herd"], **row} for row in NEW])
    check(asked, "--file", "pieces.csv", "--column", *(text.replace("{herd}", "{h}") for text in FILLED[name][0]))


def test_a_file_without_a_column_of_the_template_is_refused_though_it_has_others(trained):
    trained("one")
    kit.write("text.csv", [{"text": "a cat"}])
    says = "--file: text.csv, --column {herd}, {size}: {text}: no column 'herd'; columns: text"
    refused(predict, ["--file", "text.csv"], says=says)
    kit.write("empty.csv", [{"herd": "", "size": "low", "text": "a cat"}])
    refused(predict, ["--file", "empty.csv"], says="row 1: is empty; needed: a text, or --skip-empty")


def test_both_texts_of_a_comparison_are_composed(trained):
    trained("compared")
    rows = [first | {f"{key}_pair": value for key, value in texts.example(9).items()} for first in NEW]
    asked = [("{herd}: {text}".format(**row), "{herd_pair}: {text_pair}".format(**row)) for row in rows]
    kit.write("pairs.csv", rows)
    check(asked, "--file", "pairs.csv")


@pytest.mark.parametrize(("name", "before"), [("marked", ""), ("filled-marked", "{herd}: ")])
def test_a_file_whose_spans_are_not_marked_is_refused(trained, name, before):
    trained(name)
    kit.write("new.csv", NEW)
    says = f"--file: new.csv, --column {before}{{text, marked}}: no column 'text, marked'; columns: text, other, herd,"
    refused(predict, ["--file", "new.csv"], says=says)
    marked = [row | {"text, marked": row["text"].replace("the", "*the*", 1)} for row in NEW]
    kit.write("marked.csv", marked)
    check([((before + "{text, marked}").format(**row),) for row in marked], "--file", "marked.csv")
