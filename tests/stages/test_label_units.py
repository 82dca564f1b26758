"""Numbers in other units are learned as well as before: only the unit of what is predicted differs.

Predictions are those of plain transformers with PEFT or with dense matrices, which read an adapter without our code.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import root_mean_squared_error
from transformers import AutoTokenizer

from lsr.serve.bank import AdapterBank
from pipeline.core import artifacts
from pipeline.predict.__main__ import main as predict
from tests import architectures, workspace
from tests.kit import said, table, write
from tests.references import plain
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run_in

LENGTH = 24
MODEL = "models/encoder"
TRAINED = {"epochs": 10, "head_learning_rate": 0.01, "batch_size": 16}
FACTOR = 100_000.0
OFFSET = 350_000.0
ADAPTERS = {
    "lora": {"lora": {"learning_rate": 0.01}},
    "full": {"full": {"learning_rate": 0.001}},
    "head_only": {},
    "lsr": {"lsr": {"learning_rate": 0.01, "init": "warm_start", "init_examples": 40, "init_epochs": 1}},
    "gradient": {"adapter": "lsr", "lsr": {"learning_rate": 0.01, "init": "gradient", "init_examples": 40}},
}


LORA = {"adapter": "lora", **ADAPTERS["lora"]}


def make(folder, factor, offset, **changes):
    """A workspace with ratings in another unit."""
    row = dict(workspace.ROWS["ratings"])
    label = row["label"]
    row["label"] = label | {"low": label["low"] * factor + offset, "high": label["high"] * factor + offset}
    workspace.make(folder, {"ratings": row}, **{"data": "ratings", "model": MODEL, "train": TRAINED, **changes})
    architectures.save(folder / MODEL, "bert", initializer_range=0.2)  # so that texts have different features
    places = ("garden", "barn", "forest", "river")
    numbers = np.arange(150)
    texts = [f"the {number % 7} owls sleep in the {places[number % 4]} {number}" for number in numbers]
    ratings = numbers % 4 + numbers % 5 / 10
    table = pd.DataFrame({"sentence1": texts, "rating": ratings * factor + offset})
    table.to_csv(folder / "ratings.csv", index=False)
    return folder


def answers(folder, model=MODEL):
    """What the trained adapter answers to the texts of the data, in float64."""
    adapted = plain.adapted(plain.base_model(folder / model, num_labels=1), folder / artifacts.ADAPTER)
    texts = [[text] for text in pd.read_csv(folder / "ratings.csv")["sentence1"][:40]]
    return plain.logits_alone(adapted, folder / model, texts, LENGTH)[:, 0].numpy()


@pytest.mark.parametrize("name", ADAPTERS)
def test_ratings_as_prices_are_answered_by_the_prices_of_the_ratings(name, tmp_path):
    changes = {"adapter": name, **ADAPTERS[name]}
    ratings = run_in(make(tmp_path / "ratings", 1.0, 0.0, **changes), TOKENIZE, FACTORIZE, TRAIN)
    prices = run_in(make(tmp_path / "prices", FACTOR, OFFSET, **changes), TOKENIZE, FACTORIZE, TRAIN)
    expected = answers(ratings)
    assert expected.std() > 0.05
    np.testing.assert_allclose((answers(prices) - OFFSET) / FACTOR, expected, atol=0.05)


def test_before_training_the_mean_is_answered_and_after_it_errors_are_smaller(tmp_path, monkeypatch):
    folder = make(tmp_path / "prices", FACTOR, OFFSET, **LORA)
    monkeypatch.chdir(folder)
    run_in(folder, TOKENIZE, FACTORIZE)
    train = pd.DataFrame({"label": labels_of("train")})
    first = plain.adapted(plain.base_model(MODEL, num_labels=1), artifacts.INIT)
    texts = [[text] for text in pd.read_csv("ratings.csv")["sentence1"][:40]]
    begun = plain.logits_alone(first, MODEL, texts, LENGTH)[:, 0].numpy()
    deviation = train["label"].std(ddof=0)
    assert np.abs(begun - train["label"].mean()).max() < deviation
    run_in(folder, TRAIN, EVALUATE)
    metrics = report(artifacts.EVALUATE_METRICS)
    table = pd.read_csv(artifacts.EVALUATE_PREDICTIONS)
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(table["actual"], table["predicted"]), rel=1e-2)
    assert metrics["pearson"] == pytest.approx(pearsonr(table["actual"], table["predicted"]).statistic, abs=1e-2)
    assert metrics["rmse"] < metrics["rmse_baseline"]


def test_large_numbers_on_a_short_scale_keep_their_digits_in_files_and_answers(tmp_path, monkeypatch):
    folder = make(tmp_path / "late", 10.0, OFFSET, **LORA)  # 350,000 to 350,040, in tenths
    monkeypatch.chdir(folder)
    run_in(folder, TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    rows = pd.read_csv("ratings.csv")
    scored = pd.read_csv(artifacts.EVALUATE_PREDICTIONS)
    wanted = scored.merge(rows, left_on="text", right_on="sentence1")
    np.testing.assert_array_equal(wanted["actual"], wanted["rating"])
    assert scored["actual"].nunique() > 9  # with six digits, there would be as many as in whole numbers
    expected = answers(folder)
    told = table(said(predict, "--file", "ratings.csv", "--column", "sentence1"))
    found = np.array([float(row["number"]) for row in told])[:40]
    np.testing.assert_allclose(found, expected, atol=0.05)  # neighbors in float32 are 0.03 apart
    by_text = dict(zip(rows["sentence1"][:40], expected, strict=True))
    assert set(by_text) & set(scored["text"])
    for text, predicted in zip(scored["text"], scored["predicted"], strict=True):
        assert predicted == pytest.approx(by_text.get(text, predicted), abs=0.05)


def test_a_decoder_whose_head_has_no_bias_learns_in_any_unit(tmp_path):
    folders = []
    for factor in (1.0, 1000.0):
        folder = make(tmp_path / str(factor), factor, 0.0, **LORA, model="models/decoder")
        architectures.save(folder / "models/decoder", "llama")
        folders.append(run_in(folder, TOKENIZE, FACTORIZE, TRAIN))
    expected, other = (answers(folder, "models/decoder") for folder in folders)
    np.testing.assert_allclose(other / 1000.0, expected, atol=0.02)


def test_with_none_numbers_are_learned_in_their_own_units_by_the_loss_of_transformers(tmp_path):
    tokenize = {"standardize_labels": "none"}
    folder = make(tmp_path / "prices", FACTOR, OFFSET, **LORA, tokenize=tokenize)
    run_in(folder, TOKENIZE, FACTORIZE, TRAIN)
    assert not (folder / artifacts.TOKENS / "facts.json").exists()
    assert np.abs(answers(folder)).max() < OFFSET / 100  # a rate of .01 does not reach it


def test_tenants_and_their_group_answer_in_the_units_of_their_labels(tmp_path):
    answered = []
    for factor, offset in ((1.0, 0.0), (FACTOR, OFFSET)):
        folder = make(tmp_path / str(factor), factor, offset, **LORA, data="branches", tenants={"precision": "float32"})
        table = pd.read_csv(folder / "ratings.csv")
        table["branch"] = table.index % 3
        table["rating"] += table["branch"] * factor / 10  # a deviation of each
        table.to_csv(folder / "ratings.csv", index=False)
        row = workspace.read_yaml(folder / "pipeline/datasets.yaml")["ratings"] | {"tenant": "branch"}
        write(folder / "data/datasets.yaml", {"branches": row})
        run_in(folder, TOKENIZE, FACTORIZE, TRAIN)
        bank = AdapterBank.load(str(folder / MODEL), folder / artifacts.BANK)
        [group] = bank.groups
        adapted = plain.adapted(plain.base_model(folder / MODEL, num_labels=3), folder / artifacts.ADAPTER)
        texts = [[text] for text in table["sentence1"][:20]]
        of_tenants = plain.logits_alone(adapted, folder / MODEL, texts, LENGTH).numpy()
        tokenizer = AutoTokenizer.from_pretrained(folder / MODEL)
        with torch.no_grad():
            rows = [tokenizer(*text, return_tensors="pt") for text in texts]
            of_group = [bank(**row, adapter_names=[group]).logits[0, 0].item() for row in rows]
            of_bank = [bank(**row, adapter_names=["1"]).logits[0, 0].item() for row in rows]
        np.testing.assert_allclose(of_bank, of_tenants[:, 1], rtol=1e-4)
        answered.append((np.column_stack([of_tenants, of_group]) - offset) / factor)
    expected, answers_in_prices = answered
    assert expected.std(axis=0).min() > 0.05
    np.testing.assert_allclose(answers_in_prices, expected, atol=0.05)


def labels_of(split):
    from pipeline.data import tokens

    return torch.tensor(tokens.load_tokens(split)["label"][:]).numpy()
