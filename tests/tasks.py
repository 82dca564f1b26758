"""Made-up rows in the formats of gluebenchmark.com and super.gluebenchmark.com, with their quirks.

A hidden file has HIDDEN rows, a validation file 12 and train enough that two in a hundred are some.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TRAIN, HELD_OUT, HIDDEN = 200, 12, 6
SPLITS = {"train": TRAIN, "dev": HELD_OUT, "test": HIDDEN}
NLI = ("entailment", "neutral", "contradiction")
ENTAILMENT = ("entailment", "not_entailment")
Record = dict[str, Any]


def sentence(number: int, verb: str = "sleeps") -> str:
    animal, place = ("cat", "dog", "owl")[number % 3], ("barn", "forest")[number % 2]
    return f'the {animal} number {number} {verb} in the "{place}'  # no quoting: one quote alone is text


def numbers(split: str) -> range:
    """Other ones in each split, so that no text is in two."""
    begin = {"train": 0, "dev": 1000, "test": 2000}[split]
    return range(begin, begin + SPLITS[split])


def save_glue(folder: Path) -> None:
    """Write the files of all tasks of GLUE below a folder."""
    single(folder / "SST-2", lambda n: [sentence(n), str(n % 2)], ["sentence", "label"], ["sentence"])
    save_cola(folder / "CoLA")
    save_mrpc(folder / "MRPC")
    save_qqp(folder / "QQP")
    pairs(folder / "STS-B", "sentence1", "sentence2", "score", lambda n: f"{n % 11 / 2:.3f}", "genre", "source1")
    pairs(folder / "QNLI", "question", "sentence", "label", lambda n: ENTAILMENT[n % 2])
    pairs(folder / "RTE", "sentence1", "sentence2", "label", lambda n: ENTAILMENT[n % 2])
    pairs(folder / "WNLI", "sentence1", "sentence2", "label", lambda n: str(n % 2))
    for dev in ("matched", "mismatched"):
        pairs(folder / "MNLI", "sentence1", "sentence2", "gold_label", lambda n: NLI[n % 3], "genre", ending=f"_{dev}")
    rows = [[str(n), sentence(n), sentence(n, "rests")] for n in numbers("test")]
    write(folder / "diagnostic/diagnostic.tsv", [["index", "sentence1", "sentence2"], *rows])


def write(path: Path, rows: list[list[str]], mark: str = "", end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mark + "".join("\t".join(row) + end for row in rows), encoding="utf-8", newline="")


def single(folder: Path, row: Callable[[int], list[str]], header: list[str], hidden: list[str]) -> None:
    for split in ("train", "dev"):
        write(folder / f"{split}.tsv", [header, *map(row, numbers(split))])
    rows = [[str(place), *row(n)[: len(hidden)]] for place, n in enumerate(numbers("test"))]
    write(folder / "test.tsv", [["index", *hidden], *rows])


def pairs(
    folder: Path, first: str, second: str, label: str, of: Callable[[int], str], *between: str, ending: str = ""
) -> None:
    """Files with an index, perhaps other columns, two texts and, unless they are hidden, a label at the end."""
    header = ["index", *between, first, second]
    for split in ("train", "dev"):
        rows = [[str(n), *between, sentence(n), sentence(n, "rests"), of(n)] for n in numbers(split)]
        write(folder / f"{split}{ending if split == 'dev' else ''}.tsv", [[*header, label], *rows])
    rows = [[str(place), *between, sentence(n), sentence(n, "rests")] for place, n in enumerate(numbers("test"))]
    write(folder / f"test{ending}.tsv", [header, *rows])


def save_cola(folder: Path) -> None:
    """No header but in the hidden file."""
    for split in ("train", "dev"):
        rows = [["gj04", str(n % 2), "*" if n % 2 == 0 else "", sentence(n)] for n in numbers(split)]
        write(folder / f"{split}.tsv", rows)
    hidden = [[str(place), sentence(n)] for place, n in enumerate(numbers("test"))]
    write(folder / "test.tsv", [["index", "sentence"], *hidden])


def save_mrpc(folder: Path) -> None:
    """A byte order mark, Windows' line ends, and column names with signs; and the files as they were before GLUE."""
    header = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]

    def rows(split: str) -> list[list[str]]:
        return [[str(n % 2), str(n), str(n + 1), sentence(n), sentence(n, "rests")] for n in numbers(split)]

    mark, end = "\ufeff", "\r\n"
    for name, split in (("train.tsv", "train"), ("dev.tsv", "dev"), ("msr_paraphrase_train.txt", "train")):
        write(folder / name, [header, *rows(split)], mark, end)
    write(folder / "msr_paraphrase_test.txt", [header, *rows("test")], mark, end)
    hidden = [[str(place), *row[1:]] for place, row in enumerate(rows("test"))]
    write(folder / "test.tsv", [["index", *header[1:]], *hidden], mark, end)


def save_qqp(folder: Path) -> None:
    """One line of train is torn in two."""
    pairs(folder, "question1", "question2", "is_duplicate", lambda n: str(n % 2), "qid1", "qid2")
    path = folder / "train.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], lines[5].replace(" rests", "\nrests"), *lines[6:], ""]))


def save_superglue(folder: Path) -> None:
    """Write the files of all tasks of SuperGLUE below a folder, but ReCoRD."""
    for task, record in RECORDS.items():
        for split, name in (("train", "train"), ("dev", "val"), ("test", "test")):
            lines = [record(place, n, split == "test") for place, n in enumerate(numbers(split))]
            write_lines(folder / task / f"{name}.jsonl", lines)
    for task, first, second in (("AX-b", "sentence1", "sentence2"), ("AX-g", "premise", "hypothesis")):
        rows = enumerate(numbers("test"))
        lines = [pair(first, second)(place, n, False) | {"label": ENTAILMENT[place // 2 % 2]} for place, n in rows]
        write_lines(folder / task / f"{task}.jsonl", lines)


def write_lines(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def labelled(label: Any, hidden: bool) -> Record:
    return {} if hidden else {"label": label}


def pair(first: str, second: str, names: tuple[str, ...] = ENTAILMENT) -> Callable[[int, int, bool], Record]:
    return lambda place, n, hidden: {
        first: sentence(n),
        second: sentence(n, "rests"),
        "idx": place,
        **labelled(names[n % len(names)], hidden),
    }


def boolq(place: int, n: int, hidden: bool) -> Record:
    return {"question": f"is it {n}", "passage": sentence(n), "idx": place, **labelled(n % 2 == 0, hidden)}


def copa(place: int, n: int, hidden: bool) -> Record:
    texts = {"premise": sentence(n), "choice1": f"it rests {n}", "choice2": f"nobody saw it {n}"}
    return texts | {"question": ("cause", "effect")[n % 2], "idx": place, **labelled(n // 2 % 2, hidden)}


def multirc(place: int, n: int, hidden: bool) -> Record:
    """A passage with two questions of two and three answers; numbers of questions and answers go on over passages."""
    questions = []
    for question, count in ((2 * place, 2), (2 * place + 1, 3)):
        first = 5 * place + 2 * (question % 2)
        answers = [
            {"text": f"in place {answer}", "idx": first + answer, **labelled(int(answer == n % 2), hidden)}
            for answer in range(count)
        ]
        questions.append({"question": f"where was it {question}", "idx": question, "answers": answers})
    return {"idx": place, "version": 1.1, "passage": {"text": sentence(n), "questions": questions}}


def wic(place: int, n: int, hidden: bool) -> Record:
    first, second = sentence(n), sentence(n, "rests")
    starts = {"start1": 4, "end1": 7, "start2": second.index("rests"), "end2": second.index("rests") + 5}
    texts = {"word": "cat", "sentence1": first, "sentence2": second}
    return texts | {"idx": place, "version": 1.1, **starts, **labelled(n % 2 == 1, hidden)}


def wsc(place: int, n: int, hidden: bool) -> Record:
    """Of every other one, the pronoun's word is one more than its number says."""
    text = f"The cat number {n} saw the dog, but it slept"
    spans = {"span1_index": 0, "span1_text": "the cat", "span2_index": 8 - n % 2, "span2_text": "it"}
    return {"text": text, "target": spans, "idx": place, **labelled(n % 3 == 0, hidden)}


RECORDS: dict[str, Callable[[int, int, bool], Record]] = {
    "BoolQ": boolq,
    "CB": pair("premise", "hypothesis", ("entailment", "contradiction", "neutral")),
    "COPA": copa,
    "MultiRC": multirc,
    "RTE": pair("premise", "hypothesis"),
    "WiC": wic,
    "WSC": wsc,
}


def flat_multirc(records: list[Record]) -> Iterator[Record]:
    """As the hub has it: a row for each answer."""
    for record in records:
        for question in record["passage"]["questions"]:
            for answer in question["answers"]:
                yield {
                    "paragraph": record["passage"]["text"],
                    "question": question["question"],
                    "answer": answer["text"],
                    "idx": {"paragraph": record["idx"], "question": question["idx"], "answer": answer["idx"]},
                    "label": answer.get("label", -1),
                }
