"""Recognize the encoding and the delimiter of data files.

The results become keys of a source, by which later stages read the file without recognizing it again.
"""

import codecs
import re
from collections.abc import Collection, Mapping
from itertools import chain, islice
from pathlib import Path

from charset_normalizer import CharsetMatch, from_bytes

from pipeline.core.errors import UserError, as_user_error
from pipeline.data import excel, files, letters, opening
from pipeline.params.sources import (
    CSV,
    EXCEL,
    ONLY_FOR,
    SEPARATED,
    TEXTUAL,
    Split,
    TableSource,
    check_encoding,
    ending_of,
)

MARKS = {  # byte order marks; UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: None,
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What programs write, other than UTF-8. Of encodings in which a file has the same text, it is the first one.
ENCODINGS = [
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "mac_roman", "koi8_r"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
]
PREFERENCE = 0.7  # nats by which an encoding in this list is less likely than the one before it
JAPANESE = ("cp932", "euc_jp")
SAMPLE = 65_536  # bytes of lines that are not UTF-8
HIRAGANA = re.compile("[\u3041-\u3096]")
MIN_HIRAGANA = 0.1  # smallest share of hiragana among the non-ASCII characters of a Japanese text
WORD = re.compile(r"\w*[^\W\x00-\x7f]\w*")  # a word with a character beyond ASCII
DELIMITERS = {",": "commas", ";": "semicolons", files.TAB: "tabs", "|": "vertical bars"}
SHOWN = 3  # words
LONGEST = 20  # characters of one
ROWS = 1000  # number of rows that decide between these formats
Rows = list[list[str | None]]


def source_of(path: Path, encoding: str | None = None, sheet: str | None = None) -> TableSource:
    """Return a source with a file as its train split; an encoding that is not given is recognized.

    Raises:
        ValueError: or an OSError, if it cannot be read, to be `sources.wrap_reading_errors`.
    """
    opening.check_is_file(path, "the current folder")
    ending = ending_of(path)
    delimiter = None
    if ending in TEXTUAL and encoding is None:
        encoding = encoding_of(path)
    if ending in SEPARATED:
        delimiter = delimiter_of(path, encoding)
    files_of: dict[Split, str] = {"train": path.as_posix()}
    return _source(files_of, {"encoding": encoding, "delimiter": delimiter, "sheet": sheet})


def check_options(paths: Collection[Path], encoding: str | None, sheet: str | None) -> None:
    """Check that the options --encoding and --sheet have an effect on one of some files.

    Raises:
        UserError: if one has none, or there is no such encoding.
    """
    endings = set(map(ending_of, paths))
    if encoding is not None:
        with as_user_error(ValueError, before="--encoding: "):
            check_encoding(encoding)
        if endings.isdisjoint(TEXTUAL):
            raise UserError(f"--encoding: has no effect; it is for {', '.join(TEXTUAL)}")
    if sheet is not None and EXCEL not in endings:
        raise UserError(f"--sheet: has no effect; it is for {EXCEL}")


def join_sources(parts: Mapping[Split, TableSource]) -> TableSource:
    """Return one source with the file of each part as a split.

    Raises:
        UserError: if two files differ in encoding or delimiter, which one source cannot describe.
    """
    files_of = {split: part.files["train"] for split, part in parts.items()}
    keys = dict[str, str | None]()
    for key, endings in ONLY_FOR.items():
        values = dict[str, str | None]()
        for split, file in files_of.items():
            if ending_of(file) in endings:
                values[file] = getattr(parts[split], key)
        if key == "encoding":
            values = _without_ascii(values)
        keys[key] = _common(key, values)
    return _source(files_of, keys)


def _common(key: str, values: Mapping[str, str | None]) -> str | None:
    """Return the value of a key that all files have; None if there are no files.

    Raises:
        UserError: if they have different ones.
    """
    different = set(values.values())
    if len(different) > 1:
        parts = [f"{file} has {value or 'the default'}" for file, value in values.items()]
        shown = " and ".join(parts)
        raise UserError(f"{key}: {shown}; save the files in the same way")
    return different.pop() if different else None


def _source(files_of: Mapping[Split, str], keys: Mapping[str, str | None]) -> TableSource:
    return TableSource.model_validate({"kind": "files", "files": files_of, **keys})


def _without_ascii(encodings: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the encodings of files, ignoring ASCII files if others have an encoding that contains ASCII."""
    names = set(encodings.values()) - {None}
    if not names or any(str(name).startswith("utf") for name in names):
        return dict(encodings)
    others = dict[str, str | None]()
    for file, encoding in encodings.items():
        if encoding is not None or not _is_ascii(Path(file)):
            others[file] = encoding
    return others


def _is_ascii(path: Path) -> bool:
    with opening.open_bytes(path) as file:
        return all(line.isascii() for line in file)


def words_of(source: TableSource) -> str:
    """Describe the encoding and delimiter of a source's first file; empty for UTF-8 with the usual delimiter."""
    path = Path(next(iter(source.files.values())))
    words = list[str]()
    if source.encoding is not None:
        example = _example(path, source.encoding)
        words.append(f"{source.encoding}{example}")
    if source.delimiter is not None:
        delimiter = DELIMITERS[source.delimiter]
        words.append(f"{delimiter} between columns")
    sheet = describe_sheet(source)
    if sheet:
        words.append(sheet)
    return ", ".join(words)


def describe_sheet(source: TableSource) -> str:
    """Describe the sheet that is read of a source's first file; empty if it is chosen, or there is only one."""
    path = Path(next(iter(source.files.values())))
    if ending_of(path) != EXCEL or source.sheet is not None:
        return ""
    names = excel.sheets(path)
    return f"the sheet {names[0]}, the first of {len(names)}" if len(names) > 1 else ""


def _example(path: Path, encoding: str) -> str:
    """Return the first non-ASCII words of a file as an example; empty if there are none."""
    words = dict[str, None]()
    with opening.open_text(path, encoding) as file:
        for line in file:
            words |= dict.fromkeys(WORD.findall(line))
            if len(words) >= SHOWN:
                break
    first = [word[:LONGEST] for word in islice(words, SHOWN)]
    return f" (as in {', '.join(first)})" if first else ""


def encoding_of(path: Path) -> str | None:
    """Return the encoding of a file of text: None for UTF-8, of which ASCII is a part.

    Raises:
        ValueError: if at least as many non-ASCII lines are UTF-8 as are not, or no encoding is recognized.
    """
    with opening.open_bytes(path) as file:
        first = file.readline()
        begin = first[:4]
        for mark, encoding in MARKS.items():
            if begin.startswith(mark):
                return encoding
        if b"\0" in begin:  # a name of a column, or a bracket, in two bytes each
            return "utf-16-be" if begin.startswith(b"\0") else "utf-16-le"
        count = 0
        sample = bytearray()
        first_other = 0
        others = 0
        for number, line in enumerate(chain([first], file), start=1):
            if line.isascii():
                continue
            if files.is_utf_8(line):
                count += 1
                continue
            others += 1
            first_other = first_other or number
            if not sample or len(sample) + len(line) <= SAMPLE:
                sample += line
    if not others:
        return None
    if count >= others:
        raise ValueError(f"line {first_other} is not UTF-8, but {count:,} others are; fix it, or set --encoding")
    return _likeliest(bytes(sample))


def _likeliest(sample: bytes) -> str:
    """Return the encoding that fits a text best.

    Raises:
        ValueError: if none does.
    """
    matches = from_bytes(sample, cp_isolation=ENCODINGS, preemptive_behaviour=False, enable_fallback=False)
    best = min(matches, key=_misfit, default=None)
    if best is None:
        raise ValueError("the encoding is not recognized; save the file as UTF-8, or set --encoding")
    return ENCODINGS[_preference(best)]


def _misfit(match: CharsetMatch) -> tuple[bool, float]:
    """Return a sort key, lower for encodings that fit better: first the surprise of the decoded text, in nats.

    It is that of the letters of the language that fits best. The mess that charset-normalizer finds, as a share of the
    characters, distinguishes Chinese from Korean; of near ties, the more usual encoding wins. Every Japanese text has
    hiragana, and hardly any misread one does: without this criterion, Japanese texts are taken for Korean or Chinese.
    """
    text = str(match)
    beyond = letters.BEYOND_ASCII.findall(text)
    hiragana = HIRAGANA.findall(text)
    has_hiragana = len(hiragana) >= MIN_HIRAGANA * len(beyond)
    is_japanese = match.encoding in JAPANESE and has_hiragana
    mess = letters.MISFIT * match.chaos * len(beyond)
    return not is_japanese, letters.misfit(text) + mess + PREFERENCE * _preference(match)


def _preference(match: CharsetMatch) -> int:
    """Return the index in ENCODINGS of the first encoding that decodes a text equally."""
    alike = set(match.could_be_from_charset).intersection(ENCODINGS)
    return min(map(ENCODINGS.index, alike))


def delimiter_of(path: Path, encoding: str | None) -> str | None:
    """Return the delimiter of a file; None if it is the usual one for the extension.

    The delimiter splits the first rows into equally many columns, more than one. `csv.Sniffer` counts characters
    instead, and takes the comma in `name, first;label`.
    """
    ending = ending_of(path)
    usual = _first_rows(path, ending, encoding, None)
    if ending != CSV:
        quoted = _first_rows(path, ending, encoding, files.TAB)
        if _is_regular(quoted):
            return None if quoted == usual else files.TAB
    if _is_regular(usual):
        return None
    widths: dict[str | None, int] = {None: _width(usual)}
    for delimiter in DELIMITERS:
        rows = _first_rows(path, ending, encoding, delimiter)
        if _is_regular(rows):
            return delimiter
        widths[delimiter] = _width(rows)
    return max(widths, key=lambda delimiter: widths[delimiter])  # a later line is broken, which reading will report


def _first_rows(path: Path, ending: str, encoding: str | None, delimiter: str | None) -> Rows:
    """Return the first rows of a file split by a delimiter, with an empty one at the end if that is an error.

    A tsv file is read to its end: quotes that are part of texts may cause an error anywhere.
    """
    rows = Rows()
    split = files.fields_of(ending, delimiter)
    with opening.open_text(path, encoding) as file:
        try:
            for _, fields in islice(split(file), ROWS if ending == CSV else None):
                if len(rows) < ROWS:
                    rows.append(list(fields))
        except ValueError:
            rows.append([])
    return rows


def _is_regular(rows: Rows) -> bool:
    widths = set(map(len, rows))
    return len(widths) == 1 and min(widths) > 1


def _width(rows: Rows) -> int:
    return len(rows[0]) if rows else 0
