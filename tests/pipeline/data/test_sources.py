"""Every source gives the same tables, and what is wrong with a file is one line."""

import hashlib
import shutil

import pytest

from pipeline.data import datasets
from pipeline.params.dataset_row import DatasetRow
from tests import workspace
from tests.kit import write
from tests.pipeline.data.rows import CLASSES, SPLITS, load, refusal, row_of, row_with, tar_gz

# Files


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
        ("a.tsv", "text\tlabel\na\n", "a.tsv: line 2 has 1 columns, not 2"),
        ("a.jsonl", '{"text": "a", "label": 0}\n\n{"text"\n', "a.jsonl: line 3 is not JSON: Expecting ':' delimiter"),
        ("a.json", "[1]\n", "a.json: line 1 must be a JSON object, got list"),
        ("a.parquet", "no parquet", "a.parquet: "),
        ("a.xls", "a", "a.xls: the extension must be one of .csv, .tsv, .txt, .jsonl, .json, .parquet"),
        ("a.csv", "text,label\nü,0\ncafé,1\n".encode("latin-1"), "a.csv: 'utf-8' codec can't decode byte"),
        ("a.csv", "text,label\n\nb,goood\n", "a.csv: line 3: label 'goood' is not a class; allowed: bad, good, 0, 1"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, name, content, message):
    assert message in refusal(row_with(tmp_path, name, content))


# Packages


def test_a_package_file_has_no_quoting_and_no_header(tmp_path, monkeypatch):
    lines = [f'{number}\t{number % 5 - 2}\t"open number {number} ü\u0085x' for number in range(100)]
    content = tar_gz({"toy-1.0/inner.tar.gz": tar_gz({"data/ratings.txt": "\r\n".join(lines).encode()})})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lsr-adapt").mkdir()
    (tmp_path / "lsr-adapt/toy-1.0.tar.gz").write_bytes(content)
    row = DatasetRow(
        source={
            "kind": "package",
            "package": "toy==1.0",
            "sha256": hashlib.sha256(content).hexdigest(),
            "members": ["toy-1.0/inner.tar.gz", "data/ratings.txt"],
            "columns": ["id", "label", "text"],
        },
        text=["text"],
        label={**CLASSES, "above": 0.0, "margin": 0.5},
        metrics=["accuracy"],
        cut={"validation": 0.2, "test": 0.2},
    )
    loaded = datasets.load(row, "mine")
    texts = [text for table in loaded.splits.values() for text in table["text"]]
    assert sorted(texts) == sorted(line.split("\t")[2] for number, line in enumerate(lines) if number % 5 != 2)
    assert loaded.dropped["within_margin"] == 20


# The hub, as a local folder of the same form


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """A function that returns the row of a folder with the form of GLUE on the hub, with other keys of its source."""
    import datasets as hub

    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    workspace.save_glue(tmp_path / "glue")
    splits = {"train": "train", "test": "validation"}
    usual = {"kind": "hub", "path": str(tmp_path / "glue"), "config": "mrpc", "splits": splits}
    return lambda **source: DatasetRow(source=usual | source, **workspace.GLUE_ROW)


def test_a_local_folder_loads_without_a_connection_and_quietly(glue, capfd):
    found, expected = load(glue()), workspace.sentences(200)[160:]
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


def test_another_revision_in_the_cache_is_refused(glue, tmp_path):
    """Without a connection, `datasets` itself takes what it finds, with a warning."""
    load(glue())
    loaded = next((tmp_path / "cache/glue").glob("mrpc*/0.0.0/*/dataset_info.json")).parent
    old, new = "a" * 40, "b" * 40
    shutil.copytree(loaded, tmp_path / f"cache/nobody___glue/mrpc/0.0.0/{old}")
    assert len(load(glue(path="nobody/glue", revision=old))["test"]) == 40
    assert f"nobody/glue: the local cache holds another revision than {new}" in refusal(
        glue(path="nobody/glue", revision=new)
    )
