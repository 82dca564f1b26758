"""`python -m pipeline.add` makes an entry of a file, with which the stage tokenize reads what pandas reads."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests import rows
from tests.helpers import change_params, printed, read_yaml, refused, run_stages, write

OWN = Path("data/datasets.yaml")
COUNT = 120
QUEUES = ["billing", "other", "technical"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return rows.make_workspace(tmp_path_factory.mktemp("add") / "made")


@pytest.fixture(autouse=True)
def here(made, tmp_path, monkeypatch):
    """A workspace as the working folder."""
    folder = tmp_path / "copy"
    monkeypatch.chdir(shutil.copytree(made, folder))


def text(number):
    return f"The printer of room {number} prints page {number % 7} twice"


def table_of(**columns):
    """Return COUNT rows of columns, each made of a function or of values in turn."""
    made = {}
    for name, values in columns.items():
        is_function = callable(values)
        made[name] = [values(at) if is_function else values[at % len(values)] for at in range(COUNT)]
    return pd.DataFrame(made)


def save(name, table):
    """Write a table into data/, and return its path."""
    return write(Path("data", name), table.to_dict("records"))


def add(path, *words):
    """Run the command; return the name of the new entry, the entry, and what is printed."""
    before = read_yaml(OWN) if OWN.exists() else {}
    shown = printed("pipeline.add", path, *words)
    (name,) = read_yaml(OWN).keys() - before.keys()
    return name, read_yaml(OWN)[name], shown


def tokenize(name):
    """Run the stage tokenize on an entry; return its splits."""
    change_params(Path(), data=name)
    run_stages(Path(), "tokenize")
    files = {split: Path(f"artifacts/tokens/{split}.arrow") for split in ("train", "validation", "test")}
    return {split: pa.ipc.open_stream(path.read_bytes()).read_pandas() for split, path in files.items()}


def labels_of(name):
    """Return the label that the stage tokenize reads of each text."""
    table = pd.concat(tokenize(name).values())
    label = table["label"].map(lambda value: value if isinstance(value, int | float) else tuple(value))
    return dict(zip(table["text"], label, strict=True))


def check_labels(name, texts, labels):
    """Check that all texts are read, and that equal labels, and no others, have equal numbers."""
    found = labels_of(name)
    expected = dict(zip(texts, map(str, labels), strict=True))
    assert found.keys() == expected.keys()
    pairs = {(found[one], expected[one]) for one in expected}
    assert len(pairs) == len({number for number, _ in pairs}) == len({label for _, label in pairs})


OF_MANY = ["macro_f1", "accuracy"]
OF_TWO = ["accuracy", "f1"]
TAGS = [["paper", "slow"], ["slow"], [], ["paper"], ["ink", "slow"]]
DECIDED = {  # the columns of a file, words of the command, and what is decided: text, label, metrics
    "tickets.csv": ({"id": int, "body": text, "queue": QUEUES}, [], ["body"], {"names": QUEUES}, OF_MANY),
    "book.xlsx": ({"body": text, "queue": QUEUES}, [], ["body"], {"names": QUEUES}, OF_MANY),
    "stars.parquet": ({"text": text, "n": [1, 2, 3, 4, 5]}, [], ["text"], {"names": list("12345")}, OF_MANY),
    "spam.jsonl": (
        {"review": text, "spam": [True, False, False]},
        ["--label", "spam"],
        ["review"],
        {"names": ["false", "true"], "positive": "true"},
        ["macro_f1", "f1", "accuracy"],
    ),
    "questions.tsv": (
        {"question": text, "answer": lambda at: text(COUNT + at), "label": [0, 1]},
        [],
        ["question", "answer"],
        {"names": ["0", "1"], "positive": "1"},
        OF_TWO,
    ),
    "survey.csv": (
        {"What do you think?": text, "kind of": ["Credit card or loan", "Debt", "Old account"]},
        ["--label", "kind of"],
        ["What do you think?"],
        {"names": ["Credit card or loan", "Debt", "Old account"]},
        OF_MANY,
    ),
    "commas.csv": (
        {"text": text, "area": ["Home, kitchen", "Home, garden", "Sport"]},
        [],
        ["text"],
        {"names": ["Home, garden", "Home, kitchen", "Sport"]},
        OF_MANY,
    ),
}


@pytest.mark.parametrize("name", DECIDED)
def test_columns_classes_and_metrics_are_decided_from_the_file(name):
    columns, words, texts, label, metrics = DECIDED[name]
    table = table_of(**columns)
    path = save(name, table)
    added, entry, shown = add(path, *words)
    assert entry["source"]["files"] == {"train": str(path)}
    assert entry["text"] == texts
    assert entry["label"].items() >= label.items()
    assert entry["metrics"] == metrics
    assert entry["split"] == {"validation": 0.1, "test": 0.2}
    assert f"data={added} " in shown
    check_labels(added, table[texts[0]], table[entry["label"]["column"]])


def test_numbers_lists_completions_and_messages_are_other_kinds_of_labels():
    path = save("ratings.jsonl", table_of(review=text, stars=lambda at: at / 30))
    name, entry, _ = add(path)
    assert (entry["label"]["low"], entry["label"]["high"], entry["metrics"][0]) == (0, 119 / 30, "pearson")
    assert labels_of(name) == {text(at): at / 30 for at in range(COUNT)}
    path = save("tags.jsonl", table_of(text=text, tags=TAGS))
    name, entry, _ = add(path)
    assert entry["label"]["names"] == ["ink", "paper", "slow"]
    expected = [tuple(int(tag in tags) for tag in entry["label"]["names"]) for tags in TAGS]
    assert labels_of(name) == {text(at): expected[at % 5] for at in range(COUNT)}
    path = save("asked.jsonl", table_of(prompt=lambda at: f"Where is {at}?", completion=text))
    assert add(path)[1]["label"] == {"completion": "completion"}
    roles = ("user", "assistant")
    table = table_of(messages=lambda at: [{"role": role, "content": text(at)} for role in roles], prompt=["no"])
    assert add(save("talks.jsonl", table))[1]["label"] == {"messages": "messages"}


SEPARATED = [
    ("a.csv", {"sep": ";"}),
    ("a.csv", {"sep": "\t"}),
    ("a.csv.gz", {"sep": "|"}),
    ("a.csv", {"sep": ",", "quoting": 1}),
    ("a.tsv", {"sep": "\t"}),
]


@pytest.mark.parametrize(("file", "options"), SEPARATED, ids=str)
def test_a_file_is_read_with_the_separator_that_it_has(file, options):
    table = table_of(text=lambda at: f'{text(at)}; "or", a|tab\tor\n"tea"', label=QUEUES)
    path = Path("data", file)
    table.to_csv(path, index=False, **options)
    name, _, _ = add(path)
    check_labels(name, table["text"], table["label"])


def test_a_tsv_file_without_quotes_keeps_them_in_its_texts():
    table = table_of(text=lambda at: f'"room {at}', label=QUEUES)
    lines = ["text\tlabel", *(f"{row.text}\t{row.label}" for row in table.itertuples())]
    path = write(Path("data/plain.tsv"), "\n".join(lines))
    name, _, _ = add(path)
    check_labels(name, table["text"], table["label"])


def test_an_encoding_and_a_sheet_are_those_that_are_named():
    table = table_of(text=lambda at: f"źle {at}", label=QUEUES)
    table.to_csv("data/coded.csv", index=False, encoding="iso8859_2")
    with pd.ExcelWriter("data/book.xlsx") as book:
        table[:3].to_excel(book, sheet_name="Few", index=False)
        table.to_excel(book, sheet_name="Rows", index=False)
    for words in (["data/coded.csv", "--encoding", "iso8859_2"], ["data/book.xlsx", "--sheet", "Rows"]):
        name, _, _ = add(*words)
        check_labels(name, table["text"], table["label"])
    refused("pipeline.add", "data/book.xlsx", "--sheet", "Row", "--name", "other", says="Rows")


def test_a_rare_class_is_scored_and_said():
    table = pd.DataFrame({"text": map(text, range(2000))})
    table["label"] = ["bad" if at % 20 == 0 else "good" for at in table.index]
    _, entry, shown = add(save("rare.csv", table))
    assert entry["metrics"] == ["macro_f1", "f1", "accuracy"]
    assert entry["label"]["positive"] == "bad"
    assert not entry.get("stratify")  # 100 rows are enough for a random cut
    assert "rare    bad" in shown


def test_few_rows_of_a_class_are_cut_from_each_class_and_the_splits_are_said():
    name, entry, shown = add(save("few.csv", table_of(text=text, label=QUEUES)))
    assert entry["stratify"]
    assert [len(table) for table in tokenize(name).values()] == [84, 12, 24]
    assert "train 84, validation 12, test 24" in shown
    assert "billing 40" in shown


def test_a_split_of_another_run_has_all_splits():
    table = pd.DataFrame({"text": map(text, range(1500))})
    table["label"] = [QUEUES[at % 3] for at in table.index]
    name, _, _ = add(save("all.csv", table))
    test = set(tokenize(name)["test"]["text"])
    part = table[table["text"].isin(test)]
    name, _, _ = add(save("part.csv", part))
    sizes = [len(found) / len(part) for found in tokenize(name).values()]
    assert sizes == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_files_for_splits_are_taken_as_they_are():
    table = table_of(body=text, queue=QUEUES)
    parts = {"train": table[:80], "validation": table[80:110], "test": table[110:]}
    train, validation, test = (save(f"{split}.csv", part) for split, part in parts.items())
    name, entry, _ = add(train, "--validation", validation, "--test", test)
    assert entry["source"]["files"] == {split: f"data/{split}.csv" for split in parts}
    assert "stratify" not in entry
    found = tokenize(name)
    for split in ("validation", "test"):
        assert found[split]["text"].tolist() == parts[split]["body"].tolist()
    name, entry, _ = add(train, "--test", test, "--name", "other")
    found = tokenize(name)
    assert entry["split"] == {"validation": 0.1}
    assert len(found["test"]) == 10
    assert len(found["train"]) + len(found["validation"]) == 80


def test_each_tenant_has_its_own_labels():
    table = table_of(shop=["s0", "s1", "s2"], text=text)
    table["queue"] = [QUEUES[at % 2 + (at % 3 == 2)] for at in table.index]
    path = save("shops.csv", table)
    name, entry, shown = add(path, "--tenant", "shop")
    assert (entry["tenant"], entry["label"]) == ("shop", {"column": "queue"})
    assert "3 tenants" in shown
    assert labels_of(name).keys() == set(table["text"])


NAMES = {
    "my export (1).csv": "my-export-1",
    "Données d'été.CSV": "Donnees-d-ete",
    "tickets.2024.csv.gz": "tickets-2024",
    "2024.csv": "data-2024",
    "NULL.csv": "data-NULL",
    "1e5.csv": "data-1e5",
}


@pytest.mark.parametrize("file", NAMES)
def test_the_name_of_an_entry_is_one_that_dvc_takes_for_text(file):
    path = Path("data", file)
    table_of(text=text, label=QUEUES).to_csv(path, index=False)
    name, _, _ = add(path)
    assert name == NAMES[file]
    override = OverridesParser.create().parse_override(f"data={name}")
    assert override.value() == name


BEFORE = """# mine
first: # yes
    source: {kind: files, files: {train: data/animals.csv}}
    text: [text]
    label: {column: at, low: 0, high: 100}
    metrics: [pearson]
    split: {test: 0.2,
      validation: 0.1}
"""


def test_comments_and_other_entries_stay_as_they_are():
    OWN.write_text(BEFORE)
    path = save("tickets.csv", table_of(body=text, queue=QUEUES))
    add(path)
    assert OWN.read_text().startswith(BEFORE)
    assert [*read_yaml(OWN)] == ["first", "tickets"]
    OWN.write_text("{}")
    refused("pipeline.add", path, says="data/datasets.yaml")
    assert OWN.read_text() == "{}"


@pytest.mark.nightly
def test_commands_at_once_all_add_their_entry(here):
    path = save("tickets.csv", table_of(body=text, queue=QUEUES))
    commands = []
    for number in range(3):
        words = [sys.executable, "-m", "pipeline.add", path, "--name", f"n{number}"]
        commands.append(subprocess.Popen(words, stdout=subprocess.DEVNULL))
    assert [command.wait(60) for command in commands] == [0, 0, 0]
    assert sorted(read_yaml(OWN)) == ["n0", "n1", "n2"]
