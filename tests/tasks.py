"""The official files of GLUE and SuperGLUE, in the formats of their servers: a few made-up rows of each."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tests import workspace
from tests.kit import write

NLI = ("entailment", "contradiction", "neutral")
ENTAILMENT = ("entailment", "not_entailment")


class Form(NamedTuple):
    """The header and rows of a file, and the examples that they are.

    SPLIT stands for words that are different in each split, and in each repetition of the rows.
    """

    header: str
    rows: str
    examples: list[tuple[Any, ...]]


def lines(*records: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def entailment(form: str) -> Form:
    examples = [("SPLIT", "one", 0), ("SPLIT", "two", 1)]
    if form == "jsonl":
        records = [{"premise": a, "hypothesis": b, "idx": 0, "label": ENTAILMENT[label]} for a, b, label in examples]
        return Form("", lines(*records), examples)
    return Form(f"index\t{form}\tlabel\n", "".join(f"0\t{a}\t{b}\t{ENTAILMENT[c]}\n" for a, b, c in examples), examples)


def answer(number: int, label: int) -> dict[str, Any]:
    return {"text": f"answer {number}", "idx": number, "label": label}


PASSAGE = [
    {"question": "where", "idx": 0, "answers": [answer(0, 0), answer(1, 1)]},
    {"question": "when", "idx": 1, "answers": [answer(2, 1)]},
]
OWL = {"sentence1": "the owl in SPLIT", "start1": 4, "end1": 7, "sentence2": "an owl", "start2": 3, "end2": 6}
CAT = "The cat in SPLIT saw the dog, but it slept"
SPANS = {"span1_index": 0, "span1_text": "the cat", "span2_index": 9, "span2_text": "it"}  # the second is off by some
FORMS = {
    "sst2": Form("sentence\tlabel\n", 'in SPLIT "bad\t0\nSPLIT good\t1\n', [('in SPLIT "bad', 0), ("SPLIT good", 1)]),
    "cola": Form("", "gj04\t1\t\tSPLIT sings\ngj04\t0\t*\tSPLIT sing\n", [("SPLIT sings", 1), ("SPLIT sing", 0)]),
    "mrpc": Form(
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n",
        "1\t1\t2\tSPLIT\tone\r\n0\t3\t4\tSPLIT\ttwo\r\n",
        [("SPLIT", "one", 1), ("SPLIT", "two", 0)],
    ),
    "stsb": Form(
        "index\tsentence1\tsentence2\tscore\n",
        "0\tSPLIT\tone\t2.500\n1\tSPLIT\ttwo\t5.000\n",
        [("SPLIT", "one", 2.5), ("SPLIT", "two", 5.0)],
    ),
    "qqp": Form(  # the row in the middle is broken in two
        "id\tquestion1\tquestion2\tis_duplicate\n",
        "0\tSPLIT\tone\t1\n1\tSPLIT is\nbroken\t0\n2\tSPLIT\ttwo\t0\n",
        [("SPLIT", "one", 1), ("SPLIT", "two", 0)],
    ),
    "mnli": Form(
        "sentence1\tsentence2\tgold_label\n",
        "SPLIT\t1\tneutral\nSPLIT\t2\tcontradiction\nSPLIT\t3\tentailment\n",
        [("SPLIT", "1", 1), ("SPLIT", "2", 2), ("SPLIT", "3", 0)],
    ),
    "qnli": entailment("question\tsentence"),
    "rte": entailment("sentence1\tsentence2"),
    "wnli": Form(
        "index\tsentence1\tsentence2\tlabel\n",
        "0\tSPLIT\tone\t1\n1\tSPLIT\ttwo\t0\n",
        [("SPLIT", "one", 1), ("SPLIT", "two", 0)],
    ),
    "boolq": Form(
        "",
        lines(*({"question": f"is it {label}", "passage": "SPLIT", "label": label} for label in (True, False))),
        [("is it True", "SPLIT", 1), ("is it False", "SPLIT", 0)],
    ),
    "cb": Form(
        "",
        lines(*({"premise": "SPLIT", "hypothesis": name, "label": name, "idx": 0} for name in NLI)),
        [("SPLIT", name, number) for number, name in enumerate(NLI)],
    ),
    "copa": Form(
        "",
        lines({"premise": "SPLIT", "choice1": "so", "choice2": "no", "question": "cause", "label": 1}),
        [("SPLIT What was the cause?", "so", 0, 0), ("SPLIT What was the cause?", "no", 1, 0)],
    ),
    "multirc": Form(
        "",
        lines({"idx": 0, "version": 1.1, "passage": {"text": "SPLIT", "questions": PASSAGE}}),
        [("SPLIT", "where answer 0", 0, 0), ("SPLIT", "where answer 1", 1, 0), ("SPLIT", "when answer 2", 1, 1)],
    ),
    "superglue-rte": entailment("jsonl"),
    "wic": Form(
        "",
        lines(OWL | {"label": True}, OWL | {"sentence2": "no owl", "label": False}),
        [("the *owl* in SPLIT", "an *owl*", 1), ("the *owl* in SPLIT", "no *owl*", 0)],
    ),
    "wsc": Form(
        "",
        lines({"text": CAT, "target": SPANS, "label": True}, {"text": f"{CAT}.", "target": SPANS, "label": False}),
        [("*The cat* in SPLIT saw the dog, but #it# slept", 1), ("*The cat* in SPLIT saw the dog, but #it# slept.", 0)],
    ),
}


def use_files(folder: Path, *names: str, train: int = 40, test: int = 8) -> None:
    """Choose `kind: files` in the rows of tasks, and write their files with so many repetitions of the rows."""
    path = folder / "pipeline/datasets.yaml"
    rows = workspace.read_yaml(path)
    for name in names:
        rows[name]["source"]["kind"] = "files"
        for split, count in (("train", train), ("test", test)):
            file = folder / rows[name]["source"]["files"][split]
            file.parent.mkdir(parents=True, exist_ok=True)
            content = "".join(FORMS[name].rows.replace("SPLIT", f"{split} {number}") for number in range(count))
            file.write_text(FORMS[name].header + content, encoding="utf-8", newline="")
    write(path, rows)
