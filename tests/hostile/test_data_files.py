"""Data files with any texts are read as pandas reads them; if bytes are changed, no row is lost, or it is a line."""

import csv
import json
import random

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import UserError
from pipeline.data import datasets
from tests.hostile.damaged import change_bytes
from tests.kit import LONGEST, NIGHTLY, write
from tests.pipeline.data.rows import frames, row_of

FILES = 250 if NIGHTLY else 15  # of each format
PIECES = (
    *("a", "Z", " ", "  ", "é", "ß", "東京", "🙂", "\u00a0", "\u2028", "\u0085", "NA", "null", "nan", "0", "1e9", "-"),
    *("'", '"', '""', ",", ";", "#", "\\", "\\n", "/", "=1+1", "{", "]", "<s>", "\u200b", "e\u0301", "x" * 300),
)
BREAKS = ("\n", "\r\n", "\t")


def texts(chance, pieces):
    """Different texts of these pieces."""
    count = chance.randint(2, 12)
    made = {"".join(chance.choices(pieces, k=chance.randint(1, 9))).strip() for _ in range(count)}
    return [f"{number} {text}" for number, text in enumerate(sorted(made))]


def write_csv(path, rows, chance):
    ending = chance.choice(("\n", "\r\n"))
    with path.open("w", encoding=chance.choice(("utf-8", "utf-8-sig")), newline="") as file:
        quoting = chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
        writer = csv.DictWriter(file, list(rows[0]), quoting=quoting, lineterminator=ending)
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.write(ending * (chance.random() < 0.1))


def write_tsv(path, rows, chance):
    lines = ["\t".join(map(str, cells)) for cells in (rows[0], *(row.values() for row in rows))]
    ending = chance.choice(("\n", "\r\n"))
    path.write_bytes("".join(f"{line}{ending}" for line in lines).encode())


def write_jsonl(path, rows, chance):
    lines = []
    for row in rows:
        cells = list(row.items())
        chance.shuffle(cells)
        lines.append(json.dumps(dict(cells), ensure_ascii=chance.random() < 0.5))
    path.write_bytes("\n".join(lines).encode())


def write_parquet(path, rows, chance):
    pd.DataFrame(rows).to_parquet(path, index=False, row_group_size=chance.choice((1, 3, 100)))


FORMATS = {  # pieces of texts, how a file is written, and how pandas reads it
    "csv": (PIECES + BREAKS, write_csv, lambda path: pd.read_csv(path, dtype=str, keep_default_na=False)),
    "tsv": (
        PIECES,
        write_tsv,
        lambda path: pd.read_csv(
            path, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False, lineterminator="\n"
        ),
    ),
    "jsonl": (PIECES + BREAKS, write_jsonl, lambda path: pd.read_json(path, lines=True, dtype=False)),
    "parquet": (PIECES + BREAKS, write_parquet, lambda path: pq.read_table(path).replace_schema_metadata().to_pandas()),
}


def loaded(path):
    """Return texts and labels that training reads of a file and how many rows it drops, or the line of its refusal."""
    held_out = {split: str(path.with_name(f"{split}.jsonl")) for split in ("validation", "test")}
    try:
        data = datasets.load(row_of({"train": str(path), **held_out}), "mine")
    except UserError as error:
        return None, 0, str(error)
    train = frames(data)["train"]
    return sorted(zip(train["text"], train["label"], strict=True)), sum(data.dropped.values()), ""


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_is_read_as_pandas_reads_it_and_a_damaged_one_too_or_it_is_refused_in_a_line(ending, tmp_path, trials):
    pieces, write_rows, read_by_pandas = FORMATS[ending]
    for split in ("validation", "test"):
        write(tmp_path / f"{split}.jsonl", [{"text": f"held out for {split}", "label": 1}])
    chance = random.Random(ending)
    refusals = 0
    for turn in range(FILES):
        trials["trials"] += 2  # the file, and what becomes of it
        path = tmp_path / f"train.{ending}"
        rows = [{"text": text, "label": at % 2, "more": len(text)} for at, text in enumerate(texts(chance, pieces))]
        write_rows(path, rows, chance)
        table = read_by_pandas(path)
        actual, dropped, line = loaded(path)
        assert actual == sorted(zip(table["text"], table["label"].astype(int), strict=True)), (turn, line)
        assert (len(actual), dropped) == (len(rows), 0)

        path.write_bytes(change_bytes(path.read_bytes(), chance))
        actual, dropped, line = loaded(path)
        if actual is None:
            refusals += 1
            assert 0 < len(line) <= LONGEST, (turn, line)
            assert "\n" not in line
        else:
            assert len(actual) + dropped == len(read_by_pandas(path)), (turn, path.read_bytes())
    assert 0 < refusals < FILES
