"""A user's rows become the splits of the stage tokenize: held to pandas, hashlib, str.format and the plain tokenizer.

All is observed in artifacts/tokens, reports/tokenize and artifacts/inputs.json.
"""

import gzip
import hashlib
import random
import re
import shutil
import unicodedata
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests import rows, tiny
from tests.helpers import (
    MISTAKE,
    ROOT,
    change_params,
    digests,
    printed,
    read_json,
    read_table,
    read_yaml,
    refused,
    run,
    run_stages,
    write,
)

SPLITS = ("train", "validation", "test")
CUT = {"validation": 0.1, "test": 0.2}
HELD = {split: [{"text": f"held out for {split}", "label": 1}] for split in CUT}
MAX_LENGTH = 12  # tokens
OFTEN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SOMETIMES = settings(OFTEN, max_examples=OFTEN.max_examples // 3)
LABELS = read_yaml(Path(__file__).with_name("labels.yaml"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace, in which each test writes its own files and entry."""
    folder = tmp_path_factory.mktemp("data")
    return rows.make_workspace(folder, data="mine", tokenize={"max_length": MAX_LENGTH})


@pytest.fixture(autouse=True)
def here(workspace, monkeypatch):
    monkeypatch.chdir(workspace)


def write_entry(train, held=None, **keys):
    """Write a user's entry with a file for each split, or rows of the file; `held` are the splits besides train."""
    held = HELD if held is None else held
    files = {}
    for split, content in {"train": train, **held}.items():
        path = content
        if not isinstance(content, Path):
            path = write(Path(f"data/{split}.jsonl"), content)
        files[split] = str(path)
    write(
        Path("data/datasets.yaml"),
        {
            "mine": {
                "source": {"kind": "files", "files": files},
                "text": ["text"],
                "label": {"column": "label", "names": ["bad", "good"]},
                "metrics": ["accuracy"],
            }
            | keys
        },
    )


def tokenize(train, held=None, **keys):
    """Run the stage tokenize with an entry, as `write_entry` writes it; return the tables of all splits."""
    write_entry(train, held, **keys)
    printed("stages.tokenize")
    return {split: read_tokens(split) for split in SPLITS}


def cut(train, **keys):
    """Run the stage tokenize with an entry whose splits are cut from train."""
    return tokenize(train, {}, **{"split": CUT} | keys)


def reject(says, *arguments, **keys):
    """Check that the stage tokenize rejects an entry in one line."""
    write_entry(*arguments, **keys)
    refused("stages.tokenize", says=says)


def read_tokens(split):
    """Return the table of a split."""
    content = Path(f"artifacts/tokens/{split}.arrow").read_bytes()
    return pa.ipc.open_stream(content).read_pandas()


def labels_by_text(table):
    return dict(zip(table["text"], table["label"], strict=True))


def left_out():
    """Return how many rows the report says to be left out, by reason; duplicates with another label are duplicates."""
    counts = {}
    for row in read_table(Path("reports/tokenize/splits.csv")):
        if row["part"].startswith("left out: ") and "another label" not in row["part"]:
            counts[row["part"]] = int(row["rows"])
    return sum(counts.values())


def numbered(count, begin=0):
    """Return rows of two classes in turn."""
    return [{"text": f"sentence number {number}", "label": number % 2} for number in range(begin, begin + count)]


def fold(text):
    """Return what texts have in common that are taken for the same one."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


# Files.

PIECES = [
    *("a", "Z", "0", "-", " ", "  ", "é", "東", "🙂", "\u00a0", "\u2028", "\u0085", "e\u0301", "NA", "null", "1e9"),
    *("'", '"', '""', ",", ";", "#", "|", "\\n", "=1+1", "{", "]", "<s>", "\u200b", "x" * 300),
]
ON_ONE_LINE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join)
ON_LINES = st.lists(st.sampled_from([*PIECES, "\n", "\r\n", "\t"]), min_size=1, max_size=9).map("".join)
AS_TEXT = {"dtype": str, "keep_default_na": False}
OF_WINDOWS = {"encoding": "utf-8-sig", "lineterminator": "\r\n", "quoting": 1}
RECORDS = {"orient": "records", "force_ascii": False}
WRITERS = {  # how pandas writes a file, by its ending
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".CSV": lambda table, path: table.to_csv(path, index=False, **OF_WINDOWS),
    ".csv.gz": lambda table, path: table.to_csv(path, index=False),
    ".tsv": lambda table, path: write(path, "".join(map(tab_separated, [table.columns, *table.to_numpy()]))),
    ".json": lambda table, path: table.to_json(path, indent=1, **RECORDS),
    ".jsonl": lambda table, path: table.to_json(path, lines=True, orient="records"),
    ".jsonl.gz": lambda table, path: table.to_json(path, lines=True, **RECORDS),
    ".parquet": lambda table, path: table.to_parquet(path, index=False, row_group_size=3),
    ".xlsx": lambda table, path: table.to_excel(path, index=False),
}


def tab_separated(cells):
    """Return cells as a line without quotes."""
    return "\t".join(map(str, cells)) + "\n"


def read_by_pandas(path):
    """Return the rows of a file as pandas reads them when it is told the format."""
    name = path.name
    if "json" in name:
        return pd.read_json(path, lines="jsonl" in name, dtype=False)
    if name.endswith("parquet"):
        return pd.read_parquet(path)
    if name.endswith("xlsx"):
        return pd.read_excel(path, **AS_TEXT)
    if name.endswith("tsv"):
        return pd.read_csv(path, sep="\t", quoting=3, lineterminator="\n", **AS_TEXT)
    return pd.read_csv(path, **AS_TEXT)


@given(data=st.data(), endings=st.permutations(sorted(WRITERS)))
@OFTEN
def test_a_file_has_the_texts_that_pandas_reads_and_none_is_lost_or_merged(data, endings):
    files = {}
    for split, ending in zip(SPLITS, endings, strict=False):
        pieces = ON_ONE_LINE if ending in (".tsv", ".xlsx") else ON_LINES
        table = pd.DataFrame({"text": data.draw(st.lists(pieces, min_size=2, max_size=9))})
        table["text"] = [f"{split} {number} {text}" for number, text in enumerate(table["text"])]
        table["more"] = table["text"].str.len()
        table["label"] = table.index % 2
        table["note"] = ["of the first row", *[None] * (len(table) - 1)]
        files[split] = Path(f"data/{split}{ending}")
        WRITERS[ending](table, files[split])
    found = tokenize(files["train"], {split: files[split] for split in CUT})
    for split, path in files.items():
        expected = read_by_pandas(path)
        assert labels_by_text(found[split]) == labels_by_text(expected.astype({"label": int}))
        assert len(found[split]) == len(expected)
    assert not left_out()


ODD_FILES = {
    "a.csv": ("text,label\nNA,0\nnull,1\n", ["NA", "null"]),
    "b.csv": ('\ufefftext,label\r\n"a ""b"",\nc",0\r\n\r\nd,1\r\n', ['a "b",\nc', "d"]),
    "c.csv": (f"text,label\n{'x' * 200_000},0\n007,1\n", ["007", "x" * 200_000]),
    "d.csv": ("text,label,,\na,0,,\nb,1,,\n", ["a", "b"]),
    "e.tsv": ('text\tlabel\n"open\t0\r\n"b" c\u2028d\re\t1\n', ['"b" c\u2028d\re', '"open']),
    "f.jsonl": ('{"text": "a"}\n\n{"text": "2024-01-02", "label": 0}\n{"label": 1, "text": "c"}', ["2024-01-02", "c"]),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_a_text_is_what_the_file_says(name):
    content, texts = ODD_FILES[name]
    found = tokenize(write(Path("data", name), content))
    assert sorted(found["train"]["text"]) == texts


def test_encoding_and_names_of_columns_are_taken_from_the_entry():
    files = {split: f"data/{split}.csv" for split in SPLITS}
    for file in files.values():
        write(Path(file), f'0,"café, {file}"\n1,thé {file}\n'.encode("cp1252"))
    source = {"kind": "files", "files": files, "columns": ["label", "text"]}
    found = tokenize([], source=source | {"encoding": "cp1252"})
    for split, file in files.items():
        assert labels_by_text(found[split]) == {f"café, {file}": 0, f"thé {file}": 1}
    reject("UTF-8", [], source=source)


BAD_FILES = {
    "a.csv": ("texts,label\na,0\n", "'text'"),
    "b.csv": ("text,label\na,b,0\n", "line 2"),
    "c.csv": ('text,label\n"a\nb",0\n"c\nd,0\n', "line 4"),
    "d.csv": ("text,text\na,0\n", "columns"),
    "e.csv": ("text,label\ra,0\rb,1\r", "carriage return"),
    "f.csv": ("text,label\nü,0\ncafé,1\n".encode("latin-1"), "line 2"),
    "g.csv": ("text,label\n\nb,goood\n", "goood"),
    "h.tsv": ("text\tlabel\na\n", "line 2"),
    "i.jsonl": ('{"text": "a", "label": 0}\n\n{"text"\n', "line 3"),
    "j.jsonl": ("[" * 100_000, "line 1"),
    "k.json": ("[1]\n", "item 1"),
    "l.parquet": ("no parquet", "l.parquet"),
    "m.xlsx": ("no workbook", "xlsx"),
    "n.xls": ("", ".xlsx"),
    "o.csv.gz": (gzip.compress(b"text,label\na,0\n")[:-3], "o.csv.gz"),
    "p.jsonl": ('{"text": "\\ud800", "label": 0}\n', "surrogate"),
    "q.jsonl": ('{"text": 3, "label": 0}\n', "string"),
    "r.csv": ("text,label\n", "empty"),
    "s.csv": ("text,label\n,0\n", "train 0"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_one_line(name):
    content, says = BAD_FILES[name]
    reject(says, write(Path("data", name), content))


def test_a_missing_file_is_one_line():
    reject("data/nowhere.csv", Path("data/nowhere.csv"))


@given(data=st.data(), ending=st.sampled_from([".csv", ".csv.gz", ".jsonl", ".parquet"]))
@settings(SOMETIMES, derandomize=True)  # pandas reads some damages in a way of its own
def test_no_row_of_a_damaged_file_is_lost_or_it_is_one_line(data, ending):
    path = Path(f"data/damaged{ending}")
    WRITERS[ending](pd.DataFrame(numbered(9)), path)
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(0, 2))
    damaged = content[:at] + data.draw(st.binary(max_size=2)) + content[at + length :]
    write_entry(write(path, damaged))
    if run("stages.tokenize").status == MISTAKE:
        refused("stages.tokenize")
    else:
        assert len(read_tokens("train")) + left_out() == len(read_by_pandas(path))


# Cells.


def rows_of_cells(cells):
    """Return a row for each cell; its text has the number of the row."""
    return [{"text": f"row {number}", "label": cell} for number, cell in enumerate(cells)]


def metrics_of(label):
    """Return a metric that goes with a label."""
    if "multi_label" in label:
        return ["micro_f1"]
    return ["pearson"] if "low" in label else ["accuracy"]


CASES = [
    *(("csv", case) for case in LABELS["read"]),
    *(("jsonl", case) for case in LABELS["read"] + LABELS["typed"]),
]


@pytest.mark.parametrize(("ending", "case"), CASES)
def test_a_label_is_read_alike_whether_the_file_has_types_or_texts(ending, case):
    label, cells, numbers = case.values()
    train = write(Path(f"data/train.{ending}"), rows_of_cells(cells))
    held = {split: [{"text": split, "label": cells[0]}] for split in HELD}
    found = tokenize(train, held, label=label, metrics=metrics_of(label))["train"]
    expected = {f"row {at}": number for at, number in enumerate(numbers) if number is not None}
    if "multi_label" in label:
        found["label"] = found["label"].map(list)
    assert labels_by_text(found) == expected
    assert left_out() == len(cells) - len(expected)


@pytest.mark.parametrize("case", LABELS["rejected"])
def test_a_cell_that_is_no_label_is_one_line(case):
    label, cells, says = case.values()
    reject(says, rows_of_cells(cells), label=label, metrics=metrics_of(label))


CELLS = st.text(st.sampled_from("ab{}$\\1: "), min_size=1, max_size=8)


@given(cells=st.lists(st.tuples(CELLS, CELLS), min_size=2, max_size=8))
@SOMETIMES
def test_a_template_is_filled_as_python_formats_it(cells):
    template = "{b c}: {a}.{a}"
    made = [{"a": f"a{number} {a}", "b c": f"b {b}"} for number, (a, b) in enumerate(cells)]
    train = [row | {"label": number % 2} for number, row in enumerate(made)]
    held = {split: [{"a": split, "b c": split, "label": 1}] for split in HELD}
    found = tokenize(train, held, text=[template, "a"])["train"]
    assert sorted(found["text"]) == sorted(template.format(**row) for row in made)
    assert sorted(found["text_pair"]) == sorted(row["a"] for row in made)


# Splits.


@given(seed=st.integers(0, 99))
@SOMETIMES
def test_adding_and_shuffling_rows_moves_no_text_to_another_split(seed):
    whole = numbered(300)
    added = numbered(60, begin=900)
    part = random.Random(seed).sample(whole, 150)
    before = cut(whole)
    after = cut([*part, *added])
    chosen = labels_by_text(pd.DataFrame(part))
    new = labels_by_text(pd.DataFrame(added))
    for split in SPLITS:
        expected = [text for text in before[split]["text"] if text in chosen]
        assert [text for text in after[split]["text"] if text not in new] == expected


def test_a_cut_follows_the_sha256_of_the_text_and_each_split_is_in_its_order():
    ends = {"test": (0, 0.2), "validation": (0.2, 0.1 + 0.2), "train": (0.1 + 0.2, 1)}
    found = cut(numbered(200))
    for split, (least, most) in ends.items():
        places = [int(sha256(text), 16) / 2**256 for text in found[split]["text"]]
        assert places == sorted(places)
        assert least <= places[0] <= places[-1] < most
    assert sum(map(len, found.values())) == 200


def test_a_stratified_cut_takes_the_share_of_each_class_by_the_hash():
    train = [{"text": f"sentence {number}", "label": int(number % 10 == 0)} for number in range(400)]
    found = cut(train, stratify=True)
    counts = {split: table["label"].value_counts().to_dict() for split, table in found.items()}
    assert counts == {"train": {0: 252, 1: 28}, "validation": {0: 36, 1: 4}, "test": {0: 72, 1: 8}}
    rare = sorted((row["text"] for row in train if row["label"]), key=sha256)
    assert set(rare[:8]) == set(found["test"].query("label == 1")["text"])


def test_validation_is_the_test_split_where_the_entry_selects_on_it():
    held = {"test": numbered(50, begin=10)}
    found = tokenize(numbered(10), held, split={"validation": 0.5}, select_on="test")
    pd.testing.assert_frame_equal(found["validation"], found["test"])
    assert [len(found[split]) for split in SPLITS] == [10, 50, 50]


def test_f1_of_a_users_own_data_is_that_of_the_class_which_train_has_less_of():
    cells = ["good"] * 9 + ["bad"] * 3
    found = tokenize(rows_of_cells(cells), metrics=["f1"])
    expected = {f"row {number}": int(cell == "bad") for number, cell in enumerate(cells)}
    assert labels_by_text(found["train"]) == expected
    assert found["test"]["label"].tolist() == [0]


def test_duplicates_with_another_label_and_texts_that_scored_splits_share_are_counted():
    train = as_rows([("v", "", 1), ("a", "", 0), ("A", "", 1), ("b", "", 1), (" b", "", 1), ("t", "", 0), ("a", "", 1)])
    held = {"validation": as_rows([("v", "", 0), ("s", "", 1)]), "test": as_rows([("s", "", 1), ("t", "", 0)])}
    write_entry(train, held)
    assert "1 texts of test are in validation" in printed("stages.tokenize")
    report = {row["part"]: row["rows"] for row in read_table(Path("reports/tokenize/splits.csv"))}
    assert report["left out: duplicate"] == "5"
    assert report["left out: duplicate with another label"] == "3"


WORDS = st.sampled_from(
    ["a", "A ", "\uff21", "straße", "STRASSE", "hello world", "Hello \u3000WORLD", "\u210cello world", "c"]
)
DRAWN = st.lists(st.tuples(WORDS, WORDS, st.integers(0, 1)), max_size=12)
TEMPLATES = {"text": (["text"], "{0}"), "pair": (["text", "other"], "{0}"), "both": (["{text}: {other}"], "{0}: {1}")}


def as_rows(examples):
    return [{"text": first, "other": second, "label": label} for first, second, label in examples]


@pytest.mark.parametrize("name", TEMPLATES)
@given(train=DRAWN, validation=DRAWN, test=DRAWN)
@SOMETIMES
def test_given_splits_stay_and_train_has_each_text_once_and_none_of_theirs(name, train, validation, test):
    columns, template = TEMPLATES[name]
    read = 1 if name == "text" else 2  # columns
    train = [("never 0", "0", 0), ("never 1", "1", 1), *train]
    held = {"validation": [("v", "w", 1), *validation], "test": [("t", "u", 1), *test]}
    found = tokenize(as_rows(train), {split: as_rows(held[split]) for split in held}, text=columns)
    taken = set()
    for split, examples in held.items():
        assert found[split]["text"].tolist() == [template.format(*row) for row in examples]
        taken |= {frozenset(map(fold, row[:read])) for row in examples}
    expected = {}
    for row in train:
        texts = [template.format(*row)] if name == "both" else row[:read]
        key = tuple(map(fold, texts))
        if frozenset(map(fold, row[:read])) not in taken:
            expected.setdefault(key, (template.format(*row), row[2]))
    assert sorted(zip(found["train"]["text"], found["train"]["label"], strict=True)) == sorted(expected.values())
    assert left_out() == len(train) - len(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keys", [{}, {"stratify": True}, {"text": ["{text} and {other}"]}], ids=str)
def test_a_pair_and_its_mirror_are_cut_into_one_split(seed, keys):
    chance = random.Random(seed)
    pairs = [(f"w{number}", f"w{number + 100}", number % 2) for number in range(100)]
    pairs += [(second, first.upper(), label) for first, second, label in chance.sample(pairs, 60)]
    chance.shuffle(pairs)
    found = cut(as_rows(pairs), **{"text": ["text", "other"], "split": {"validation": 0.3, "test": 0.3}} | keys)
    places = {}
    for split, table in found.items():
        for text in table["text"] + " " + table.get("text_pair", ""):
            words = frozenset(re.findall(r"w\d+", text.lower()))
            assert places.setdefault(words, split) == split
    assert len(places) == 100
    assert sum(map(len, found.values())) + left_out() == 160


def test_rows_of_each_tenant_are_cut_evenly_and_train_has_no_text_on_which_another_is_scored():
    train = []
    for tenant, names in {"a": "xy", "b": "yz", "c": "xz"}.items():
        for number in range(50):
            writer = "all write" if number < 10 else f"{tenant} writes"
            row = {"text": f"{writer} {number}", "tenant": tenant, "label": names[number % 2]}
            train.append(row)
    found = cut(train, tenant="tenant", label={"column": "label"}, split={"validation": 0.2, "test": 0.2})
    texts = {split: set(table["text"]) for split, table in found.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert len(set.union(*texts.values())) == 3 * 40 + 10
    for tenant in "abc":
        for split in CUT:
            own = [text for text in texts[split] if text.startswith(tenant + " ")]
            assert 4 <= len(own) <= 12


def test_a_split_without_rows_is_one_line():
    reject("stratify", numbered(3), {}, split=CUT)
    reject("validation is empty", numbered(20), {"validation": [{"text": "", "label": 0}], "test": numbered(1)})


# Sources.

PAIRS = {"text": ["sentence1", "sentence2"], "split": {"validation": 0.2}}
HUB = {"kind": "hub", "path": "data/glue", "config": "mrpc", "splits": {"train": "train", "test": "validation"}}
CARD = """---
configs:
- config_name: mrpc
  data_files:
  - {split: train, path: mrpc/train-*}
  - {split: validation, path: mrpc/validation-*}
  - {split: test, path: mrpc/test-*}
---
"""


@pytest.fixture
def glue():
    """The tables of a folder data/glue that has the form of a data set on the Hub."""
    table = pd.DataFrame({"sentence1": [f"text {number}" for number in range(60)]})
    table["sentence2"] = table["sentence1"] + " again"
    table["label"] = table.index % 2
    parts = {"train": table[:40], "validation": table[40:], "test": table[:5].assign(label=-1)}
    for split, part in parts.items():
        write(Path(f"data/glue/mrpc/{split}-0.parquet"), part)
    write(Path("data/glue/README.md"), CARD)
    return parts


def test_a_folder_of_the_form_of_the_hub_is_read_and_read_again_after_an_edit(glue):
    columns = ["text", "text_pair", "label"]
    found = tokenize([], source=HUB, **PAIRS)
    assert found["test"][columns].to_numpy().tolist() == glue["validation"].to_numpy().tolist()
    assert len(found["train"]) + len(found["validation"]) == len(glue["train"])
    edited = glue["validation"].assign(sentence1="edited")
    write(Path("data/glue/mrpc/validation-0.parquet"), edited)
    found = tokenize([], source=HUB, **PAIRS)
    assert found["test"][columns].to_numpy().tolist() == edited.to_numpy().tolist()


@pytest.mark.usefixtures("glue")
def test_another_revision_in_the_cache_of_datasets_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.load_dataset("data/glue", "mrpc")
    (loaded,) = tmp_path.glob("glue/mrpc*/0.0.0/*/dataset_info.json")
    shutil.copytree(loaded.parent, tmp_path / "nobody___glue/mrpc/0.0.0" / ("a" * 40))
    source = HUB | {"path": "nobody/glue"}
    assert len(tokenize([], source=source | {"revision": "a" * 40}, **PAIRS)["test"]) == 20
    reject("revision", [], source=source | {"revision": "b" * 40}, **PAIRS)


HUB_MISTAKES = [
    ("splits", {"train": "train", "test": "test"}, "hidden"),
    ("splits", {"train": "train", "test": "dev"}, "dev"),
    ("config", "mrpx", "mrpc"),
    ("path", "nobody/nothing", "nobody/nothing"),
    ("path", "data/$HOME", "$"),
]


@pytest.mark.parametrize(("key", "value", "says"), HUB_MISTAKES)
@pytest.mark.usefixtures("glue")
def test_a_mistake_in_a_source_of_the_hub_is_one_line(key, value, says):
    reject(says, [], source=HUB | {key: value}, **PAIRS)


OFFICIAL = ["sst2", "cola", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "boolq", "cb", "superglue-rte"]


@pytest.mark.parametrize("task", OFFICIAL)
def test_the_official_files_of_glue_are_read(task):
    (path,) = (ROOT / "tests/official").glob(f"{task}.*")
    content = path.read_bytes().decode()
    entry = read_yaml(ROOT / "pipeline/datasets.yaml")[task]
    entry |= {"split": {}, "select_on": "test", "stratify": False}
    entry["source"] |= {"kind": "files", "files": {}}
    for split in ("train", "test"):
        file = Path(f"data/{task}-{split}{path.suffix}")
        write(file, content.replace("SPLIT", split))
        entry["source"]["files"][split] = str(file)
    found = tokenize([], **entry)
    examples = read_json(ROOT / "tests/official/examples.json")[task]
    for split in ("train", "test"):
        expected = [[str(cell).replace("SPLIT", split) for cell in example] for example in examples]
        table = found[split].filter(["text", "text_pair", "label"]).astype(str)
        assert sorted(table.to_numpy().tolist()) == sorted(expected)


def test_files_are_recorded_by_their_content_and_rejected_where_dvc_does_not_watch_them(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_STAGE", "tokenize")
    linked = Path("data/linked.jsonl")
    linked.symlink_to(write(tmp_path / "rows.jsonl", numbered(6)))
    tokenize(linked)
    recorded = Path("artifacts/inputs.json").read_text()
    for path in (linked, Path("data/validation.jsonl"), Path("data/test.jsonl"), Path("models/bert/tokenizer.json")):
        assert sha256(path.read_text()) in recorded
    Path("data/link").symlink_to(tmp_path)
    elsewhere = write(Path("elsewhere.jsonl"), numbered(6))
    for path in (elsewhere, Path("data/../elsewhere.jsonl"), Path("data/link/rows.jsonl")):
        write_entry(path)
        ended = run("stages.tokenize")
        assert ended.status == MISTAKE
        assert "DVC" in ended.err.splitlines()[0]


# Tokens.


@pytest.fixture(params=["bert", "gpt2", "llama", "t5", "xlnet"])
def base(request, tmp_path):
    """The folder of a base model that params.yaml names."""
    folder = tiny.save_base(tmp_path / "base", request.param)
    change_params(Path(), model=str(folder))
    yield folder
    change_params(Path(), model="models/bert")


@pytest.mark.parametrize("columns", [["text"], ["text", "other"]], ids=str)
def test_tokens_are_those_of_the_plain_tokenizer_and_the_report_counts_them(base, columns):
    entry = rows.ENTRIES["two"] | {"text": columns}
    found = cut([], **entry)["train"]
    texts = [found[name].tolist() for name in ("text", "text_pair") if name in found]
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)
    for name in {"input_ids", "token_type_ids"} & {*found}:
        assert found[name].map(list).tolist() == expected[name]
    lengths = pd.Series(map(len, tokenizer(*texts)["input_ids"]))
    report = read_table(Path("reports/tokenize/splits.csv"))[0]
    assert [report[name] for name in ("part", "rows", "tokens_max")] == ["train", str(len(found)), str(lengths.max())]
    assert int(report["tokens_p95"]) == lengths.quantile(0.95, interpolation="higher")
    assert float(report["truncated_share"]) == pytest.approx((lengths > MAX_LENGTH).mean(), abs=1e-5)
    assert float(report["share_wet"]) == pytest.approx(found["label"].mean(), abs=1e-5)


def test_two_runs_write_the_same_bytes_of_all_rows():
    found = cut(numbered(2500))
    assert labels_by_text(pd.concat(found.values())) == labels_by_text(pd.DataFrame(numbered(2500)))
    first = digests(Path("artifacts"), Path("reports"))
    run_stages(Path(), "tokenize")
    assert digests(Path("artifacts"), Path("reports")) == first
