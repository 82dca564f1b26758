"""Runs of all stages with held-out tenants, and what plain libraries need to score these tenants."""

import numpy as np
import torch
from datasets import Dataset
from sklearn.model_selection import cross_val_score
from transformers import AutoModel, AutoTokenizer

from lsr.__main__ import main as lsr
from lsr.serve.bank import AdapterBank
from pipeline.core import artifacts
from pipeline.tasks import label_curve
from tests import workspace
from tests.kit import write
from tests.references import plain
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, run_in

BASE = "tiny-roberta"
LENGTH = 24  # tokens
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10)


def rows_of(counts, column, label_of):
    """Return so many rows per tenant; `label_of` returns the label for a tenant and the number of the row."""
    pairs = workspace.sentences(60)
    rows = []
    for name, count in counts.items():
        for number in range(count):
            text = f"{pairs[number][number % 2]} {name}"
            rows.append({"shop": name, "text": text, column: label_of(name, number)})
    return rows


def run_stages(folder, entry, rows, **changes):
    """Make a workspace in which all stages have run, with heads of each tenant's own, whose mean is the group's."""
    made = workspace.make(
        folder,
        data="shops",
        adapter="lora",
        tenants={"shared_adapter": "trained", "head": "own", "precision": "float32"},
        **{"train": {"epochs": 2, "head_learning_rate": 0.01}, **changes},
    )
    write(made / "data/shops.csv", rows)
    write(made / "data/datasets.yaml", {"shops": entry})
    return run_in(made, TOKENIZE, FACTORIZE, TRAIN, EVALUATE)


def tokens(split):
    return Dataset.from_file(str(artifacts.tokens(split))).to_pandas()


def examples_of(name, held_out):
    """Return the texts and labels of one of the held-out tenants, in the order of their hashes."""
    apart = tokens("held_out")
    own = apart[apart["tenant"] == list(held_out).index(name)]
    return list(own["text"]), own["label"].to_numpy()


def draws(labels, name, count, most):
    """Yield the positions of the labeled and of the scored texts in each draw."""
    for draw in range(5):
        order = label_curve.order_texts(labels, name, draw)
        yield order[:count], order[most:]


def frozen_features(texts):
    """Return the mean of the last states of the plain base model for each text, (texts, width)."""
    encoder = AutoModel.from_pretrained(BASE, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    with torch.no_grad():
        encoded = [plain.encoded(tokenizer, [text], LENGTH) for text in texts]
        states = [encoder(**inputs).last_hidden_state[0].mean(0) for inputs in encoded]
    return torch.stack(states).double().numpy()


def fit_best(candidates, features, labels, folds, scoring):
    """Return the candidate with the best score by cross-validation, fitted to all."""
    gains = [cross_val_score(each, features, labels, cv=folds, scoring=scoring).mean() for each in candidates]
    return candidates[int(np.argmax(gains))].fit(features, labels)


def fit_bank(folder, name, texts, labels):
    """Return a bank with a tenant that `lsr bank --fit` has fitted to labeled texts."""
    few = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    folder.mkdir()
    file = write(folder / "few.csv", few)
    words = ["bank", "--from", "artifacts/bank", "-o", str(folder / "bank"), "--base", BASE]
    assert lsr([*words, "--fit", f"{name}={file}"]) == 0
    return AdapterBank.load(BASE, folder / "bank")
