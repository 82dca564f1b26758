"""`python -m pipeline.predict` answers a text alike in whichever form it comes, and keeps all else of a file.

That an answer is what plain transformers says of the text is proved elsewhere; here the texts as arguments are the
reference of all other forms.
"""

import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lsr import quantize_adapter
from tests import rows
from tests.helpers import edit, printed, read_json, read_table, refused, run, write

ADAPTER = Path("artifacts/adapter")
TEXTS = [row["text"] for row in rows.examples(12)]
PAIRS = [(row["text"], row["other"]) for row in rows.examples(4)]
TEMPLATE = {"template": rows.ENTRIES["two"] | {"text": ["{animal}, {at}: {text}"]}}


@pytest.fixture
def one(copied):
    """A folder with an adapter of single texts."""
    return copied()


@pytest.fixture
def pairs(copied):
    """A folder with an adapter of pairs."""
    return copied("pairs")


def answers(*words):
    """Return the rows that the command prints."""
    return read_table(printed("pipeline.predict", *words))


def ours(table):
    """Return the answers of rows, without their texts and other columns."""
    return [[row["p(dry)"], row["p(wet)"]] for row in table]


@pytest.fixture
def reference(one):
    """The answers to TEXTS as arguments."""
    return ours(answers(*TEXTS))


FILES = ["csv", "tsv", "jsonl", "json", "xlsx", "parquet"]


@pytest.mark.parametrize("ending", FILES)
def test_a_file_is_answered_as_its_texts_are_in_its_order_with_all_its_columns(one, reference, ending):
    table = [{"id": f"{at:03}", "text": text} for at, text in enumerate(TEXTS)]
    path = write(Path(f"in.{ending}"), table)
    found = answers("--file", path, "--batch-size", "5")
    assert ours(found) == reference
    assert [row["text"] for row in found] == TEXTS
    assert [row["id"] for row in found] == [row["id"] for row in table]
    assert ours(answers("--file", path, "--column", "text")) == reference


def test_a_separator_an_encoding_a_sheet_and_compression_make_no_difference(one, reference):
    table = pd.DataFrame({"text": TEXTS, "more": "ź; \t"})
    table.to_csv("a.CSV.gz", index=False, sep=";")
    table.to_csv("b.csv", index=False, encoding="iso8859_2")
    with pd.ExcelWriter("c.xlsx") as book:
        pd.DataFrame([{"about": "texts"}]).to_excel(book, sheet_name="About", index=False)
        table.to_excel(book, sheet_name="Texts", index=False)
    for words in (["a.CSV.gz"], ["b.csv", "--encoding", "iso8859_2"], ["c.xlsx", "--sheet", "Texts"]):
        found = answers("--file", *words)
        assert ours(found) == reference
        assert {row["more"] for row in found} == {"ź; \t"}


def test_the_only_column_and_a_key_of_an_object_are_texts(one, reference):
    write(Path("in.txt"), "\n".join(["any name", *TEXTS]))
    assert ours(answers("--file", "in.txt")) == reference
    write(Path("in.jsonl"), [{"review": {"text": text, "stars": 3}} for text in TEXTS])
    found = answers("--file", "in.jsonl", "--column", "review.text")
    assert ours(found) == reference
    assert {row["review.stars"] for row in found} == {"3"}


def test_standard_input_has_a_text_on_each_line(one, reference, monkeypatch):
    for content in ("\n".join(TEXTS), "\ufeff" + "\r\n".join(TEXTS) + "\r\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert ours(answers("-")) == reference
    for content, says in ((b"", "empty"), (b"a\xff\n", "utf-8")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        refused("pipeline.predict", says=says)


def test_pairs_are_two_arguments_a_line_with_a_tab_or_two_columns(pairs, monkeypatch):
    reference = answers(*[text for pair in PAIRS for text in pair])
    assert [(row["text"], row["text_pair"]) for row in reference] == PAIRS
    lines = "\n".join(map("\t".join, PAIRS))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert answers() == reference
    write(Path("in.csv"), [{"b": second, "other": second, "text": first} for first, second in PAIRS])
    assert ours(answers("--file", "in.csv")) == ours(reference)
    assert ours(answers("--file", "in.csv", "--column", "text", "b")) == ours(reference)
    refused("pipeline.predict", "alone", says="even")


def test_rows_are_composed_by_the_template_of_training_or_of_the_command(copied):
    copied("template", entries=TEMPLATE)
    table = rows.examples(9)
    reference = ours(answers(*["{animal}, {at}: {text}".format(**row) for row in table]))
    write(Path("in.csv"), table)
    assert ours(answers("--file", "in.csv")) == reference
    write(Path("other.csv"), [row | {"kind": row.pop("animal")} for row in table])
    assert ours(answers("--file", "other.csv", "--column", "{kind}, {at}: {text}")) == reference
    refused("pipeline.predict", "--file", "other.csv", says="animal")
    write(Path("empty.csv"), [table[0] | {"animal": ""}])
    refused("pipeline.predict", "--file", "empty.csv", says="row 1")


CELLS = st.text(st.sampled_from("a é☃\"',;\t\r\n")).map(lambda text: f"x{text}x")


@given(texts=st.lists(CELLS, min_size=1, max_size=5))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_in_an_answer_is_read_again_as_it_was(one, texts):
    write(Path("in.jsonl"), [{"text": text, "more": text[::-1]} for text in texts])
    Path("out.csv").unlink(missing_ok=True)
    assert printed("pipeline.predict", "--file", "in.jsonl", "--out", "out.csv") == ""
    found = pd.read_csv("out.csv", lineterminator="\n")
    assert found["text"].tolist() == texts
    assert found["more"].tolist() == [text[::-1] for text in texts]
    assert found["p(wet)"].between(0, 1).all()


def test_other_columns_keep_their_types_in_json_and_give_way_to_none_of_ours(one):
    values = {
        "n": 3,
        "label": "good",
        "small": 1e-12,
        "long": 0.12345678901234566,
        "large": 10**20,
        "list": [1e-12, None],
    }
    write(Path("in.jsonl"), [{"text": text, **values, "none": None} for text in TEXTS[:2]])
    lines = printed("pipeline.predict", "--file", "in.jsonl", "--json").splitlines()
    for line in lines:
        found = json.loads(line)
        assert list(found) == ["text", *values, "none", "predicted_label", "p(dry)", "p(wet)"]
        assert {name: found[name] for name in values} == values
        assert found["none"] is None
    pd.DataFrame({"text": TEXTS[:1], "day": [pd.Timestamp("2024-01-31")]}).to_parquet("in.parquet")
    (row,) = answers("--file", "in.parquet")
    assert row["day"] == "2024-01-31 00:00:00"
    assert json.loads(printed("pipeline.predict", "--file", "in.parquet", "--json"))["day"] == row["day"]


def test_a_file_is_written_by_its_extension_and_never_over_another_one(one):
    printed_rows = {name: printed("pipeline.predict", *TEXTS, *words) for name, words in OUT.items()}
    for name, content in printed_rows.items():
        assert printed("pipeline.predict", *TEXTS, "--out", name) == ""
        assert Path(name).read_text() == content
        refused("pipeline.predict", *TEXTS, "--out", name, says=name)


OUT = {"new/out.csv": [], "out.jsonl": ["--json"]}


def test_a_mistake_in_a_later_row_is_one_line_and_writes_nothing(one):
    for second, says in (({"text": None}, "row 2"), ("no object", "line 2"), ({"text": 3}, "row 2")):
        write(Path("in.jsonl"), [{"text": TEXTS[0]}, second])
        refused("pipeline.predict", "--file", "in.jsonl", "--out", "out.csv", says=says)
        assert not Path("out.csv").exists()


def test_a_long_text_is_cut_as_in_training_and_counted(one):
    long = " ".join(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained("models/bert")
    kept = tokenizer(long, truncation=True, max_length=24)["input_ids"]
    ended = run("pipeline.predict", long, tokenizer.decode(kept, skip_special_tokens=True))
    first, second = ours(read_table(ended.out))
    assert first == second
    assert "1 of 2" in ended.err


def test_answers_below_a_probability_are_left_out_and_counted(one):
    table = answers(*TEXTS)
    highest = [max(float(row["p(wet)"]), float(row["p(dry)"])) for row in table]
    least = sorted(highest)[6]
    ended = run("pipeline.predict", *TEXTS, "--min-probability", least, "--batch-size", "5")
    expected = [row | {"label": row["label"] if p >= least else ""} for row, p in zip(table, highest, strict=True)]
    assert read_table(ended.out) == expected
    assert f"{sum(p < least for p in highest)} of 12" in ended.err


def test_an_answer_that_is_not_finite_is_an_error_and_no_answer(one):
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    heads = {name: torch.full_like(value, 3e38) for name, value in tensors.items() if "classifier" in name}
    edit(ADAPTER / "adapter_model.safetensors", **heads)
    for command, words in (("predict", TEXTS), ("score", ["two", ADAPTER])):
        ended = run(f"pipeline.{command}", *words)
        assert (ended.status, ended.out) == (1, "")
        assert "row 1: the answer is not finite" in ended.err.splitlines()[-1]


def test_the_score_is_that_of_the_stage_and_that_of_a_smaller_adapter_beside_it(one):
    quantize_adapter(ADAPTER, "rounded", "8bit")
    _, trained, rounded = printed("pipeline.score", "two", ADAPTER, "rounded").splitlines()
    metrics = read_json(Path("reports/evaluate/metrics.json"))
    metrics |= metrics.pop("details")[0]
    name, size, accuracy, f1, interval, examples = trained.strip().split(" | ")
    assert name == str(ADAPTER)
    assert [accuracy, f1] == [f"{metrics[name]:.4f}" for name in ("accuracy", "f1")]
    assert interval == f"{metrics['accuracy_low']:.4f} to {metrics['accuracy_high']:.4f}"
    assert (size, examples) == (f"{metrics['adapter_bytes']:,}", str(metrics["examples"]))
    assert int(rounded.split(" | ")[1].replace(",", "")) < metrics["adapter_bytes"]
