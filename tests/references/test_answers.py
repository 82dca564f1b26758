"""What is scored and predicted is what plain transformers and PEFT say of each text alone, for every architecture.

The model is loaded in float32 from its checkpoint, the adapter from artifacts/adapter, and the labels from the file of
the user: not from tokens, batches or reports. Scores are those of scikit-learn and scipy.
"""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn import metrics
from torch.nn import functional as F

from pipeline.core import artifacts
from pipeline.predict.__main__ import main as predict
from tests import kit, workspace
from tests.kit import said, table
from tests.references import models, plain, texts
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run

EXAMPLES = 100
LENGTH = 24  # tokens; some texts have more
ADAPTERS = {
    "lora": {"adapter": "lora", "lora": {"lora_dropout": 0.1, "learning_rate": 0.02}},
    "sums": {"adapter": "lsr", "lsr": {"dropout": 0.1, "learning_rate": 0.02}},
    "shared": {
        "adapter": "lsr",
        "lsr": {"rank_shape": [3], "separation_rank": 1, "share": "layers", "train": "all", "init": "warm_start"}
        | {"init_examples": 16, "init_head_steps": 2, "learning_rate": 0.02},
    },
}


def cases():
    """Each architecture meets each kind of label; the first of each meet in the usual suite, the others at night."""
    kinds = itertools.product(enumerate(models.ARCHITECTURES), enumerate(texts.ROWS))
    for (place, architecture), (turn, labels) in kinds:
        adapter = list(ADAPTERS)[(place + turn) % 3]
        dtype = (torch.float32, torch.bfloat16)[(place + turn // 2) % 2]
        side = ("right", "left")[place % 2]
        marks = () if turn == place % len(texts.ROWS) else pytest.mark.nightly
        name = "-".join((architecture, labels, adapter, str(dtype).removeprefix("torch."), side))
        yield pytest.param(architecture, labels, adapter, dtype, side, marks=marks, id=name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with the texts, in which nothing has run."""
    training = {"epochs": 1, "batch_size": 8, "head_learning_rate": 0.05}
    folder = workspace.make(
        tmp_path_factory.mktemp("answers"),
        texts.ROWS,
        tokenize={"max_length": LENGTH},
        train=training,
        evaluate={"batch_size": 5},
    )
    kit.write(folder / texts.FILE, texts.examples(EXAMPLES))
    return folder


@pytest.fixture
def go(world, monkeypatch):
    """A function that runs all stages with a checkpoint, labels and an adapter, and returns the checkpoint's folder."""
    usual = (world / "params.yaml").read_bytes()
    monkeypatch.chdir(world)

    def stages(architecture, labels, adapter, dtype, side):
        folder = Path(f"models/{architecture}-{dtype}-{side}")
        if not folder.exists():
            models.save(folder, architecture, dtype, side)
        workspace.change(data=labels, model=str(folder), **ADAPTERS[adapter])
        targets = {"target_modules": models.TARGETS.get(architecture, "default")}
        workspace.change(lsr=targets, lora=targets)
        run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
        return folder

    yield stages
    (world / "params.yaml").write_bytes(usual)


@pytest.mark.parametrize(("architecture", "labels", "adapter", "dtype", "side"), [*cases()])
def test_scores_and_predictions_are_what_plain_transformers_say_of_each_text_alone(
    go, architecture, labels, adapter, dtype, side
):
    folder = go(architecture, labels, adapter, dtype, side)
    scored = table(artifacts.EVALUATE_PREDICTIONS)
    asked = [tuple(line[name] for name in ("text", "text_pair") if name in line) for line in scored]
    task = report(artifacts.ADAPTER / "task.json")
    logits = logits_of(folder, task, asked)
    assert (logits.amax(dim=0) - logits.amin(dim=0)).max() > 0.01  # the texts do not look alike
    probabilities = check_printed(task, logits, asked)
    JUDGED[labels](task["labels"], logits, probabilities, asked, scored)


def logits_of(folder, task, asked):
    kind = {"multi_label": "multi_label_classification", "number": "regression"}
    head = {"num_labels": len(task["labels"] or [0]), "problem_type": kind.get(task["kind"])}
    model = plain.adapted(plain.base_model(folder, **head), artifacts.ADAPTER)
    return plain.logits_alone(model, folder, asked, LENGTH)


def near(expected):
    """Rounding in float32, and to the six digits that are printed."""
    return pytest.approx(expected, abs=2e-5)


def check_printed(task, logits, asked):
    """Hold what the command says of a file, and of the first text alone, to the logits, and return the probabilities.

    Each label is the likeliest one or, if there may be several, they are those from their threshold on.
    """
    columns, names, thresholds = ("text", "text_pair")[: len(asked[0])], task["labels"], task.get("thresholds")
    file = kit.write("asked.csv", [dict(zip(columns, texts_of, strict=True)) for texts_of in asked])
    printed = table(said(predict, "--file", str(file), "--column", *columns, "--batch-size", "7"))
    printed += table(said(predict, *asked[0]))
    again = [*range(len(asked)), 0]
    if names is None:
        assert [float(line["number"]) for line in printed] == near(logits[again, 0].numpy())
        return None
    probabilities = (logits.sigmoid() if thresholds else logits.softmax(dim=1)).numpy()
    assert [[float(line[f"p({name})"]) for name in names] for line in printed] == [
        near(probabilities[at]) for at in again
    ]
    if thresholds:
        expected = ["; ".join(itertools.compress(names, one)) for one in probabilities >= thresholds]
    else:
        expected = [names[at] for at in probabilities.argmax(axis=1)]
    assert [line["label"] for line in printed] == [expected[at] for at in again]
    return probabilities


BY_TEXT = {example[name]: example for example in texts.examples(EXAMPLES) for name in ("text", "other")}


def of_file(column):
    """Return what the file of the user has in a column for a text or pair."""

    def found(asked):
        example = BY_TEXT[asked[0]]
        assert asked == (example["text"], example["other"])[: len(asked)]
        return example[column]

    return found


def larger(asked):
    first, second = (BY_TEXT[text]["rating"] for text in asked)
    return "first" if first > second else "second"


def right_choice(asked):
    example = BY_TEXT[asked[0]]
    return "right" if asked[0] == example[{"wet": "text", "dry": "other"}[example["weather"]]] else "wrong"


def classes(actual_of, scores, predicted_of=None):
    """Judge the answers of one class for each text; `scores` are functions of actual and predicted names, and texts."""

    def judge(names, logits, probabilities, asked, scored):
        actual = [actual_of(one) for one in asked]
        predicted = [names[at] for at in probabilities.argmax(axis=1)]
        if predicted_of is not None:
            predicted = predicted_of(logits, asked)
        assert [line["actual"] for line in scored] == actual
        assert [line["predicted"] for line in scored] == predicted
        confidence = [one[names.index(name)] for one, name in zip(probabilities, predicted, strict=True)]
        assert [float(line["confidence"]) for line in scored] == pytest.approx(confidence, abs=0.00501)
        found = report(artifacts.EVALUATE_METRICS)
        losses = [-np.log(one[names.index(name)]) for one, name in zip(probabilities, actual, strict=True)]
        assert found["loss"] == near(np.mean(losses))
        for name, score in scores.items():
            assert found[name] == near(score(actual, predicted, asked)), name

    return judge


def several(names, logits, probabilities, asked, scored):
    thresholds = report(artifacts.ADAPTER / "task.json")["thresholds"]
    applies, tags = probabilities >= thresholds, of_file("tags")
    truth = np.array([[name in tags(one).split("|") for name in names] for one in asked])
    for column, expected in (("actual", truth), ("predicted", applies)):
        assert [line[column] for line in scored] == ["; ".join(itertools.compress(names, one)) for one in expected]
    found = report(artifacts.EVALUATE_METRICS)
    loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(truth).double())
    assert found["loss"] == near(float(loss))
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == near(metrics.f1_score(truth, applies, average=average))


def number(names, logits, probabilities, asked, scored):
    actual, predicted = [of_file("rating")(one) for one in asked], logits[:, 0].numpy()
    assert [float(line["actual"]) for line in scored] == pytest.approx(actual)
    assert [float(line["predicted"]) for line in scored] == pytest.approx(
        predicted, abs=0.000501
    )  # of a scale below 10
    found = report(artifacts.EVALUATE_METRICS)
    assert found["loss"] == near(metrics.mean_squared_error(actual, predicted))
    assert found["pearson"] == near(stats.pearsonr(actual, predicted).statistic)
    assert found["spearman"] == near(stats.spearmanr(actual, predicted).statistic)


def chosen(logits, asked):
    """Return whether each text is the likelier one of the two of its row."""
    lead = dict(zip(asked, (logits[:, 1] - logits[:, 0]).tolist(), strict=True))
    best = {max(lead[example["text"],], lead[example["other"],]) for example in (BY_TEXT[one[0]] for one in asked)}
    return ["right" if lead[one] in best else "wrong" for one in asked]


def accuracy(actual, predicted, asked):
    return metrics.accuracy_score(actual, predicted)


def f1_of(name):
    return lambda actual, predicted, asked: metrics.f1_score(actual, predicted, pos_label=name)


def macro_f1(actual, predicted, asked):
    return metrics.f1_score(actual, predicted, average="macro")


def of_herds(actual, predicted, asked):
    """Return the share of herds of whose texts all are right."""
    is_right = pd.Series(np.array(actual) == np.array(predicted))
    return is_right.groupby([BY_TEXT[one[0]]["herd"] for one in asked]).all().mean()


def of_rows(actual, predicted, asked):
    """Return the share of rows whose right text is chosen."""
    return np.mean([one == other for one, other in zip(actual, predicted, strict=True) if one == "right"])


def matthews(actual, predicted, asked):
    return metrics.matthews_corrcoef(actual, predicted)


JUDGED = {
    "two": classes(of_file("weather"), {"accuracy": accuracy, "f1": f1_of("wet")}),
    "three": classes(of_file("size"), {"accuracy": accuracy, "macro_f1": macro_f1}),
    "pairs": classes(of_file("weather"), {"accuracy": accuracy, "f1": f1_of("dry"), "matthews_correlation": matthews}),
    "multi_label": several,
    "number": number,
    "comparisons": classes(larger, {"accuracy": accuracy, "f1": f1_of("second")}),
    "grouped": classes(of_file("weather"), {"exact_match": of_herds, "macro_f1": macro_f1}),
    "choices": classes(right_choice, {"accuracy": of_rows}, chosen),
}
