"""What is scored, predicted, exported and served is what plain transformers says of each text alone.

The model is loaded in float32 from its checkpoint, the adapter from artifacts/adapter, and the labels from the user's
file. Scores are those of scikit-learn and scipy.
"""

import itertools
import re
import shutil
from collections import defaultdict
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.metrics import log_loss
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lsr import AdapterBank
from tests import reference, rows, tiny
from tests.helpers import printed, read_json, read_table, refused, write

ADAPTER = Path("artifacts/adapter")
LENGTH = 24  # tokens, which some texts exceed
CUT = {"truncation": True, "max_length": LENGTH}
PADDED = CUT | {"padding": True, "return_attention_mask": True, "return_tensors": "pt"}
ROUNDING = 2e-5  # of float32, printed with six digits
CLOSE = {"abs": ROUNDING}
ODD = ("x", "the cat <|endoftext|> sleeps <pad> at night", "the owl sleeps in the barn " * 6)
ADAPTERS = {
    "lora": {"adapter": "lora", "lora": {"lora_dropout": 0.1}},
    "sums": {"adapter": "lsr", "lsr": {"dropout": 0.1}},
    "shared": {
        "adapter": "lsr",
        "lsr": {"rank_shape": [3], "separation_rank": 1, "share": "layers", "train": "all", "init": "warm_start"}
        | {"init_examples": 16, "init_head_steps": 2},
    },
    "full": {"adapter": "full", "full": {"learning_rate": 0.002}},
}


class Case(NamedTuple):
    """A training; the architecture decides the dtype of the checkpoint and the padding side of the tokenizer."""

    architecture: str
    task: str
    adapter: str


CASES = [
    Case("bert", "pairs", "lora"),
    Case("roberta", "three", "shared"),
    Case("distilbert", "multi_label", "sums"),
    Case("modernbert", "number", "full"),
    Case("deberta-v2", "two", "shared"),
    Case("xlnet", "three", "lora"),
    Case("t5", "pairs", "sums"),
    Case("gpt2", "number", "sums"),
    Case("llama", "tenants", "lora"),
    Case("qwen2", "multi_label", "shared"),
    Case("qwen3", "two", "full"),
    Case("gemma", "tenants", "sums"),
]


class Known(NamedTuple):
    """A trained workspace, and what plain transformers says of texts."""

    folder: Path
    task: dict  # of task.json
    texts: list[tuple[str, ...]]
    rows: list[dict]  # of predictions.csv, for the first of the texts
    tenants: list[str]
    logits: np.ndarray  # (texts, outputs)
    answers: np.ndarray  # the same as probabilities, or as numbers


@pytest.fixture(scope="module")
def know(trained):
    """A function that trains a case once, and asks plain transformers."""
    return cache(lambda case: find_out(case, trained))


def find_out(case, trained):
    options = {"evaluate": {"regression_baseline": "none"}}
    if case.task == "tenants":
        options["tenants"] = {"precision": "float32"}
    folder = trained(case.task, case.architecture, **ADAPTERS[case.adapter], **options)
    task = read_json(folder / ADAPTER / "task.json")
    scored = read_table(folder / "reports/evaluate/predictions.csv")
    texts = [text_of(row) for row in scored]
    if case.task != "pairs":
        texts += [(odd,) for odd in ODD]
    base = folder / f"models/{case.architecture}"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = reference.load_alone(base, folder / ADAPTER, count_outputs(task))
    logits = reference.logits_alone(model, tokenizer, texts, LENGTH).numpy()
    assert np.ptp(logits, axis=0).max() > 100 * ROUNDING  # the texts do not look alike
    first = next(iter(task.get("tenants") or [""]))
    tenants = [row.get("tenant", "") for row in scored] + [first] * (len(texts) - len(scored))
    if "tenants" in task:
        logits = outputs_of(task, tenants, logits)
    answers = logits if case.task == "number" else reference.probabilities_of(logits, task["kind"])
    return Known(folder, task, texts, scored, tenants, logits, answers)


def text_of(row):
    return tuple(row[name] for name in ("text", "text_pair") if name in row)


def count_outputs(task):
    if "tenants" in task:
        return sum(len(names) for names in task["tenants"].values())
    return len(task["labels"] or [0])


def outputs_of(task, tenants, logits):
    """Return for each text the outputs of its tenant; all tenants have as many."""
    first = 0
    columns = {}
    for tenant, names in task["tenants"].items():
        columns[tenant] = range(first, first + len(names))
        first += len(names)
    return np.stack([logits[number, columns[tenant]] for number, tenant in enumerate(tenants)])


def names_of(known, number):
    """Return the labels that a text may have."""
    return known.task["labels"] or known.task["tenants"][known.tenants[number]]


def likeliest(known, number):
    """Return the label of a text by plain transformers, as files have it."""
    names = names_of(known, number)
    answers = known.answers[number]
    if known.task["kind"] == "multi_label":
        applies = answers >= known.task["thresholds"]
        return "; ".join(itertools.compress(names, applies))
    return names[answers.argmax()]


# Scores of the stage evaluate.

BY_TEXT = {example["text"]: example for example in rows.examples()}
COLUMNS = {"two": "weather", "three": "size", "pairs": "weather", "tenants": "answer", "number": "rating"}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_table_of_the_test_split_has_the_labels_of_the_file_and_the_likeliest_answers(case, know):
    known = know(case)
    for number, row in enumerate(known.rows):
        example = BY_TEXT[row["text"]]
        if case.task == "number":
            assert float(row["actual"]) == pytest.approx(example["rating"])
            assert float(row["predicted"]) == pytest.approx(known.answers[number, 0], abs=0.000501)
            continue
        expected = likeliest(known, number)
        assert row["predicted"] == expected
        if case.task == "multi_label":
            assert row["actual"] == "; ".join(name for name in known.task["labels"] if name in tags_of(example))
        else:
            assert row["actual"] == example[COLUMNS[case.task]]
            assert float(row["confidence"]) == pytest.approx(known.answers[number].max(), abs=0.00501)
        if case.task == "pairs":
            assert row["text_pair"] == example["other"]
        assert row.get("tenant", example["shop"]) == example["shop"]


def tags_of(example):
    return example["tags"].split("|")


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_scores_and_loss_of_the_test_split_are_those_of_scikit_learn_and_scipy(case, know):
    known = know(case)
    found = read_json(known.folder / "reports/evaluate/metrics.json")
    parts = split_by_tenant(known)
    names = rows.ENTRIES[case.task]["metrics"]
    assert found["score"] == found[names[0]]
    assert found["details"][0]["examples"] == len(known.rows)
    for name in names:
        scores = [reference.SCORES[name](*decide(known, case, part)) for part in parts]
        assert found[name] == pytest.approx(np.mean(scores), abs=1e-4), name
    losses = [mean_loss(known, case, part) for part in parts]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def split_by_tenant(known):
    """Return the numbers of the examples of each tenant, or of all."""
    tenants = np.array(known.tenants[: len(known.rows)])
    return [np.flatnonzero(tenants == tenant) for tenant in np.unique(tenants)]


def decide(known, case, part):
    """Return actual and predicted labels of examples: numbers of classes, 0 and 1 of each label, or numbers."""
    actual = [actual_of(known, case, number) for number in part]
    answers = known.answers[part]
    if case.task == "number":
        return np.array(actual), answers[:, 0]
    if case.task == "multi_label":
        return np.array(actual), (answers >= known.task["thresholds"]).astype(int)
    return np.array(actual), answers.argmax(axis=1)


def actual_of(known, case, number):
    example = BY_TEXT[known.texts[number][0]]
    names = None if case.task == "number" else names_of(known, number)
    if case.task == "multi_label":
        return [int(name in tags_of(example)) for name in names]
    value = example[COLUMNS[case.task]]
    return names.index(value) if names else value


def mean_loss(known, case, part):
    actual, _ = decide(known, case, part)
    answers = known.answers[part]
    if case.task == "number":
        return np.mean((answers[:, 0] - actual) ** 2)
    if case.task == "multi_label":
        return np.mean([log_loss(*column, labels=[0, 1]) for column in zip(actual.T, answers.T, strict=True)])
    return log_loss(actual, answers, labels=range(answers.shape[1]))


def test_a_group_of_examples_is_right_if_all_of_them_are(trained):
    entry = rows.ENTRIES["two"] | {"group": ["herd"], "metrics": ["exact_match", "macro_f1"]}
    examples = [row | {"herd": row["at"] // 3} for row in rows.examples()]
    folder = trained("grouped", entries={"grouped": entry}, rows=examples, train={"epochs": 6})
    scored = read_table(folder / "reports/evaluate/predictions.csv")
    herds = {row["text"]: row["herd"] for row in examples}
    are_right = defaultdict(list)
    for row in scored:
        are_right[herds[row["text"]]].append(row["actual"] == row["predicted"])
    found = read_json(folder / "reports/evaluate/metrics.json")
    assert found["exact_match"] == pytest.approx(np.mean([all(herd) for herd in are_right.values()]), abs=1e-6)
    assert 0 < found["exact_match"] < 1


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_parameters_and_bytes_are_those_of_the_files(case, know):
    known = know(case)
    found = read_json(known.folder / "reports/evaluate/metrics.json")
    details = found["details"][0]
    path = known.folder / ADAPTER / "adapter_model.safetensors"
    stored = sum(tensor.numel() for tensor in reference.tensors_of(path.parent).values())
    assert details["adapter_bytes"] == path.stat().st_size
    assert details["adapter_stored"] + details["head_parameters"] == stored
    base = AutoModelForSequenceClassification.from_pretrained(
        known.folder / f"models/{case.architecture}", num_labels=count_outputs(known.task)
    )
    whole = sum(parameter.numel() for parameter in base.parameters())
    assert details["base_parameters"] + details["head_parameters"] == whole
    if case.adapter == "full":
        assert found["adapter_trained"] == details["base_parameters"]


@pytest.mark.parametrize("case", CASES[:5], ids="-".join)
def test_the_card_has_the_scores_of_the_test_split(case, know):
    known = know(case)
    found = read_json(known.folder / "reports/evaluate/metrics.json")
    card = ModelCard.load(known.folder / "artifacts/card.md")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {name: found[name] for name in rows.ENTRIES[case.task]["metrics"]}
    assert scores == pytest.approx(expected, abs=1e-6)
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}


# The command that predicts.


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_predict_answers_to_a_file_and_to_one_text_as_plain_transformers_does(case, know, tmp_path):
    known = know(case)
    columns = ("text", "text_pair")[: len(known.texts[0])]
    asked = [dict(zip(columns, text, strict=True)) for text in known.texts]
    for row, tenant in zip(asked, known.tenants, strict=True):
        row["shop"] = tenant
    file = write(tmp_path / "asked.csv", asked)
    one = ["--tenant", known.tenants[0]] if known.tenants[0] else []
    with chdir(known.folder):
        of_file = printed("pipeline.predict", "--file", file, "--column", *columns, "--batch-size", 7)
        alone = printed("pipeline.predict", *known.texts[0], *one)
    answers = read_table(of_file)
    assert len(answers) == len(known.texts)
    for number, row in enumerate(answers):
        check_printed(known, number, row)
    for row in read_table(alone):
        check_printed(known, 0, row)


def check_printed(known, number, row):
    answers = known.answers[number]
    if known.task["kind"] == "number":
        assert float(row["number"]) == pytest.approx(answers[0], **CLOSE)
        return
    assert row["label"] == likeliest(known, number)
    if "p" in row:  # the columns of a file cannot name the labels of all tenants
        assert float(row["p"]) == pytest.approx(answers.max(), **CLOSE)
        return
    found = [float(row[f"p({name})"]) for name in names_of(known, number)]
    assert found == pytest.approx(answers, **CLOSE)


def test_an_adapter_is_asked_by_the_tokenizer_in_its_folder(know, tmp_path):
    known = know(Case("deberta-v2", "two", "shared"))
    folder = shutil.copytree(known.folder / ADAPTER, tmp_path / "adapter")
    base = known.folder / "models/deberta-v2"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(folder)
    texts = ["THE CAT number 7", "the owl"]
    with chdir(known.folder):
        answers = read_table(printed("pipeline.predict", "--adapter", folder, *texts))
    model = reference.load_alone(base, folder, 2)
    logits = reference.logits_alone(model, tokenizer, [(text,) for text in texts], LENGTH)
    probabilities = logits.softmax(dim=1)
    assert [float(row["p(wet)"]) for row in answers] == pytest.approx(probabilities[:, 1].tolist(), **CLOSE)


# Where the adapter goes. Each reader returns answers like Known.answers, in batches.


def read_merged(known, case, folder):
    export(known, "merged", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    if known.task["labels"]:
        assert model.config.id2label == dict(enumerate(known.task["labels"]))
    return ask_model(known, model, folder)


def export(known, form, folder):
    with chdir(known.folder):
        printed("lsr", "export", ADAPTER, "--to", form, "-o", folder)


def ask_model(known, model, folder):
    """Ask a model about all texts at once by the tokenizer of a folder."""
    batch = AutoTokenizer.from_pretrained(folder)(*columns_of(known), **PADDED)
    with torch.no_grad():
        logits = model.eval()(**batch).logits.double().numpy()
    return answers_of(known, logits)


def columns_of(known):
    return [list(column) for column in zip(*known.texts, strict=True)]


def answers_of(known, logits):
    if "tenants" in known.task and logits.shape[1] > known.logits.shape[1]:
        logits = outputs_of(known.task, known.tenants, logits)
    return logits if known.task["kind"] == "number" else reference.probabilities_of(logits, known.task["kind"])


def read_lora(known, case, folder):
    """Export as a LoRA, and ask as its card says: without lsr, and in the dtype of the checkpoint."""
    export(known, "lora", folder)
    assert "import lsr" not in (folder / "README.md").read_text()
    return ask_by_card(known, case, folder)


def read_card(known, case, folder):
    shutil.copytree(known.folder / ADAPTER, folder)
    return ask_by_card(known, case, folder)


def ask_by_card(known, case, folder):
    """Run the snippet of a card where it lies, beside the base model, and ask all texts as it asks one."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    (folder / "models").symlink_to(known.folder / "models")
    names = {}
    with chdir(folder):
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102 what the card says is asked for
    if "tenants" in known.task:
        return ask_bank(known, names["bank"], known.tenants, names["tokenizer"])
    inputs = [dict(zip(("text", "text_pair"), text, strict=False)) for text in known.texts]
    # Transformers' pipeline cannot batch for XLNet, nor with a tokenizer that makes no attention mask.
    size = 1 if case.architecture in ("xlnet", "modernbert") else 8
    scores = names["ask"](inputs, top_k=None, batch_size=size, **CUT)
    if known.task["kind"] == "number":
        return [[score["score"]] for [score] in scores]
    by_label = [{score["label"]: score["score"] for score in of_text} for of_text in scores]
    return [[found[name] for name in known.task["labels"]] for found in by_label]


def read_bank(known, case, folder):
    """Make a bank by the command, or from an adapter of tenants, which is one already."""
    with chdir(known.folder):
        printed("lsr", "bank", "--from", ADAPTER, "-o", folder)
        bank = AdapterBank.load(None, folder)
    tokenizer = AutoTokenizer.from_pretrained(known.folder / f"models/{case.architecture}")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    names = known.tenants if "tenants" in known.task else ["adapter"] * len(known.texts)
    return ask_bank(known, bank, names, tokenizer)


@torch.no_grad()
def ask_bank(known, bank, names, tokenizer):
    batch = tokenizer(*columns_of(known), **PADDED)
    logits = bank(**batch, adapter_names=names).logits.double().numpy()
    return answers_of(known, logits[:, : known.logits.shape[1]])


def read_onnx(known, case, folder):
    export(known, "onnx", folder)
    session = onnxruntime.InferenceSession(folder / "onnx/model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(*columns_of(known), **PADDED | {"return_tensors": "np"})
    wanted = {given.name: batch[given.name] for given in session.get_inputs()}
    [logits] = session.run(["logits"], wanted)
    return answers_of(known, logits.astype(float))


def test_a_bank_rejects_a_model_whose_layers_see_no_row_for_each_text(know, tmp_path):
    known = know(Case("xlnet", "three", "lora"))
    with chdir(known.folder):
        refused("lsr", "bank", "--from", ADAPTER, "-o", tmp_path / "bank", says="layer")


LSR = ("sums", "shared")
READERS = {
    "merged": (read_merged, CASES),
    "card": (read_card, CASES),
    "lora": (read_lora, [case for case in CASES if case.adapter in LSR and case.task != "tenants"]),
    "bank": (read_bank, [case for case in CASES if case.adapter != "full" and case.architecture != "xlnet"]),
    "onnx": (read_onnx, [case for case in CASES if case.architecture in ("roberta", "distilbert")]),
}
READ = [(reader, case) for reader, (_, cases) in READERS.items() for case in cases]


@pytest.mark.parametrize(
    ("reader", "case"), READ, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_answers_are_those_of_plain_transformers_alone(reader, case, know, tmp_path):
    known = know(case)
    read, _ = READERS[reader]
    found = np.array(read(known, case, tmp_path / "adapter"))
    is_rounded = reader == "lora" and tiny.ARCHITECTURES[case.architecture].dtype == torch.bfloat16
    np.testing.assert_allclose(found, known.answers, atol=0.005 if is_rounded else ROUNDING)
