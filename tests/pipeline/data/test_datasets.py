"""From a row to train, validation and test: every source gives the same tables, cut as said; a mistake is one line."""

import hashlib
import io
import itertools
import json
import random
import re
import shutil
from collections import Counter
from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from pipeline.data import datasets
from pipeline.data import files as data_files
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.tasks.cells import fold, place_of, plain_text
from tests import workspace
from tests.kit import growth, refused, write
from tests.pipeline.data.rows import CLASSES, NUMBER, SPLITS, frames, row_of, tar_gz

CUT = {"validation": 0.1, "test": 0.2}


def write_jsonl(path, rows, columns=("text", "label")):
    return str(write(path, [dict(zip(columns, row, strict=True)) for row in rows]))


def row_with(folder, name, content, **settings):
    """The row of a file with this content for train; the other splits have an example each."""
    held_out = {split: write_jsonl(folder / f"{split}.jsonl", [("held out", 1)]) for split in SPLITS[1:]}
    return row_of({"train": str(write(folder / name, content)), **held_out}, **settings)


def load(row):
    return frames(datasets.load(row, "mine"))


def refusal(row):
    return refused(datasets.load, row, "mine", says="pipeline/datasets.yaml: mine: ")


def sentences(count):
    return [(f"sentence number {number}", number % 2) for number in range(count)]


@pytest.fixture
def make(tmp_path):
    """A function from the rows of each split (text, label) to the DatasetEntry of the files that hold them."""

    def build(label=CLASSES, text=("text",), columns=None, **settings):
        splits = {split: settings.pop(split) for split in ("train", "validation", "test") if split in settings}
        names = (*(columns or text), "label")
        files = {split: write_jsonl(tmp_path / f"{split}.jsonl", rows, names) for split, rows in splits.items()}
        return row_of(files, label, text, **settings)

    return build


def test_a_cut_depends_on_no_other_row_and_not_on_the_order_of_the_source(make):
    whole = load(make(train=sentences(500), split=CUT))
    half = sentences(500)[::2] + sentences(500)[1:100:2]
    random.Random(0).shuffle(half)
    part = load(make(train=half, split=CUT))
    chosen = {text for text, _ in half}
    for split, table in whole.items():
        pd.testing.assert_frame_equal(part[split], table[table["text"].isin(chosen)].reset_index(drop=True))


def test_a_cut_follows_the_sha256_of_the_text_and_orders_by_it(make):
    found = load(make(train=sentences(200), split=CUT))
    assert sorted(pd.concat(found.values())["text"]) == sorted(text for text, _ in sentences(200))
    place = {
        split: [int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256 for text in table["text"]]
        for split, table in found.items()
    }
    assert all(values == sorted(values) for values in place.values())
    assert max(place["test"]) < 0.2 <= min(place["validation"])
    assert max(place["validation"]) < 0.1 + 0.2 <= min(place["train"])


def test_select_on_test_chooses_on_the_test_split_and_leaves_all_other_rows_to_train(make):
    found = load(make(train=sentences(10), test=sentences(60)[10:], split={"validation": 0.5}, select_on="test"))
    pd.testing.assert_frame_equal(found["validation"], found["test"])
    assert {split: len(table) for split, table in found.items()} == {"train": 10, "validation": 50, "test": 50}


def test_a_group_whose_number_is_written_in_two_ways_is_in_one_split(make):
    rows = [("other", 0, 0)]
    for number in range(400):
        group = number // 4
        rows.append((f"{group} has sentence number {number}", group if number % 2 else float(group), 1))
    groups = {"group": ("paragraph",), "columns": ("text", "paragraph"), "metrics": ["exact_match"]}
    found = load(make(train=rows, test=[("held out", 1, 1)], split={"validation": 0.3}, **groups))
    train, validation = (set(found[split]["text"].str.split().str[0]) for split in ("train", "validation"))
    assert len(validation) > 1
    assert not train & validation


def test_strata_take_the_share_of_each_class_in_the_order_of_the_hash(make):
    train = [(f"sentence number {number}", int(number % 10 == 0)) for number in range(400)]
    found = load(make(train=train, split=CUT, stratify=True))
    assert {split: table["label"].value_counts().to_dict() for split, table in found.items()} == {
        "train": {0: 252, 1: 28},
        "validation": {0: 36, 1: 4},
        "test": {0: 72, 1: 8},
    }
    of_class = sorted((text for text, label in train if label), key=lambda text: hashlib.sha256(text.encode()).digest())
    assert set(of_class[:8]) == set(found["test"].query("label == 1")["text"])


def test_a_text_stays_in_train_once_and_not_if_another_split_has_it_and_what_is_left_out_is_counted(make):
    train = [("a", 0), ("A", 1), ("a ", 0), ("b", 1), ("c", 0), ("\uff22", 0), ("v", 1), ("V", 0)]
    train += [("hello world", 0), ("HELLO  WORLD", 0), ("\u210cello\u3000world ", 0), ("hel\u2113o world", 0)]
    missing = [("", 1), ("  ", 1), (None, 1), ("x", None), ("y", ""), (None, None)]
    loaded = datasets.load(make(train=train + missing, validation=[("v", 1), ("", 0)], test=[("t", 0)]), "mine")
    assert loaded.dropped == {"missing": 7, "within_margin": 0, "duplicate": 8}
    assert loaded.conflicting == 3  # A against a, B against b, V against v of validation
    kept = {("a", 0), ("b", 1), ("c", 0), ("hello world", 0)}
    assert set(frames(loaded)["train"].itertuples(index=False, name=None)) == kept


# What a row's texts are made of: columns, entries of `text`, and other keys of the row.
MADE_OF = {
    "a pair": (("first", "second"), ("first", "second"), {}),
    "a pair, stratified": (("first", "second"), ("first", "second"), {"stratify": True}),
    "a template": (("first", "second"), ("Is it true that {first} means {second}?",), {}),
    "two templates": (("first", "second"), ("1: {first}", "2: {second}"), {}),
    "choices": (("first", "second", "third"), ("first", "{choice}"), {"choices": ["second", "third"]}),
}


def mirrored_rows(columns):
    """300 rows of words that no other row has, of which 200 come again in another order; in random order."""
    drawn = random.Random(0)
    rows = [[f"word {3 * number + place}" for place in range(len(columns))] for number in range(300)]
    rows += [drawn.sample(row, len(row)) for row in drawn.sample(rows, 200)]
    drawn.shuffle(rows)
    return [(*(drawn.choice((text, f" {text.upper()}")) for text in row), drawn.randrange(2)) for row in rows]


def words(example):
    """The words of an example's texts, by which it is the same in any order."""
    return frozenset(re.findall(r"word \d+", " ".join(map(str, example)).casefold()))


@pytest.mark.parametrize("given", [(), ("test",), ("validation",), ("test", "validation")], ids=str)
@pytest.mark.parametrize("made_of", MADE_OF)
def test_texts_in_another_order_are_not_in_another_split_and_what_is_left_out_is_counted(make, made_of, given):
    """The reference is plain sets of the words that the examples of each split have."""
    columns, text, settings = MADE_OF[made_of]
    rows = mirrored_rows(columns)
    held_out = 80 * len(given)
    splits = {split: rows[80 * place : 80 * place + 80] for place, split in enumerate(given)}
    cut = {split: 0.3 for split in ("validation", "test") if split not in given}
    row = make(columns=columns, text=text, split=cut, train=rows[held_out:], **splits, **settings)
    loaded = datasets.load(row, "mine")
    found = {split: [*map(words, table.itertuples(index=False))] for split, table in frames(loaded).items()}
    each = len(row.choices) or 1  # examples of a row
    for split, other in itertools.combinations(found, 2):
        assert {split, other} == {*given} or not {*found[split]} & {*found[other]}, (split, other)
    assert all(len(found[split]) == 80 * each for split in given)  # what the source provides stays as it is
    assert max(Counter(found["train"]).values()) > 1  # within a split they are two examples
    left_out = 500 * each - sum(map(len, found.values()))
    assert loaded.dropped["in_another_order"] + loaded.dropped["duplicate"] == left_out
    assert loaded.dropped["in_another_order"] > 0
    # Nothing is lost but what another split has.
    assert frozenset.union(*itertools.chain(*found.values())) == frozenset.union(*map(words, rows))


def test_of_marked_texts_the_marks_are_a_part(make):
    spans = [{"column": name, "start": f"start {name}", "end": f"end {name}"} for name in ("first", "second")]
    columns = ("first", "second", *(f"{end} {name}" for name in ("first", "second") for end in ("start", "end")))
    one = ("the bat hit", 4, 7)
    other = ("a bat flew", 2, 5)
    plain = ("a bat flew", 6, 10)

    def of(first, second):
        return first[0], second[0], *first[1:], *second[1:], 1

    train = [of(other, one), of(plain, one), ("x", "y", 0, 1, 0, 1, 0)]
    held_out = {"validation": [("v", "w", 0, 1, 0, 1, 0)], "test": [of(one, other)]}
    row = make(columns=columns, text=("first", "second"), span=spans, train=train, **held_out)
    loaded = datasets.load(row, "mine")
    assert sorted(frames(loaded)["train"]["text"]) == ["*x*", "a bat *flew*"]
    assert loaded.dropped == {"missing": 0, "within_margin": 0, "duplicate": 0, "in_another_order": 1}


def test_rows_without_mirrors_have_the_cut_of_before_whatever_comes_in_another_order(make):
    pairs = [(f"sentence {number}", f"number {number}", number % 2) for number in range(400)]
    text = ("first", "second")
    alone = load(make(columns=text, text=text, train=pairs, split=CUT))
    place = {first: hashlib.sha256(f"{first}\n{second}".encode()).hexdigest() for first, second, _ in pairs}
    assert {*alone["test"]["text"]} == {first for first, digits in place.items() if int(digits, 16) / 2**256 < 0.2}
    mirrors = [(second, first, label) for first, second, label in pairs[:100]]
    found = load(make(columns=text, text=text, train=pairs + mirrors, split=CUT))
    rest = {f"{kind} {number}" for kind in ("sentence", "number") for number in range(100, 400)}
    for split, table in found.items():
        expected = alone[split][alone[split]["text"].isin(rest)].reset_index(drop=True)
        pd.testing.assert_frame_equal(table[table["text"].isin(rest)].reset_index(drop=True), expected)


def test_an_empty_split_is_refused_with_counts(make):
    row = make(train=sentences(20), validation=[("", 0)], test=[("t", 0)])
    message = refusal(row)
    assert "validation is empty; rows: train 20, validation 0, test 1; dropped: missing 1, within_margin 0" in message
    assert message.endswith(", duplicate 0; of " + row.source.files["validation"])
    assert refusal(make(train=sentences(3), split=CUT)).endswith("in its share: set stratify, or name a file for it")
    assert refusal(make(train=sentences(3), split=CUT, stratify=True)).endswith("train.jsonl; name a file for it")
    numbers = {"label": NUMBER, "metrics": ["pearson"], "split": CUT}  # of which strata cannot be taken
    assert refusal(make(train=rated(3), **numbers)).endswith("in its share: name a file for it")


def test_a_train_split_without_rows_is_refused_with_counts(make):
    held = [row for row in rated(400) if place_of(fold(row[0])) < 0.2]
    numbers = {"label": NUMBER, "metrics": ["pearson"], "split": CUT}
    line = refusal(make(train=held, **numbers))
    assert f"train is empty; rows: train 0, validation 0, test {len(held)}; " in line
    assert line.endswith("; no text has a hash in its share: name files for the other splits")
    row = make(train=held, test=held, **numbers | {"split": {"validation": 0.1}})
    assert refusal(row).endswith(f", duplicate {len(held)}; of {row.source.files['train']}")


def test_a_class_without_a_row_in_train_is_refused_with_counts(make):
    row = make(train=[("a", 1), ("b", 1)], validation=[("v", 0)], test=[("t", 0)])
    assert "train has no row of a class; rows per class: bad 0, good 2" in refusal(row)


def rated(count, begin=0):
    return [(f"sentence number {number}", number * 37 % 51 / 10) for number in range(begin, begin + count)]


def rated_row(make, margin=1.0, **settings):
    return make(label=NUMBER, metrics=["accuracy"], pairs={"margin": margin}, **settings)


def test_pairs_are_made_of_the_rows_of_each_split(make):
    cut = {"validation": 0.2, "test": 0.2}
    single = load(make(label=NUMBER, train=rated(300), split=cut))
    loaded = datasets.load(rated_row(make, train=rated(300), split=cut), "mine")
    left_out = 0
    for split, table in frames(loaded).items():
        rows = list(single[split].itertuples(index=False, name=None))  # in the order of their hashes
        both = list(zip(rows[::2], rows[1::2], strict=False)) if split == "test" else list(pairwise(rows))
        expected = [(a, b, int(x < y)) for (a, x), (b, y) in both if abs(x - y) >= 1]
        assert list(table.itertuples(index=False, name=None)) == expected
        assert list(table.columns) == ["text", "text_pair", "label"]
        left_out += len(both) - len(expected)
    assert loaded.dropped == {"missing": 0, "within_margin": left_out, "duplicate": 0}


def test_of_equal_texts_of_a_split_the_first_is_paired(make):
    once = {"validation": rated(40, 300), "test": rated(40, 400)}
    twice = {split: [*rows, *((text.upper(), 2.5) for text, _ in rows[:20])] for split, rows in once.items()}
    alone = load(rated_row(make, train=rated(100), **once))
    loaded = datasets.load(rated_row(make, train=rated(100), **twice), "mine")
    assert loaded.dropped["duplicate"] == 40
    for split, table in frames(loaded).items():
        pd.testing.assert_frame_equal(table, alone[split])


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_tables(tmp_path, ending):
    files = {split: str(tmp_path / f"{split}.{ending}") for split in SPLITS}
    made = {split: [{"id": n, "text": f"{split} {n}, ü", "label": n % 2} for n in range(20)] for split in SPLITS}
    for split, path in files.items():
        write(path, made[split])
    found = load(row_of(files))
    for split in SPLITS[1:]:
        assert found[split].to_dict("records") == [{"text": row["text"], "label": row["label"]} for row in made[split]]
    assert sorted(found["train"]["text"]) == sorted(row["text"] for row in made["train"])


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("words.csv", "text,label\nNA,0\nnull,1\n", ["NA", "null"]),
        ("quotes.csv", '\ufefftext,label\r\n"a ""b"",\nc",0\r\n\r\nd,1\r\n', ['a "b",\nc', "d"]),
        ("long.csv", f"text,label\n{'x' * 200_000},0\nd,1\n", ["d", "x" * 200_000]),
        ("signs.tsv", 'text\tlabel\n"open\t0\r\n"b" c\u2028d\re\t1\n', ['"b" c\u2028d\re', '"open']),
        (
            "dates.jsonl",
            '{"text": "a"}\n\n{"text": "2024-01-02", "label": 0}\n{"text": "c", "label": 1}\n',
            ["2024-01-02", "c"],
        ),
    ],
)
def test_a_text_is_what_the_file_says(tmp_path, name, content, texts):
    assert sorted(load(row_with(tmp_path, name, content))["train"]["text"]) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "texts,label\na,0\n", "a.csv: no column 'text'; did you mean texts?; columns: texts, label"),
        ("a.csv", "text,label\na,b,0\n", "a.csv: line 2 has 3 columns, not 2"),
        ("a.csv", 'text,label\n"a\nb",0\n"c\nd,0\n', "a.csv: line 4: unexpected end of data"),
        ("a.csv", "text,text\na,0\n", "a.csv: columns must differ from each other, got text, text"),
        ("a.csv", "text,label,,\na,0,,\nb,1,,x\n", "a.csv: line 3 has a value in column 4, which has no name in the h"),
        ("a.tsv", "text\tlabel\na\n", "a.tsv: line 2 has 1 column, not 2"),
        ("a.jsonl", '{"text": "a", "label": 0}\n\n{"text"\n', "a.jsonl: line 3 is not JSON: Expecting ':' delimiter"),
        ("a.json", "[1]\n", "a.json: item 1 must be a JSON object, got int"),
        ("a.parquet", "no parquet", "a.parquet: "),
        ("a.xls", "a", "a.xls: the extension must be one of .csv, .tsv, .txt, .jsonl, .json, .xlsx, .parquet"),
        ("a.csv", "text,label\nü,0\ncafé,1\n".encode("latin-1"), "a.csv: line 2 is not UTF-8; `encoding` in the entry"),
        ("a.csv", "text,label\n\nb,goood\n", "a.csv: line 3: label 'goood' is not a class; allowed: bad, good, or"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, name, content, message):
    assert message in refusal(row_with(tmp_path, name, content))


READ = {  # a file's rows, whose texts pandas does not turn into numbers
    "csv": lambda path: pd.read_csv(path, dtype=str),
    "tsv": lambda path: pd.read_csv(path, dtype=str, sep="\t"),
    "jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    "parquet": pd.read_parquet,
}
SPELLINGS = [
    *(["1", "1.0", "2"], ["2", "1", "2.0"], ["1", "2", "01"], ["1.0", "2.0", "3.0"], ["-1", "2", "-1.00"]),
    *(["1", "1.5", "2"], ["0", "-0", "1"], ["1", " 1", "2"], ["one", "One", "1"]),
]


@pytest.mark.parametrize("labels", SPELLINGS, ids=",".join)
@pytest.mark.parametrize("ending", READ)
def test_labels_that_differ_as_texts_are_different_classes_or_refused_with_both_rows(tmp_path, ending, labels):
    files = dict[str, str]()
    for split in SPLITS:
        rows = [{"text": f"{split} {number}", "label": labels[number % 3]} for number in range(9)]
        files[split] = str(write(tmp_path / f"{split}.{ending}", rows))
    different = READ[ending](files["train"])["label"].map(str.strip).unique()
    names = list(dict.fromkeys(map(plain_text, different)))
    row = row_of(files, {"column": "label", "names": names}, metrics=["accuracy"])
    if len(names) == len(different):
        assert load(row)["train"]["label"].nunique() == len(different)
        return
    message = refused(datasets.load, row, "mine", says="which would be one name, ")
    second = next(number for number in (1, 2) if plain_text(labels[number]) in map(plain_text, labels[:number]))
    first = next(number for number in (0, 1) if plain_text(labels[number]) == plain_text(labels[second]))
    before = 1 if ending in ("jsonl", "parquet") else 2  # rows, or lines below a header
    unit = "row" if ending == "parquet" else "line"
    both = f"is {labels[second]!r} here and {labels[first]!r} in {unit} {first + before}"
    assert f"{unit} {second + before}: label {both}" in message


def test_numbers_that_are_equal_are_one_class_whichever_type_a_file_gives_them(tmp_path):
    integers = [{"text": f"text {number}", "label": number % 2} for number in range(8)]
    content = "".join(f"{json.dumps({**row, 'label': row['label'] + 0.0})}\n{json.dumps(row)}\n" for row in integers)
    parquet = write(tmp_path / "floats.parquet", [{**row, "label": float(row["label"])} for row in integers])
    found = load(row_with(tmp_path, "both.jsonl", content))["train"]
    floats = load(row_with(tmp_path, "floats.parquet", parquet.read_bytes()))["train"]
    assert pd.read_json(io.StringIO(content), lines=True)["label"].nunique() == found["label"].nunique() == 2
    pd.testing.assert_frame_equal(found, floats)
    content = json.dumps({"text": "a", "label": True}) + "\n" + json.dumps({"text": "b", "label": 1}) + "\n"
    assert "line 2: label is '1' here and 'True' in line 1" in refusal(row_with(tmp_path, "flags.jsonl", content))


@pytest.mark.parametrize(
    ("label", "settings", "rows", "says"),
    [
        (CLASSES | {"names": ["1", "1.0", "2"]}, {}, [("a", "1")], "label.names: '1' and '1.0' would be one class"),
        (
            {"multi_label": "label", "names": ["1", "2"]},
            {"metrics": ["micro_f1"]},
            [("a", "1; 2"), ("b", "2;1.0")],
            "row 2: label is '1.0' here and '1' in row 1, which would be one name, 1: write it in one way",
        ),
        (
            {"column": "label", "low": 0, "high": 5},
            {"tenant": "text"},
            [("1", 0.5), ("1.0", 0.5)] * 5,
            "row 2: text is '1.0' here and '1' in row 1, which would be one name, 1: write it in one way",
        ),
    ],
    ids=["names", "multi_label", "tenants"],
)
def test_names_of_labels_and_tenants_are_spelled_in_one_way(tmp_path, label, settings, rows, says):
    content = pd.DataFrame(rows, columns=("text", "label")).astype({"text": str}).to_parquet(index=False)
    path = write(tmp_path / "a.parquet", content)
    assert says in refusal(row_of({"train": str(path)}, label, split=CUT, **settings))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_texts_are_never_all_in_memory(tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_files, "ROWS", 50)

    def read(path):
        for examples in datasets.load(row_of({"train": str(path)}, split=CUT), "mine").splits.values():
            assert sum(map(len, examples.batches(50))) == len(examples) > 0

    read(write(f"first.{ending}", [{"text": f"{number}", "label": number % 2} for number in range(40)]))  # imports
    assert growth(read, ending) < 0.2


def test_a_package_file_has_no_quoting_and_no_header(tmp_path, monkeypatch):
    lines = [f'{number}\t{number % 5 - 2}\t"open number {number} ü\u0085x' for number in range(100)]
    content = tar_gz({"toy-1.0/inner.tar.gz": tar_gz({"data/ratings.txt": "\r\n".join(lines).encode()})})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lsr-adapt").mkdir()
    (tmp_path / "lsr-adapt/toy-1.0.tar.gz").write_bytes(content)
    row = DatasetEntry(
        source={
            "kind": "package",
            "package": "toy==1.0",
            "sha256": hashlib.sha256(content).hexdigest(),
            "members": ["toy-1.0/inner.tar.gz", "data/ratings.txt"],
            "columns": ["id", "label", "text"],
        },
        text=["text"],
        label={**CLASSES, "threshold": 0.0, "margin": 0.5},
        metrics=["accuracy"],
        split={"validation": 0.2, "test": 0.2},
    )
    loaded = datasets.load(row, "mine")
    texts = [text for table in frames(loaded).values() for text in table["text"]]
    assert sorted(texts) == sorted(line.split("\t")[2] for number, line in enumerate(lines) if number % 5 != 2)
    assert loaded.dropped["within_margin"] == 20


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """A function that returns the row of a folder with the form of GLUE on the hub, with other keys of its source."""
    import datasets as hub

    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    workspace.save_glue(tmp_path / "glue")
    splits = {"train": "train", "test": "validation"}
    usual = {"kind": "hub", "path": str(tmp_path / "glue"), "config": "mrpc", "splits": splits}
    return lambda **source: DatasetEntry(**workspace.ROWS["glue"] | {"source": usual | source})


def test_a_local_folder_loads_without_a_connection_and_quietly(glue, capfd):
    found = load(glue())
    expected = workspace.sentences(200)[160:]
    assert list(found["test"].itertuples(index=False, name=None)) == expected
    assert len(found["train"]) + len(found["validation"]) == 160
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"splits": {"train": "train", "test": "test"}}, "glue: row 1: the label is -1: the labels of this split are"),
        ({"config": "mrpx"}, "BuilderConfig 'mrpx' not found. Available: ['mrpc']"),
        ({"splits": {"train": "train", "test": "dev"}}, 'Unknown split "dev"'),
        ({"path": "nobody/nothing"}, "nobody/nothing: cannot be loaded: Couldn't reach 'nobody/nothing' on the Hub"),
    ],
)
def test_a_mistake_in_a_hub_source_is_one_line(glue, source, message):
    assert message in refusal(glue(**source))


def test_a_folder_is_read_though_another_process_reads_one_of_that_name_meanwhile(glue, tmp_path, monkeypatch):
    import datasets as hub

    other = tmp_path / "other/glue"
    shutil.copytree(tmp_path / "glue", other)
    train = next(other.rglob("train-*.parquet"))
    table = pd.read_parquet(train)
    table.assign(sentence1="of the other folder").to_parquet(train)
    expected = load(glue())
    reads = hub.DatasetBuilder.as_dataset

    def after_the_other(builder, *arguments, **options):
        monkeypatch.setattr(hub.DatasetBuilder, "as_dataset", reads)
        with chdir(other.parent):
            load(glue(path="glue"))
        return reads(builder, *arguments, **options)

    monkeypatch.setattr(hub.DatasetBuilder, "as_dataset", after_the_other)
    monkeypatch.chdir(tmp_path)
    found = load(glue(path="glue"))
    for split, table in found.items():
        pd.testing.assert_frame_equal(table, expected[split])


SIGNS = {  # names of folders, and the sign that is named where the name is refused
    **dict.fromkeys(("a b", "é", "a#b", "a@b", "a:b", "a{1,2}", "%41", "-a", "a~", "a,b"), None),
    **dict(zip(("$HOME", "a[x]", "a*b", "a?b", "a::b", "~"), ("$", "[", "*", "?", "::", "~"), strict=True)),
}


@pytest.mark.parametrize("name", SIGNS)
def test_a_folder_is_read_as_one_of_a_plain_name_or_refused_with_the_sign(glue, tmp_path, monkeypatch, name):
    expected = load(glue())
    monkeypatch.chdir(tmp_path)
    Path("glue").rename(name)
    if SIGNS[name]:
        line = refused(glue, path=name, kind=ValidationError, lines=4)
        assert f"path: {SIGNS[name]} in {name} is read as a pattern or variable; rename it, or set kind: files" in line
        return
    for split, table in load(glue(path=name)).items():
        pd.testing.assert_frame_equal(table, expected[split])


def test_a_working_folder_of_such_a_name_is_refused_too(glue, tmp_path, monkeypatch):
    row = glue(path="glue")
    shutil.copytree(tmp_path / "glue", tmp_path / "a[x]" / "glue")
    monkeypatch.chdir(tmp_path / "a[x]")
    assert f"train: glue: path: [ in {tmp_path}/a[x]/glue is read as a pattern or variable; rename it" in refusal(row)


def test_another_revision_in_the_cache_is_refused(glue, tmp_path):
    """Without a connection, `datasets` itself takes what it finds, with a warning."""
    import datasets as hub

    hub.load_dataset(str(tmp_path / "glue"), "mrpc")
    loaded = next((tmp_path / "cache/glue").glob("mrpc*/0.0.0/*/dataset_info.json")).parent
    old = "a" * 40
    new = "b" * 40
    shutil.copytree(loaded, tmp_path / f"cache/nobody___glue/mrpc/0.0.0/{old}")
    assert len(load(glue(path="nobody/glue", revision=old))["test"]) == 40
    line = refusal(glue(path="nobody/glue", revision=new))
    assert f"nobody/glue: the local cache holds another revision than {new}" in line
