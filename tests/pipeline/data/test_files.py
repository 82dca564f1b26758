"""Files as people have them are read as pandas reads them when it is told how they are written; no row is lost.

A compressed file that unpacks to far more than its size is refused in a line.
"""

import bz2
import gzip
import json
import lzma
import os
import re
import tracemalloc
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from pipeline.core.errors import UserError
from pipeline.data import datasets, excel, opening, recognition, sources
from pipeline.params.sources import TableSource
from pipeline.params.yaml_file import read_yaml
from tests.kit import refused, write
from tests.pipeline.data.rows import CLASSES, frames, row_of

ROWS = 60
SENTENCES = {
    "French": "Le café n° {} de l’été, « très déçu », coûte 5 € ; à bientôt",
    "German": "Die Lieferung {} war verspätet; größere Kartons, schöne Grüße aus München",
    "Spanish": "¿Dónde está el pedido {}? Mañana llegará, señor; qué lástima",
    "English": "The customer’s order {} – “late” again; it’s not naïve",
    "Polish": "Zamówienie {} przyszło późno; jestem bardzo zły, żółta gęś",
    "Russian": "Заказ номер {} пришёл поздно; очень недоволен доставкой",
    "Greek": "Η παραγγελία {} ήρθε πολύ αργά; είμαι απογοητευμένος",
    "Turkish": "Sipariş {} çok geç geldi; müşteri hizmetleri ilgisizdi, ışık çalışmıyor",
    "Japanese": "この製品{}はとても良いですが、配送が遅れました。",
    "Chinese": "这个产品{}很好，但是送货太慢了，我非常失望。",
    "Korean": "이 제품 {}은 아주 좋지만 배송이 너무 늦었습니다.",
}
ENCODED = [
    *[("cp1252", language) for language in ("French", "German", "Spanish", "English")],
    *[("latin-1", language) for language in ("German", "Spanish")],
    *[(encoding, language) for encoding in ("utf-8", "utf-8-sig", "utf-16") for language in ("French", "Japanese")],
    *[("utf-16-le", "French"), ("utf-16-be", "German"), ("utf-32", "English"), ("mac_roman", "German")],
    *[("cp1250", "Polish"), ("cp1251", "Russian"), ("koi8_r", "Russian"), ("cp1253", "Greek"), ("cp1254", "Turkish")],
    *[("shift_jis", "Japanese"), ("euc_jp", "Japanese"), ("gb18030", "Chinese"), ("cp949", "Korean")],
]  # fmt: skip
COMPRESSED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
COMPRESSED["zst"] = lambda content: pa.compress(content, "zstd", asbytes=True)


EVERYDAY = read_yaml(Path(__file__).parent / "sentences.yaml")
LANGUAGES = [(encoding, language) for encoding in EVERYDAY for language in EVERYDAY[encoding]]
# Those that three lines may not tell apart from the more usual encoding: their letters are few, or also Icelandic.
AMBIGUOUS = {("cp1254", "Turkish"): 1, ("mac_roman", "German"): 4, ("mac_roman", "Danish"): 9}


def table_of(language, breaks="\n"):
    """Rows of a language, whose texts have all that a csv file must quote."""
    sentence = SENTENCES[language]
    rows = []
    for number in range(ROWS):
        text = sentence.format(number)
        if number % 7 == 3:
            text = f'{text}, a "quoted" part; a | bar, and{breaks}another line'
        rows.append({"id": str(number), "text": text, "label": ("good", "bad", "")[number % 3]})
    return pd.DataFrame(rows)


def cells(path):
    """The cells of a file, as all that reads the user's files has them; a missing one is empty."""
    source = recognition.source_of(Path(path))
    return pd.concat(list(sources.values(source, str(path)))).fillna("").to_numpy().tolist()


def of_pandas(table):
    return table.fillna("").to_numpy().tolist()


def test_the_mark_of_utf_8_is_no_text_where_the_encoding_is_named(tmp_path):
    path = tmp_path / "marked.csv"
    path.write_text("text,label\ncaf\u00e9,good\n", encoding="utf-8-sig")
    source = recognition.source_of(path, "utf-8")
    table = pd.concat(list(sources.values(source, str(path))))
    expected = pd.read_csv(path)
    assert list(table.columns) == list(expected.columns)
    assert of_pandas(table) == of_pandas(expected)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(("encoding", "language"), ENCODED)
def test_encoding_and_delimiter_are_recognized(tmp_path, encoding, language, delimiter):
    path = tmp_path / "table.csv"
    table_of(language).to_csv(path, index=False, encoding=encoding, sep=delimiter)
    expected = pd.read_csv(path, encoding=encoding, sep=delimiter, dtype=str, keep_default_na=False)
    assert cells(path) == of_pandas(expected)
    assert len(expected) == ROWS


@pytest.mark.parametrize(("encoding", "language"), [*LANGUAGES, ("mac_roman", "German"), ("mac_roman", "Danish")])
def test_everyday_sentences_are_read_in_their_encoding_eight_lines_always_and_three_nearly_so(
    tmp_path, encoding, language
):
    sentences = next(texts[language] for texts in EVERYDAY.values() if language in texts).splitlines()
    assert len(sentences) == 30
    wrong = dict.fromkeys((3, 8, 15, 30), 0)
    path = tmp_path / "text.csv"
    for count in wrong:
        for first in range(30 if count < 30 else 1):
            lines = ["text", *(sentences * 2)[first : first + count], ""]
            path.write_text("\n".join(lines), encoding=encoding)
            recognized = recognition.encoding_of(path)
            wrong[count] += path.read_text(encoding=recognized) != path.read_text(encoding=encoding)
    assert wrong[3] <= AMBIGUOUS.get((encoding, language), 0)
    assert not any(wrong[count] for count in (8, 15, 30))


@pytest.mark.parametrize("name", ["table.tsv", "table.txt", "TABLE.TSV"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_a_tsv_file_has_quotes_where_they_make_it_regular(tmp_path, name, encoding):
    path = tmp_path / name
    table_of("French").to_csv(path, index=False, encoding=encoding, sep="\t")
    assert cells(path) == of_pandas(pd.read_csv(path, encoding=encoding, sep="\t", dtype=str, keep_default_na=False))
    plain = 'text\tlabel\n"open\tgood\nan "owl" sits\tbad\n'
    path.write_text(plain, encoding=encoding)
    options = {"sep": "\t", "dtype": str, "quoting": 3}
    assert cells(path) == of_pandas(pd.read_csv(path, encoding=encoding, **options))


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("name", ["table.csv", "Table.CSV", "table.tsv", "table.jsonl", "table.json"])
def test_compressed_files_are_read_whatever_the_case_of_their_extensions(tmp_path, name, compression):
    plain = tmp_path / name
    table = table_of("German", breaks=" ")
    if "json" in name:
        table.to_json(plain, orient="records", lines=name.endswith("l"), force_ascii=False)
    else:
        table.to_csv(plain, index=False, sep="\t" if name.endswith("tsv") else ";", encoding="cp1252")
    path = tmp_path / f"{name}.{compression if name.islower() else compression.upper()}"
    path.write_bytes(COMPRESSED[compression](plain.read_bytes()))
    assert cells(path) == table.to_numpy().tolist()


@pytest.mark.parametrize("name", ["list.json", "list.jsonl"])
def test_a_list_in_json_is_read_as_lines_are(tmp_path, name):
    rows = [{"text": f"{number}\nü", "tags": ["a", None], "in": {"deep": number}} for number in range(5)]
    path = write(tmp_path / name, json.dumps(rows, indent=2))
    expected = pd.read_json(path, dtype=False)
    assert cells(path) == expected.to_numpy().tolist()
    assert recognition.source_of(path).model_dump(exclude_defaults=True) == {
        "kind": "files",
        "files": {"train": str(path)},
    }


@pytest.fixture
def workbook(tmp_path):
    """An xlsx file of two sheets, with numbers, dates, flags, and cells and rows without content."""
    table = table_of("French")
    table["stars"] = [number / 2 for number in range(ROWS)]
    table["day"] = pd.Timestamp("2024-01-02 03:04:05")
    table["spam"] = [number % 2 == 0 for number in range(ROWS)]
    table.loc[4, ["stars", "day"]] = None
    with pd.ExcelWriter(tmp_path / "book.XLSX", engine="openpyxl") as book:
        table.to_excel(book, sheet_name="Tickets", index=False)
        table.head(3).to_excel(book, sheet_name="Few", index=False)
    return tmp_path / "book.XLSX"


@pytest.mark.parametrize("sheet", ["Tickets", "Few"])
def test_a_sheet_of_excels_has_the_cells_that_pandas_reads(workbook, sheet):
    expected = pd.read_excel(workbook, sheet, dtype=str, keep_default_na=False, engine="openpyxl")
    source = recognition.source_of(workbook, sheet=sheet)
    found = pd.concat(list(sources.values(source, "book"))).fillna("")
    assert list(found.columns) == list(expected.columns)
    assert found.to_numpy().tolist() == of_pandas(expected)
    assert len(found) == (ROWS if sheet == "Tickets" else 3)
    if sheet == "Tickets":
        assert cells(workbook) == of_pandas(expected)  # the first one, by default
        assert recognition.words_of(recognition.source_of(workbook)) == "the sheet Tickets, the first of 2"


def test_an_xlsx_file_that_cannot_be_read_is_one_line(workbook, monkeypatch):
    def refusal(**keys):
        row = row_of(
            {"train": str(workbook)},
            {"column": "label", "names": ["good", "bad"]},
            split={"validation": 0.1, "test": 0.1},
        )
        row = row.model_copy(update={"source": row.source.model_copy(update=keys)})
        return refused(datasets.load, row, "mine", says=f"{workbook}: ")

    assert "no sheet 'Ticket'; did you mean Tickets?; sheets: Tickets, Few" in refusal(sheet="Ticket")
    whole = workbook.read_bytes()
    workbook.write_bytes(b"PK no zip")
    assert "cannot be read as xlsx: it is not a zip archive" in refusal()
    workbook.write_bytes(whole)
    monkeypatch.setattr(excel, "MAX_ROWS", 10)
    assert "a sheet has at most 10 rows, and " in refusal()
    monkeypatch.undo()
    monkeypatch.setattr(excel, "MAX_CELLS", 10)
    assert "and 10 cells" in refusal()
    monkeypatch.undo()
    monkeypatch.setattr(excel.importlib.util, "find_spec", lambda name: None)
    assert (
        "openpyxl is not installed; install the extra excel with: pip install -c constraints.txt -e '.[excel]'"
        in refusal()
    )


def test_a_row_far_below_the_others_does_not_take_hours(workbook, tmp_path):
    """A few bytes name a row of any number, up to which openpyxl makes empty rows."""
    path = tmp_path / "far.xlsx"
    with zipfile.ZipFile(workbook) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename == "xl/worksheets/sheet1.xml":
                content = re.sub(rb'(<row[^>]*?) r="2"', rb'\1 r="999999999999"', content, count=1)
                assert b"999999999999" in content
            new.writestr(member, content)
    line = refused(cells, path, says="a sheet has at most 1,048,576 rows")
    assert str(path) in line


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused_before_memory_has_it(
    tmp_path, monkeypatch, compression
):
    monkeypatch.setattr(opening, "UNPACKED_BYTES", 100_000)
    size = 20_000_000
    path = write(tmp_path / f"bomb.csv.{compression}", COMPRESSED[compression](b"text,label\n" + b"a" * size))
    assert path.stat().st_size * 100 < size
    source = TableSource(kind="files", files={"train": str(path)})
    tracemalloc.start()
    line = refused(lambda: list(sources.values(source, "bomb")), says="bomb: unpacks to more than ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "allowed: 100,000 or 100 times its own size, whichever is more; if you trust it, unpack it first" in line
    assert peak < size / 2


def test_an_xlsx_file_that_unpacks_to_far_more_than_its_size_is_refused(workbook, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "UNPACKED_BYTES", 100_000)
    assert len(cells(workbook)) == ROWS
    with zipfile.ZipFile(workbook, "a", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/more.xml", b" " * 10_000_000)
    refused(cells, workbook, says="unpacks to more than ")


@pytest.mark.parametrize("compression", COMPRESSED)
def test_a_damaged_compressed_file_is_one_line_or_loses_no_row(tmp_path, compression):
    content = table_of("English").to_csv(index=False).encode()
    packed = COMPRESSED[compression](content)
    lines = list[str]()
    for position in range(0, len(packed), max(1, len(packed) // 40)):
        changed = bytes([packed[position] ^ 255])
        for damaged in (packed[:position], packed[:position] + changed + packed[position + 1 :]):
            path = write(tmp_path / f"damaged.csv.{compression}", damaged)
            source = TableSource(kind="files", files={"train": str(path)})
            try:
                rows = sum(map(len, sources.values(source, "mine")))
            except UserError as error:
                lines.append(str(error))
            else:
                assert rows in {0, ROWS}  # 0 of no bytes at all
    assert len(lines) > 40
    assert all(line.startswith("mine: ") and "\n" not in line for line in lines)


MIXED = "text,label\ncafé,good\nété,bad\n".encode() + "déjà,good\n".encode("cp1252")
NOT_READ = [
    ("mixed.csv", MIXED, "line 4 is not UTF-8, but 2 others are; fix it, or set --encoding"),
    ("nothing.csv", b"text,label\n" + bytes(range(128, 256)) * 3, "the encoding is not recognized; "),
]


@pytest.mark.parametrize(("name", "content", "says"), NOT_READ)
def test_an_encoding_that_is_not_recognized_is_one_line(tmp_path, name, content, says):
    path = write(tmp_path / name, content)
    refused(recognition.source_of, path, says=says, kind=ValueError)


def test_a_file_in_another_encoding_than_its_row_has_names_the_line_and_the_key(tmp_path):
    content = "text,label\nowl,good\ncafé,bad\n".encode("cp1252")
    row = row_of({"train": str(write(tmp_path / "a.csv", content))}, CLASSES, split={"validation": 0.2, "test": 0.2})
    assert "a.csv: line 3 is not UTF-8; `encoding` in the entry names another" in refused(datasets.load, row, "mine")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"encoding": "cp1251x"}, "no encoding 'cp1251x'"),
        ({"encoding": "zlib"}, "no encoding 'zlib'"),
        ({"delimiter": '"'}, "String should match pattern"),
        ({"sheet": "A"}, "sheet: has no effect; it is for files with the extension .xlsx"),
        ({"files": {"train": "a.xlsx"}, "encoding": "cp1252"}, "encoding: has no effect; it is for files with "),
        ({"each": "a.b"}, "each: has no effect; it is for files with the extension .jsonl or .json or .parquet"),
        ({"files": {"train": "a.jsonl"}, "columns": ("a", "b")}, "columns: has no effect; it is for files with "),
        ({"files": {"train": "a.jsonl"}, "broken_lines": "drop"}, "broken_lines: has no effect; it is for files"),
    ],
)
def test_a_key_of_a_source_is_checked_and_has_an_effect(keys, says):
    source = {"kind": "files", "files": {"train": "a.csv"}} | keys
    with pytest.raises(ValueError, match=re.escape(says)):
        TableSource(**source)


def test_values_are_replaced_where_the_row_says_so(tmp_path):
    rows = [{"text": f"text {number}", "label": ("Good", "bad ", "n/a", "good")[number % 4]} for number in range(40)]
    files = {"train": str(write(tmp_path / "a.jsonl", rows))}
    row = row_of(files, CLASSES, split={"validation": 0.2, "test": 0.2})
    replace = {"label": {"Good": "good", "n/a": None}}
    replacing = row.model_copy(update={"source": row.source.model_copy(update={"replace": replace})})
    loaded = datasets.load(replacing, "mine")
    expected = {one["text"]: int(one["label"].strip().lower() == "good") for one in rows if one["label"] != "n/a"}
    found = pd.concat(frames(loaded).values())
    assert dict(zip(found["text"], found["label"], strict=True)) == expected
    assert loaded.dropped["missing"] == 10
    unread = row.model_copy(update={"source": row.source.model_copy(update={"replace": {"lable": {"a": "b"}}})})
    assert "a.jsonl: replace: no column 'lable'; did you mean label?" in refused(datasets.load, unread, "mine")


def test_a_file_is_read_from_another_folder_too(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", "text;label\nowl;good\n")
    monkeypatch.chdir(tmp_path)
    assert cells(os.path.relpath(tmp_path / "a.csv")) == [["owl", "good"]]
