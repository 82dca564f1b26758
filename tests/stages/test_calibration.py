"""Probabilities of every reader are those of the trained head's logits over the temperatures that scipy finds.

The head is kept before its last layer is divided; PEFT and plain transformers say its logits, of each text alone.
"""

import json

import numpy as np
import pytest
from peft import PeftModel
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification

from lsr.__main__ import main as lsr
from lsr.serve.bank import AdapterBank
from lsr.serve.passes import BatchRunner
from lsr_server.answers import encode_response
from pipeline import score
from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.methods import heads
from pipeline.predict.__main__ import main as predict
from tests import kit, workspace
from tests.kit import said, table, write
from tests.pipeline.tasks.animals import NAMES, animal
from tests.references import plain
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run
from tests.stages.shops import LABELS

LENGTH = 24
FILES = {"source": {"kind": "files", "files": {"train": "animals.csv"}}, "text": ["text"]}
CUT = {"split": {"validation": 0.4, "test": 0.1}}
TUNED = {"column": "what", "names": ["dog", "cat"], "tune_threshold": "f1"}
ROWS = {
    "tuned": FILES | CUT | {"label": TUNED, "metrics": ["f1"]},
    "one": FILES | CUT | {"label": {"column": "what", "names": ["dog", "cat"]}, "metrics": ["accuracy"]},
    "many": FILES
    | CUT
    | {"label": {"multi_label": "tags", "separator": "|", "names": [*NAMES]}, "metrics": ["micro_f1"]},
    "shops": workspace.ROWS["shops"] | {"split": {"validation": 0.4, "test": 0.1}},
}
LIMITS = np.log([0.1, 10])  # of a temperature
TRAINING = {"epochs": 8, "batch_size": 16, "head_learning_rate": 0.02}


def noisy_animals(count):
    """Rows of animals of which a fifth says something else of each label, so that no temperature is at a limit."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        text, tags = animal(number)
        flips = random.random(len(NAMES)) < 0.2
        kept = [name for name, is_flipped in zip(NAMES, flips, strict=True) if (name in tags) != is_flipped]
        rows.append({"text": text, "tags": "|".join(kept), "what": "cat" if "cat" in kept else "dog"})
    return rows


def shop_rows(count):
    """Rows of tenants, whose labels are about the same animals."""
    rows = []
    for name, own in LABELS.items():
        for number, row in enumerate(noisy_animals(count)):
            place = (row["what"] == "cat") + (len(own) > 2 and "wet" in row["tags"])
            rows.append({"shop": name, "text": f"{row['text']} {name} {number}", "label": own[place]})
    return rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = workspace.make(
        tmp_path_factory.mktemp("calibration"),
        ROWS,
        tokenize={"max_length": LENGTH},
        train=TRAINING,
        lsr={
            "init": "warm_start",
            "init_examples": 64,
            "init_head_steps": 20,
            "init_epochs": 1,
            "learning_rate": 0.05,
        },
    )
    write(folder / "animals.csv", noisy_animals(300))
    write(folder / "data/shops.csv", shop_rows(80))
    return folder


@pytest.fixture
def go(world, monkeypatch):
    """A function that trains, and returns the adapter in plain PEFT with the head that was trained."""
    monkeypatch.chdir(world)
    real = heads.scale_head
    kept = {}

    def keeping(model, temperatures):
        layer = heads.last_layer_of(model, "classifier.out_proj")
        kept.update(weight=layer.weight.detach().clone(), bias=layer.bias.detach().clone())
        real(model, temperatures)

    def trained(data):
        precision = "float32" if data == "shops" else "8bit"
        workspace.change(data=data, tenants={"precision": precision})
        run(TOKENIZE, FACTORIZE)
        monkeypatch.setattr(heads, "scale_head", keeping)
        run(TRAIN)
        base = plain.base_model("tiny-roberta", num_labels=len(kept["weight"]))
        model = plain.adapted(base, artifacts.ADAPTER)
        head = model.classifier.out_proj
        head.weight.data = kept["weight"]
        head.bias.data = kept["bias"]
        return model

    return trained


def texts_of(split):
    return [*tokens.load_texts(split)["text"]]


def logits_of(model, texts):
    return plain.logits_alone(model, "tiny-roberta", [(text,) for text in texts], LENGTH).numpy()


def best_temperature(logits, classes):
    """Return the minimum of the cross-entropy in which one more text has each class in equal shares."""
    count, width = logits.shape
    targets = (count * np.eye(width)[classes] + 1 / width) / (count + 1)

    def cross_entropy(log):
        return -(targets * np.log(softmax(logits / np.exp(log), axis=1))).sum()

    return np.exp(minimize_scalar(cross_entropy, bounds=LIMITS, method="bounded", options={"xatol": 1e-9}).x)


def of_label(logits):
    return np.stack([np.zeros(len(logits)), logits], axis=1)


def printed(texts, names, *words):
    """Return the probabilities that `predict` prints."""
    write("asked.csv", [{"text": text} for text in texts])
    rows = table(said(predict, "--file", "asked.csv", "--column", "text", *words))
    return np.array([[float(row[f"p({name})"]) for name in names] for row in rows])


def by_bank(texts, names):
    said(lsr, "bank", "--from", str(artifacts.ADAPTER), "--base", "tiny-roberta", "-o", "bank", "--force")
    bank = AdapterBank.load("tiny-roberta", "bank")
    passes = BatchRunner(bank, plain.AutoTokenizer.from_pretrained("tiny-roberta"), LENGTH, 1)
    answers = passes.answers(passes.rows("adapter", bank.versions["adapter"], texts))
    return np.array([[answer.probabilities[name] for name in names] for answer in answers])


def check_readers(texts, names, expected, share):
    """Hold predict, exports and a bank to the expected probabilities, which `share` makes of logits."""
    base = ("--base", "tiny-roberta")
    assert printed(texts, names, *base) == pytest.approx(expected, abs=2e-6)  # rounded to six digits
    assert by_bank(texts, names) == pytest.approx(expected, abs=1e-6)
    for form in ("lora", "merged"):
        said(lsr, "export", str(artifacts.ADAPTER), "--to", form, "-o", form, "--force", *base)
    lora = PeftModel.from_pretrained(plain.base_model("tiny-roberta", num_labels=len(names)), "lora").eval()
    assert share(logits_of(lora, texts)) == pytest.approx(expected, abs=1e-6)
    merged = AutoModelForSequenceClassification.from_pretrained("merged").eval()
    assert share(logits_of(merged, texts)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.nightly
def test_one_label_has_the_temperature_that_scipy_finds_in_every_reader(go):
    model = go("one")
    temperatures = report(artifacts.ADAPTER / "task.json")["temperatures"]
    validation = logits_of(model, texts_of("validation"))
    best = best_temperature(validation, tokens.labels_of(tokens.load_tokens("validation")))
    assert temperatures == [pytest.approx(best, rel=1e-3)]
    assert abs(np.log(best)) > 0.05
    texts = texts_of("test")
    expected = softmax(logits_of(model, texts) / temperatures, axis=1)
    check_readers(texts, ("dog", "cat"), expected, lambda values: softmax(values, axis=1))
    to_graph = ("--to", "onnx", "-o", "graph", "--base", "tiny-roberta")
    assert "threshold" not in said(lsr, "export", str(artifacts.ADAPTER), *to_graph)
    by_graph = printed(texts, ("dog", "cat"), "--adapter", "graph", "--runtime", "onnx")
    assert by_graph == pytest.approx(expected, abs=2e-6)


def test_each_of_several_labels_has_its_own(go):
    model = go("many")
    task = report(artifacts.ADAPTER / "task.json")
    validation = logits_of(model, texts_of("validation"))
    labels = tokens.labels_of(tokens.load_tokens("validation")).astype(int)
    best = [best_temperature(of_label(column), applies) for column, applies in zip(validation.T, labels.T, strict=True)]
    assert task["temperatures"] == pytest.approx(best, rel=1e-3)
    assert len(set(task["temperatures"])) > 1
    texts = texts_of("test")
    check_readers(texts, NAMES, expit(logits_of(model, texts) / task["temperatures"]), expit)


def test_tenants_with_few_texts_share_one_and_the_bank_answers_with_it(go):
    model = go("shops")
    task = report(artifacts.ADAPTER / "task.json")
    (temperature,) = set(task["temperatures"])
    assert len(task["temperatures"]) == len(LABELS)
    split = tokens.load_tokens("validation")
    logits = logits_of(model, texts_of("validation"))
    last = np.cumsum([len(own) for own in LABELS.values()])
    parts = []
    for number, end in enumerate(last):
        own = tokens.groups_of(split) == number
        start = end - len([*LABELS.values()][number])
        parts.append((logits[own, start:end], tokens.labels_of(split)[own]))

    def cross_entropy(log):
        count = sum(len(classes) for _, classes in parts)
        total = 0.0
        for own, classes in parts:
            targets = (count * np.eye(own.shape[1])[classes] + 1 / own.shape[1]) / (count + 1)
            total -= (targets * np.log(softmax(own / np.exp(log), axis=1))).sum()
        return total

    assert temperature == pytest.approx(np.exp(minimize_scalar(cross_entropy, bounds=LIMITS).x), rel=1e-3)
    bank = AdapterBank.load("tiny-roberta", artifacts.BANK)
    assert [task_info["temperatures"] for task_info in bank.task_infos.values()] == [[temperature]] * 3
    text = texts_of("test")[0]
    expected = softmax(logits_of(model, [text])[0, : last[0]] / temperature)
    (row,) = table(said(predict, "--tenant", "acme", text, "--base", "tiny-roberta"))
    assert [float(row[f"p({name})"]) for name in LABELS["acme"]] == pytest.approx(expected, abs=2e-6)


def check_abstention(reported, probabilities):
    """Hold the confidence of answers, and what is left of them by a probability, to the probabilities of the answers.

    `asked.csv` has the texts.
    """
    assert [float(row["confidence"]) for row in reported] == pytest.approx(probabilities, abs=0.0051)
    is_right = np.array([row["actual"] == row["predicted"] for row in reported])
    for row in table(artifacts.EVALUATE_COVERAGE):
        is_answered = probabilities >= float(row["min_probability"]) - 1e-6
        assert float(row["coverage"]) == pytest.approx(is_answered.mean(), abs=1e-5)
        assert float(row["accuracy"]) == pytest.approx(is_right[is_answered].mean(), abs=1e-5)
    least = ("--min-probability", "0.5")
    answers = table(said(predict, "--file", "asked.csv", "--column", "text", "--base", "tiny-roberta", *least))
    assert [bool(row["label"]) for row in answers] == (probabilities >= 0.5).tolist()


def test_two_classes_have_the_threshold_that_scikit_learn_finds_best_in_every_reader(world, monkeypatch):
    monkeypatch.chdir(world)
    workspace.change(data="tuned", tenants={"precision": "8bit"})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    task = report(artifacts.ADAPTER / "task.json")
    adapted = plain.adapted(plain.base_model("tiny-roberta", num_labels=2), artifacts.ADAPTER)
    shares = softmax(logits_of(adapted, texts_of("validation")), axis=1)[:, 1]
    actual = tokens.labels_of(tokens.load_tokens("validation"))
    tried = np.arange(1, 100) / 100
    each = [f1_score(actual, shares >= threshold) for threshold in tried]
    best = tried[np.array(each) == max(each)]
    assert task["threshold"] == pytest.approx(best[(len(best) - 1) // 2])
    assert "thresholds" not in task
    kit.edit(artifacts.ADAPTER / "task.json", threshold=0.3)  # at which some answers are not the likeliest label
    texts = texts_of("test")
    seconds = softmax(logits_of(adapted, texts), axis=1)[:, 1]
    expected = ["cat" if share >= 0.3 else "dog" for share in seconds]
    assert expected != ["cat" if share >= 0.5 else "dog" for share in seconds]
    write("asked.csv", [{"text": text} for text in texts])
    rows = table(said(predict, "--file", "asked.csv", "--column", "text", "--base", "tiny-roberta"))
    assert [row["label"] for row in rows] == expected
    run(EVALUATE)
    reported = table(artifacts.EVALUATE_PREDICTIONS)
    assert [row["predicted"] for row in reported] == expected
    check_abstention(reported, np.where(seconds >= 0.3, seconds, 1 - seconds))
    for form in ("lora", "merged", "onnx"):
        words = ("--to", form, "-o", form, "--force", "--base", "tiny-roberta")
        assert "task.json: threshold 0.3: transformers" in said(lsr, "export", str(artifacts.ADAPTER), *words)
    said(lsr, "bank", "--from", str(artifacts.ADAPTER), "--base", "tiny-roberta", "-o", "bank", "--force")
    bank = AdapterBank.load("tiny-roberta", "bank")
    passes = BatchRunner(bank, plain.AutoTokenizer.from_pretrained("tiny-roberta"), LENGTH, 1)
    answers = passes.answers(passes.rows("adapter", bank.versions["adapter"], texts))
    assert [answer.label for answer in answers] == expected
    assert json.loads(encode_response("adapter", 0, answers))["answers"][0]["label"] == expected[0]
    labels = tokens.labels_of(tokens.load_tokens("test"))
    official = f1_score(labels, seconds >= 0.3)
    assert f"{official:.4f}" in said(score.main, "tuned", str(artifacts.ADAPTER), "--base", "tiny-roberta")
