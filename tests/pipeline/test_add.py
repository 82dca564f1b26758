"""A file of one's own gets a row: what is decided from its columns, what is refused, and that other rows stay."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import params
from pipeline.add import main
from tests.kit import refused, said, write
from tests.workspace import ROOT, copy_committed, read_yaml

QUEUES = ["billing", "other", "technical"]
OWN = Path("data/datasets.yaml")
ROWS = range(120)


def text(number):
    return f"The printer of room {number} prints page {number % 7} twice"


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """The tables, and files of a user, as the working directory."""
    monkeypatch.chdir(tmp_path)
    copy_committed()
    tickets = [{"id": row, "body": text(row), "queue": QUEUES[row % 3]} for row in ROWS]
    write("data/tickets.csv", tickets)
    write("data/two.csv", [ticket | {"team": ticket["id"] % 4} for ticket in tickets])
    write("data/bare.csv", "".join(f"{ticket['body']},{ticket['queue']}\n" for ticket in tickets))
    pairs = [{"question": text(row), "answer": text(ROWS[-1 - row]), "label": row % 2} for row in ROWS]
    write("data/pairs.tsv", pairs)
    write("data/ratings.jsonl", [{"review": text(row), "stars": row / 30, "spam": row % 2 == 0} for row in ROWS])
    asked = [{"prompt": f"Where is {row}?", "completion": text(row)} for row in ROWS]
    write("data/asked.jsonl", asked)
    write("data/talks.jsonl", [{"messages": talk(*row.values()), "prompt": "no"} for row in asked])
    tags = [["paper", "slow"], ["slow"], [], ["paper"], ["ink", "slow"]]
    write("data/tags.jsonl", [{"text": text(row), "tags": tags[row % 5], "n": row % 3} for row in ROWS])
    joined = [{"text": text(row), "queue": row % 3, "About": "| ".join(tags[row % 5])} for row in ROWS]
    write("data/joined.tsv", joined)
    commas = ["Home, kitchen", "Home, garden", "Toys, games", "Sport"]
    write("data/commas.csv", [{"text": text(row), "area": commas[row % 4]} for row in ROWS])
    write("data/stars.parquet", [{"text": text(row), "n": row % 5 + 1} for row in ROWS])


def talk(*contents):
    return [{"role": role, "content": one} for role, one in zip(("user", "assistant"), contents, strict=True)]


def two(first, second):
    return {"names": [first, second], "positive": second}


WRITTEN = ["exact_match", "rouge_l"]
SEVERAL = ["macro_f1", "micro_f1"]
TAGS = ["ink", "paper", "slow"]
COMMAS = ["Home, garden", "Home, kitchen", "Sport", "Toys, games"]
ABOUT = ["data/joined.tsv", "--label", "About"]
SPAM = ["data/ratings.jsonl", "--label", "spam"]
DECIDED = [
    (["data/tickets.csv"], ["body"], {"column": "queue", "names": QUEUES}, ["macro_f1", "accuracy"]),
    (["data/pairs.tsv"], ["question", "answer"], {"column": "label", **two("0", "1")}, ["accuracy", "f1"]),
    (["data/ratings.jsonl"], ["review"], {"column": "stars", "low": 0, "high": 119 / 30}, ["pearson", "spearman"]),
    (SPAM, ["review"], {"column": "spam", **two("false", "true")}, ["accuracy", "f1"]),
    (["data/asked.jsonl"], ["prompt"], {"completion": "completion"}, WRITTEN),
    (["data/talks.jsonl"], None, {"messages": "messages"}, WRITTEN),
    (["data/tags.jsonl"], ["text"], {"several": "tags", "names": TAGS}, SEVERAL),
    (ABOUT, ["text"], {"several": "About", "separator": "|", "names": TAGS}, SEVERAL),
    (["data/commas.csv"], ["text"], {"column": "area", "names": COMMAS}, ["macro_f1", "accuracy"]),
    (["data/stars.parquet"], ["text"], {"column": "n", "names": list("12345")}, ["macro_f1", "accuracy"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text", "label", "metrics"), DECIDED)
def test_the_columns_say_what_is_text_and_what_kind_of_label_there_is(words, text, label, metrics):
    shown = said(main, *words)
    ((name, row),) = read_yaml(OWN).items()
    assert row["source"] == {"kind": "files", "files": {"train": words[0]}}
    assert (row.get("text"), row["label"], row["metrics"]) == (text, label, metrics)
    assert row["cut"] == {"validation": 0.1, "test": 0.2}
    assert row.get("stratify", False) == (
        "column" in label and len(label.get("names", "")) > 2
    )  # 40 and 24 rows of a class are few
    assert params.load_row("data", name).where == "data/datasets.yaml"
    assert f"data/datasets.yaml: added {name}: 120 rows of {words[0]}\n" in shown
    more = "model=smollm2" if metrics == WRITTEN else "train.steps=auto"
    assert f"\nTo train: dvc exp run -S data={name} -S {more}\n" in shown


def test_what_was_decided_is_said():
    assert said(main, "data/tickets.csv", "--name", "mine").splitlines()[:5] == [
        "data/datasets.yaml: added mine: 120 rows of data/tickets.csv",
        "  text    body",
        "  label   queue, 3 classes: billing 40, other 40, technical 40",
        "  scores  macro_f1, accuracy",
        "  splits  train 84, validation 12, test 24, by a hash of the text",
    ]


def test_a_rare_class_is_noticed_and_scored_by_what_sees_it():
    write("data/rare.csv", [{"text": text(row), "label": "good" if row % 20 else "bad"} for row in range(2000)])
    shown = said(main, "data/rare.csv")
    assert "\n  scores  macro_f1, f1 of bad, accuracy\n" in shown
    assert read_yaml(OWN)["rare"]["label"]["positive"] == "bad"
    assert re.search(r"\n  rare    bad \d\d \(\d\.\d%\): macro_f1 sees them, and train.class_weights: balanced ", shown)
    assert read_yaml(OWN)["rare"].get("stratify") is None  # 100 rows are enough for a random cut


def test_comments_and_other_rows_stay_as_they_are():
    before = """# mine
first: # yes
    source: {kind: files, files: {train: data/stars.parquet}}
    text: [text]
    label: {column: n, low: 1, high: 5}
    metrics: [pearson]
    cut: {test: 0.2,
      validation: 0.1}
"""
    OWN.write_text(before)
    main(["data/tickets.csv"])
    assert OWN.read_text().startswith(f"{before}tickets:\n  source:\n")
    assert list(read_yaml(OWN)) == ["first", "tickets"]
    OWN.write_text("{}")
    refused(main, ["data/tickets.csv"], says="data/datasets.yaml: a row cannot be added at its end; ")
    assert OWN.read_text() == "{}"


MISTAKES = read_yaml(ROOT / "tests/pipeline/mistakes.yaml")


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message):
    Path("data/no.xlsx").write_text("")
    write("data/deep.jsonl", "[" * 100_000)
    os.mkfifo("data/pipe.csv")
    refused(main, words, says=message)
    assert not OWN.exists()


def test_labels_with_space_around_are_one_class():
    write("data/spaces.csv", [{"text": text(row), "label": ("neg", "pos", "neg ")[row % 3]} for row in ROWS])
    assert "  label   label, 2 classes: neg 80, pos 40\n" in said(main, "data/spaces.csv")


SHOPS = [{"shop": f"s{row % 3}", "text": text(row), "queue": QUEUES[row % 2 + row % 3 // 2]} for row in ROWS]


def test_a_column_of_tenants_gives_each_its_labels_and_one_that_may_be_of_them_is_noticed():
    write("data/shops.csv", SHOPS)
    shown = said(main, "data/shops.csv", "--tenant", "shop")
    row = read_yaml(OWN)["shops"]
    assert (row["tenant"], row["label"], row["metrics"]) == ("shop", {"column": "queue"}, ["accuracy", "macro_f1"])
    assert "  label   queue, for each of 3 tenants one of its labels, 2 labels each\n" in shown
    write("data/numbers.csv", [one | {"queue": at / 7} for at, one in enumerate(SHOPS)])
    main(["data/numbers.csv", "--tenant", "shop", "--label", "queue"])
    assert read_yaml(OWN)["numbers"]["label"] == {"column": "queue", "low": 0, "high": 17}
    write("data/may-be.csv", [{"Customer": one["shop"], **one} for one in SHOPS])
    shown = said(main, "data/may-be.csv", "--label", "queue")
    assert "if the column Customer says whose row it is: --tenant Customer\n" in shown


AT_ONCE = """
import sys, time
from pipeline import add

def slowly(path, read=add.read_yaml):
    content = read(path)
    time.sleep(0.5)
    return content

add.read_yaml = slowly
print("ready", flush=True)
sys.stdin.readline()
add.main(sys.argv[1:])
"""


def test_two_commands_at_once_both_add_their_row():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    commands = []
    for name in ("one", "two", "one"):
        words = [sys.executable, "-c", AT_ONCE, "data/tickets.csv", "--name", name]
        command = subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        commands.append(command)
    for command in commands:
        assert command.stdout.readline() == "ready\n"
    for command in commands:
        command.stdin.write("go\n")
        command.stdin.flush()
    shown = [command.communicate(timeout=60)[0] for command in commands]
    assert sorted(command.returncode for command in commands) == [0, 0, 2], shown
    assert sum("--name: there is a row one already" in text for text in shown) == 1
    assert sorted(read_yaml(OWN)) == ["one", "two"]
    assert not list(Path("data").glob("*.lock"))  # all files there are inputs of the pipeline
