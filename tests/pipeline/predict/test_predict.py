"""The command that asks a trained adapter: what it says, and one line with exit code 2 for each mistake."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lsr.__main__ import main as lsr_main
from pipeline import params
from pipeline.core import artifacts
from pipeline.data import pretrained, sources
from pipeline.predict import __main__ as predict
from pipeline.predict import opening, places
from stages import evaluate, factorize_init, tokenize, train
from tests import forked, workspace

STAGES = (
    (tokenize, params.TokenizeView),
    (factorize_init, params.FactorizeInitView),
    (train, params.TrainView),
    (evaluate, params.EvaluateView),
)
SENTENCE = "the cat number 3 sleeps in the barn"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that returns a folder after all four stages, which nobody changes."""
    done = {}

    def folder_of(name, **changes):
        if name not in done:
            folder = done[name] = workspace.make(tmp_path_factory.mktemp(name), **changes)
            rows = workspace.read_yaml(folder / "pipeline/datasets.yaml")
            rows["one-text"] = rows["glue"] | {"text": ["sentence1"]}
            workspace.write_yaml(folder / "pipeline/datasets.yaml", rows)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.delenv("DVC_ROOT", raising=False)
                for stage, view in STAGES:
                    stage.main(params.load(view))
        return done[name]

    return folder_of


@pytest.fixture
def at(trained, tmp_path, monkeypatch):
    """A function that goes to a copy of a folder after all four stages."""

    def go(name, **changes):
        shutil.copytree(trained(name, **changes), tmp_path / "here")
        monkeypatch.chdir(tmp_path / "here")
        return tmp_path / "here"

    return go


@pytest.fixture
def one(at):
    """A folder with an adapter of one text."""
    return at("one", data="one-text", lsr={"learning_rate": 0.05})


@pytest.fixture
def pairs(at):
    """A folder with an adapter of pairs."""
    return at("lsr", lsr={"learning_rate": 0.05}, evaluate={"export": ["lora", "merged"]})


def ok(capsys, *words):
    """Run a command that should work; return what it prints."""
    capsys.readouterr()
    code = predict.main(words)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def mistake(capsys, *words):
    """Run a command that should be refused; return its one line."""
    capsys.readouterr()
    try:
        code = predict.main(words)
    except SystemExit as left:
        code = left.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    (line,) = printed.err.splitlines()
    assert line.startswith("python -m pipeline.predict: ")
    return line.removeprefix("python -m pipeline.predict: ")


def typed(monkeypatch, content):
    """Let standard input hold these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


# What it says


@pytest.mark.parametrize("adapter", workspace.MAIN)
def test_it_says_what_the_pipeline_scored(at, capsys, adapter):
    at(f"all-{adapter}", adapter=adapter, **({} if adapter == "head" else {adapter: {"learning_rate": 0.05}}))
    scored = list(csv.DictReader(artifacts.EVALUATE_PREDICTIONS.open(newline="")))
    asked = table(ok(capsys, "--file", str(artifacts.EVALUATE_PREDICTIONS), "--column", "text", "text_pair"))
    assert [(row["text"], row["text_pair"], row["label"]) for row in asked] == [
        (row["text"], row["text_pair"], row["predicted"]) for row in scored
    ]
    for row, expected in zip(asked, scored, strict=True):
        assert float(row[f"p({row['label']})"]) == pytest.approx(float(expected["confidence"]), abs=0.0051)
        assert float(row["p(not_equivalent)"]) + float(row["p(equivalent)"]) == pytest.approx(1, abs=2e-6)


def test_the_exported_lora_says_the_same(pairs, capsys):
    words = (SENTENCE, "nobody saw 3 today", "--json")
    found = [json.loads(ok(capsys, "--adapter", f"artifacts/{name}", *words)) for name in ("adapter", "exports/lora")]
    assert found[0].keys() == {"text", "text_pair", "label", "probabilities"}
    assert found[0]["label"] == found[1]["label"]
    assert found[0]["probabilities"] == pytest.approx(found[1]["probabilities"], abs=1e-5)


def test_a_regression_says_a_number(at, capsys):
    at("ratings", data="ratings")
    scored = list(csv.DictReader(artifacts.EVALUATE_PREDICTIONS.open(newline="")))
    asked = table(ok(capsys, *(row["text"] for row in scored)))
    assert asked[0].keys() == {"text", "number"}
    assert [float(row["number"]) for row in asked] == pytest.approx(
        [float(row["predicted"]) for row in scored], rel=0.0051
    )


def test_the_batch_size_changes_neither_order_nor_outcome(one, capsys):
    texts = [" ".join(SENTENCE.split()[:length]) for length in (7, 2, 5, 1, 8, 3)]
    found = [table(ok(capsys, "--batch-size", size, *texts)) for size in ("1", "4", "32")]
    assert [row["text"] for row in found[0]] == texts
    assert len({row["p(equivalent)"] for row in found[0]}) > 1
    for other in found[1:]:
        for row, expected in zip(other, found[0], strict=True):
            assert float(row["p(equivalent)"]) == pytest.approx(float(expected["p(equivalent)"]), abs=1e-5)


def test_a_long_text_is_cut_as_in_training_and_counted(one, capsys):
    long = " ".join(f"{SENTENCE} {number}" for number in range(20))
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    assert len(tokenizer(long)["input_ids"]) > 24  # the max_length of the workspace
    kept = tokenizer(long, truncation=True, max_length=24)["input_ids"]
    rows = table(ok(capsys, long, tokenizer.decode(kept, skip_special_tokens=True)))
    assert rows[0]["p(equivalent)"] == rows[1]["p(equivalent)"]
    predict.main([long, "the cat"])
    assert "1 of 2 texts truncated to 24 tokens\n" in capsys.readouterr().err
    predict.main([long, "the cat", "--max-length", "10"])
    assert "1 of 2 texts truncated to 10 tokens\n" in capsys.readouterr().err


# Where texts come from


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_file_says_what_the_arguments_say(one, capsys, ending):
    texts = [SENTENCE, "an owl, at night", "naïve ☃"]
    frame = pd.DataFrame({"id": ["a", "b", "c"], "sentence1": texts})
    path = f"in.{ending}"
    match ending:
        case "csv":
            frame.to_csv(path, index=False)
        case "tsv":
            frame.to_csv(path, index=False, sep="\t")
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "parquet":
            frame.to_parquet(path)
    expected = [
        {"id": key, "sentence1": row.pop("text"), **row}
        for key, row in zip("abc", table(ok(capsys, *texts)), strict=True)
    ]
    assert table(ok(capsys, "--file", path)) == expected
    assert table(ok(capsys, "--file", path, "--column", "sentence1")) == expected


def test_the_only_column_needs_no_name(one, capsys):
    Path("in.csv").write_text(f"text\n{SENTENCE}\n")
    assert ok(capsys, "--file", "in.csv") == ok(capsys, SENTENCE)


def test_other_columns_are_kept_as_they_are_and_give_way_to_none_of_ours(one, capsys):
    records = [{"n": 3, "label": "good", "sentence1": SENTENCE}, {"sentence1": "an owl", "late": [1, None]}]
    Path("in.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    found = [json.loads(line) for line in ok(capsys, "--file", "in.jsonl", "--json").splitlines()]
    assert [list(record) for record in found] == [
        ["n", "label", "sentence1", "late", "predicted_label", "probabilities"]
    ] * 2
    assert found[0]["label"] == "good"
    assert found[0]["predicted_label"] in ("equivalent", "not_equivalent")
    assert (found[1]["n"], found[1]["late"]) == (None, [1, None])


def test_a_file_is_read_a_batch_at_a_time_and_nothing_is_said_before_all_of_it_is_checked(one, capsys, monkeypatch):
    texts = [" ".join(SENTENCE.split()[: 1 + number % 8]) for number in range(11)]
    Path("in.csv").write_text("id,text\n" + "".join(f"{n},{text}\n" for n, text in enumerate(texts)))
    words = ("--file", "in.csv", "--column", "text")
    whole = ok(capsys, *words)
    monkeypatch.setattr(sources, "BATCH", 4)
    sizes, asked = [], predict.logits_of
    monkeypatch.setattr(predict, "logits_of", lambda *given: (sizes.append(len(given[2].texts)), asked(*given))[1])
    batched = ok(capsys, *words)
    assert sizes == [4, 4, 3]
    for row, expected in zip(table(batched), table(whole), strict=True):
        assert (row["id"], row["text"], row["label"]) == (expected["id"], expected["text"], expected["label"])
    Path("in.csv").write_text(Path("in.csv").read_text() + "11, \n")
    assert mistake(capsys, *words) == "--file: in.csv: row 12: is empty; needed: a text, or --skip-empty"


def test_rows_without_a_text_are_left_out_and_named(one, capsys):
    Path("in.csv").write_text(f"id,text\n1,\n2,{SENTENCE}\n3, \n")
    capsys.readouterr()
    assert predict.main(["--file", "in.csv", "--column", "text", "--skip-empty"]) == 0
    printed = capsys.readouterr()
    assert [row["id"] for row in table(printed.out)] == ["2"]
    assert printed.err == "--file: in.csv: rows without text skipped: 2 of 3: 1, 3\n"
    Path("in.csv").write_text("id,text\n1,\n")
    assert predict.main(["--file", "in.csv", "--column", "text", "--skip-empty"]) == 2
    assert capsys.readouterr().err.endswith("--file: in.csv: rows: none has text\n")


def test_it_runs_from_any_folder(one, capsys, monkeypatch, tmp_path):
    expected = ok(capsys, SENTENCE)
    monkeypatch.setattr(places, "REPOSITORY", one)
    (tmp_path / "far").mkdir()
    monkeypatch.chdir(tmp_path / "far")
    assert ok(capsys, SENTENCE) == expected


@pytest.mark.parametrize("words", [(), ("-",)])
def test_standard_input_holds_one_text_a_line(one, capsys, monkeypatch, words):
    typed(monkeypatch, f"\ufeff{SENTENCE}\r\nan owl\n".encode())
    assert ok(capsys, *words) == ok(capsys, SENTENCE, "an owl")


def test_pairs_are_two_arguments_a_line_with_a_tab_or_two_columns(pairs, capsys, monkeypatch):
    expected = ok(capsys, SENTENCE, "an owl", "a fox", "a hen")
    assert [(row["text"], row["text_pair"]) for row in table(expected)] == [(SENTENCE, "an owl"), ("a fox", "a hen")]
    typed(monkeypatch, f"{SENTENCE}\tan owl\na fox\ta hen\n".encode())
    assert ok(capsys) == expected
    Path("in.csv").write_text(f"text_pair,text,sentence2,sentence1\nan owl,{SENTENCE},an owl,{SENTENCE}\n")
    for words in ((), ("--column", "text", "text_pair")):
        (found,) = table(ok(capsys, "--file", "in.csv", *words))
        assert {name: found[name] for name in table(expected)[0]} == table(expected)[0]


# Where the base model comes from


def test_the_named_base_may_be_elsewhere(one, capsys):
    expected = ok(capsys, SENTENCE)
    Path("tiny-roberta").rename("moved")
    assert "base model tiny-roberta: cannot be loaded" in mistake(capsys, SENTENCE)
    assert ok(capsys, SENTENCE, "--base", "moved") == expected


def test_a_base_that_an_installed_package_holds_needs_no_name(one, capsys, monkeypatch):
    expected = ok(capsys, SENTENCE)
    Path("carrying").mkdir()
    Path("tiny-roberta").rename("carrying/model")
    Path("carrying/__init__.py").write_text("raise RuntimeError('the code of the package was run')")
    digest = hashlib.sha256(Path("carrying/model/model.safetensors").read_bytes()).hexdigest()
    source = {"kind": "package", "package": "carrying==1.0", "folder": "carrying/model", "same_as": "someone/tiny"}
    rows = workspace.read_yaml(Path("pipeline/models.yaml"))
    row = {"source": {**source, "sha256": digest}, **workspace.TINY_ROW}
    workspace.write_yaml(Path("pipeline/models.yaml"), rows | {"carried": row})
    path = artifacts.ADAPTER / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/tiny"}))
    assert mistake(capsys, SENTENCE).startswith("pipeline/models.yaml: package carrying==1.0 is not installed; install")
    monkeypatch.setattr(pretrained, "version", {"carrying": "1.0"}.__getitem__)
    monkeypatch.syspath_prepend(str(one))
    assert ok(capsys, SENTENCE) == expected


# Where it goes


def test_a_file_is_written_by_its_ending(one, capsys):
    printed = ok(capsys, SENTENCE), ok(capsys, SENTENCE, "--json")
    assert ok(capsys, SENTENCE, "--out", "new/out.csv") == ""
    assert ok(capsys, SENTENCE, "--out", "out.jsonl", "--json") == ""
    assert (Path("new/out.csv").read_text(), Path("out.jsonl").read_text()) == printed


def test_a_file_that_exists_is_replaced_only_by_force(one, capsys):
    Path("out.csv").write_text("kept")
    words = (SENTENCE, "--out", "out.csv")
    assert mistake(capsys, *words) == "--out: out.csv: exists; choose another file, or replace it with --force"
    assert Path("out.csv").read_text() == "kept"
    ok(capsys, *words, "--force")
    assert Path("out.csv").read_text().startswith("text,label,")


def test_a_file_is_written_whole_or_not_at_all(one, capsys, monkeypatch):
    Path("out.csv").write_text("kept")
    before = set(Path().iterdir())

    def full(self, rows):
        raise OSError(28, "full")

    monkeypatch.setattr(csv.DictWriter, "writerows", full)
    line = mistake_after_progress(capsys, SENTENCE, "--out", "out.csv", "--force")
    assert line == "out.csv: cannot be written: No space left on device"
    assert Path("out.csv").read_text() == "kept"
    assert set(Path().iterdir()) == before


def mistake_after_progress(capsys, *words):
    capsys.readouterr()
    assert predict.main(words) == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("python -m pipeline.predict: ")


def test_a_warning_of_a_library_is_one_line(one, capsys, monkeypatch):
    load = opening.load_tokenizer

    def load_with_a_warning(*arguments):
        warnings.warn("an old\n  vocabulary", stacklevel=1)
        return load(*arguments)

    monkeypatch.setattr(opening, "load_tokenizer", load_with_a_warning)
    capsys.readouterr()
    assert predict.main([SENTENCE]) == 0
    said = capsys.readouterr()
    assert "predict: an old vocabulary" in said.err.splitlines()
    assert "vocabulary" not in said.out


def test_a_terminal_shows_a_table(one):
    ours, theirs = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(workspace.ROOT), "COLUMNS": "100", "TERM": "xterm"}
    command = [forked.scripts() / "python", "-m", "pipeline.predict", SENTENCE]
    run = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert (run.returncode, run.stderr) == (0, b"")
    assert "┃" in shown
    assert SENTENCE in shown
    assert "p(equivalent)" in shown


# Names of labels


def test_without_a_task_the_labels_are_those_of_the_base_model_or_named(one, capsys):
    named = ok(capsys, SENTENCE)
    (artifacts.ADAPTER / "task.json").unlink()
    assert ok(capsys, SENTENCE).startswith("text,label,p(LABEL_0),p(LABEL_1)\n")
    predict.main([SENTENCE])
    assert "artifacts/adapter: no task.json, which names the labels; see --labels\n" in capsys.readouterr().err
    assert ok(capsys, SENTENCE, "--labels", "not_equivalent", "equivalent") == named


# Mistakes


def test_an_exported_lora_without_a_factor_says_nothing(pairs, capsys):
    path = artifacts.EXPORTS / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = next(name for name in tensors if name.endswith("lora_B.weight"))
    del tensors[gone]
    save_file(tensors, path)
    line = mistake(capsys, "a", "b", "--adapter", str(path.parent))
    assert line == f"{path}: {gone} is missing"


def test_an_lsr_adapter_that_calls_itself_lora_says_nothing(pairs, capsys):
    path = artifacts.ADAPTER / "adapter_config.json"
    path.write_text(path.read_text().replace('"peft_type": "LSR"', '"peft_type": "LORA"'))
    assert ".lora_A.weight is missing" in mistake(capsys, "a", "b")


MISTAKES = [
    (("--batch-size", "0"), "argument --batch-size: must be a whole number above 0, got 0; see"),
    (("--zzz",), "unrecognized arguments: --zzz; see python -m pipeline.predict --help"),
    (("a", "--adapter", "nowhere"), "nowhere: not an adapter folder, adapter_config.json is missing"),
    (("a", "--adapter", "artifacts/tokens"), "artifacts/tokens: not an adapter folder, adapter_config.json is missing"),
    (("a", "--file", "in.csv"), "--file: texts are taken from the file or from the arguments, got both"),
    (("a", "--column", "x"), "--column: names columns of --file, and there is none"),
    (("--file", "nowhere.csv"), "--file: nowhere.csv: not found; paths start at the current folder"),
    (("--file", "pipe.csv", "--column", "x"), "--file: pipe.csv: not a file"),
    (("--file", "zero.tsv", "--column", "x"), "--file: zero.tsv: not a file"),
    (("--file", "deep.jsonl"), "--file: deep.jsonl: line 1 is not JSON: maximum recursion depth exceeded"),
    (("--file", "long.csv"), "--file: long.csv: row 1: a text of 1,000,001 characters; at most 1,000,000 are allowed"),
    (("--file", "in.doc"), "--file: in.doc: the extension must be one of .csv, .tsv, .txt, .jsonl, .json, .parquet"),
    (("--file", "in.csv"), "--file: in.csv: no column sentence1, as in training; choose with --column; columns: "),
    (("--file", "in.csv", "--column", "txet"), "--file: in.csv: no column 'txet'; did you mean text?; columns: "),
    (("--file", "in.csv", "--column", "id", "text"), "--column needs 1 name, as the adapter reads one text, got id"),
    (("--file", "in.csv", "--column", "text"), "--file: in.csv: row 2: is empty; needed: a text, or --skip-empty"),
    (("--file", "empty.csv", "--column", "text"), "--file: empty.csv: empty; needed: at least one row"),
    (("--file", "broken.csv"), "--file: broken.csv: line 2 has 3 columns, not 2"),
    (("--file", "numbers.jsonl"), "--file: numbers.jsonl: row 1: a text must be text, got 3"),
    (("a", " "), "text 2: is empty; needed: a text, or --skip-empty"),
    (("a", "--out", "out.txt"), "--out: out.txt: the extension must be .csv or .jsonl"),
    (("a", "--out", "out.csv", "--json"), "--out: out.csv: for JSON lines the extension must be .jsonl"),
    (("a", "--out", "folder.csv", "--force"), "--out: folder.csv: is a folder; needed: a file"),
    (("--file", "in.csv", "--out", "./in.csv", "--force"), "--out: in.csv: would replace the input file"),
    (("a", "--labels", "x"), "--labels: labels: 2 different names are needed, one per output of the head, got x"),
    (("a", "--max-length", "31"), "--max-length: the model takes at most 30 tokens, got 31"),
    (("a", "--max-length", "2"), "--max-length: must be at least 3, because 2 tokens are special ones, got 2"),
    (("a", "--base", "./nowhere"), "base model ./nowhere: no such folder"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line(one, capsys, words, message):
    Path("in.csv").write_text("id,text\n1,a cat\n2, \n")
    Path("empty.csv").write_text("id,text\n")
    Path("broken.csv").write_text("id,text\n1,a,b\n")
    Path("numbers.jsonl").write_text('{"sentence1": 3}\n')
    Path("in.doc").touch()
    os.mkfifo("pipe.csv")
    Path("zero.tsv").symlink_to("/dev/zero")
    Path("deep.jsonl").write_text("[" * 100_000)
    Path("long.csv").write_text(f"text\n{'x' * 1_000_001}\n")
    Path("folder.csv").mkdir()
    line = mistake(capsys, *words)
    assert line.startswith(message)
    assert Path("folder.csv").is_dir()


@contextmanager
def no_limit_of_the_tokenizer():
    """Take the limit of the base model's tokenizer away for a while."""
    path = Path("tiny-roberta/tokenizer_config.json")
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "model_max_length": None}))
    yield
    path.write_text(whole)


def test_a_length_above_the_positions_is_one_line_where_the_tokenizer_knows_no_limit(one, capsys):
    with no_limit_of_the_tokenizer():
        line = mistake(capsys, "a", "--max-length", "33")
        assert line == "--max-length: the model takes at most 32 tokens, got 33"
        ok(capsys, SENTENCE * 9, "--max-length", "32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input: empty; needed: one text per line"),
        (b"a\n\nb\n", "standard input: line 2: is empty; needed: a text, or --skip-empty"),
        (b"a\xff\n", "standard input: not UTF-8: invalid start byte at byte 1"),
    ],
)
def test_a_mistake_on_standard_input_is_one_line(one, capsys, monkeypatch, content, message):
    typed(monkeypatch, content)
    assert mistake(capsys) == message


def test_a_name_that_no_disk_takes_is_one_line(one, capsys):
    assert predict.main(["a", "--out", f"{'x' * 300}.csv"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m pipeline.predict: xxx")
    assert line.endswith("x.csv: File name too long")


def test_a_mistake_in_pairs_is_one_line(pairs, capsys, monkeypatch):
    assert mistake(capsys, "a", "b", "c") == "the adapter reads pairs: needed: an even number of texts, got 3"
    message = "--max-length: must be at least 5, because 4 tokens are special ones, got 4"
    assert mistake(capsys, "a", "b", "--max-length", "4") == message
    ok(capsys, SENTENCE, SENTENCE, "--max-length", "5")
    typed(monkeypatch, b"a\tb\na\n")
    assert mistake(capsys) == "standard input: line 2: needed: two texts with a tab between them"
    Path("in.csv").write_text("sentence1,text\na,b\n")
    message = "no column sentence1 and sentence2, as in training; choose with --column; columns: sentence1, text"
    assert mistake(capsys, "--file", "in.csv") == f"--file: in.csv: {message}"
    message = "--column needs 2 names, as the adapter reads pairs of texts, got text"
    assert mistake(capsys, "--file", "in.csv", "--column", "text") == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON: Expecting property name"),
        ("[" * 100_000, "not valid JSON: maximum recursion depth exceeded"),
        ('{"columns": ["a"], "max_length": 0, "labels": null}', "max_length: input should be greater than 0, got 0"),
        ('{"columns": ["a"], "labels": null}', "max_length: this key is required"),
        (
            '{"columns": ["a"], "labels": null, "max_length": 8}',
            "labels: 2 different names are needed, one per output",
        ),
    ],
)
def test_a_broken_task_is_one_line(one, capsys, content, message):
    (artifacts.ADAPTER / "task.json").write_text(content)
    assert mistake(capsys, SENTENCE).startswith(f"artifacts/adapter/task.json: {message}")


def test_a_pickled_adapter_is_refused(one, capsys):
    (artifacts.ADAPTER / "adapter_model.safetensors").rename(artifacts.ADAPTER / "adapter_model.bin")
    assert "adapter_model.bin: a pickle, which can run any code when read, so it is not read" in mistake(capsys, "a")


def test_a_method_that_the_pipeline_does_not_train_is_refused(one, capsys):
    path = artifacts.ADAPTER / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "XLORA"}))
    assert mistake(capsys, "a").startswith("artifacts/adapter: an adapter of the method XLORA; needed: ADAMSS or ")


def test_a_base_without_a_tokenizer_is_refused(one, capsys):
    for path in Path("tiny-roberta").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    message = "no tokenizer beside the adapter or its base model; see --base"
    assert mistake(capsys, "a") == f"artifacts/adapter: {message}"


def test_what_can_be_refused_at_once_waits_for_no_heavy_package(one):
    code = """
import sys
from pipeline.predict import __main__ as predict
predict.main(["--file", "nowhere.csv"])
print(*sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(workspace.ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "--file: nowhere.csv: not found" in run.stderr
    assert not {"torch", "transformers", "datasets", "peft", "pandas", "numpy"} & set(run.stdout.split())


# Many adapters


@pytest.fixture
def users(one):
    """A folder `users` with two adapters, of which `ben`'s head says the opposite, and a file with a row for each."""
    for name in ("anna", "ben"):
        shutil.copytree(artifacts.ADAPTER, Path("users") / name)
    path = Path("users/ben/adapter_model.safetensors")
    tensors = load_file(path)
    save_file({name: -value if ".out_proj." in name else value for name, value in tensors.items()}, path)
    edit_task("ben", labels=["no", "yes"])
    Path("in.csv").write_text(f"user,sentence1\nben,{SENTENCE}\nanna,{SENTENCE}\nben,an owl\n")


def edit_task(name, **changes):
    path = Path("users") / name / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def of_users(capsys, *words, call=ok, bank="users"):
    return call(capsys, "--bank", bank, "--adapter-column", "user", "--file", "in.csv", *words)


def test_each_row_of_a_file_goes_through_its_adapter(users, capsys):
    expected = []
    for name, text in (("ben", SENTENCE), ("anna", SENTENCE), ("ben", "an owl")):
        (alone,) = table(ok(capsys, text, "--adapter", f"users/{name}"))
        share = float(alone[f"p({alone['label']})"])
        expected.append({"user": name, "sentence1": text, "label": alone["label"], "probability": share})
    printed = of_users(capsys)
    found = [row | {"probability": float(row["probability"])} for row in table(printed)]
    assert [list(row.items())[:3] for row in found] == [list(row.items())[:3] for row in expected]
    assert [row["probability"] for row in found] == pytest.approx([row["probability"] for row in expected], abs=1e-5)
    assert {found[0]["label"], found[1]["label"]} in ({"no", "equivalent"}, {"yes", "not_equivalent"})
    assert lsr_main(["bank", "--from", "users", "-o", "bank"]) == 0
    assert of_users(capsys, bank="bank") == printed
    rows = [json.loads(line) for line in of_users(capsys, "--json", "--batch-size", "2").splitlines()]
    assert [list(row) for row in rows] == 3 * [["user", "sentence1", "label", "probability"]]


def test_a_file_for_a_bank_is_read_a_batch_at_a_time_and_its_columns_are_kept(users, capsys, monkeypatch):
    Path("in.csv").write_text(f"user,label,sentence1\nben,x,{SENTENCE}\nanna,y,\nanna,z,an owl\nben,w,an owl\n")
    whole = table(of_users(capsys, "--skip-empty"))
    assert [list(row.values())[:3] for row in whole] == [
        ["ben", "x", SENTENCE],
        ["anna", "z", "an owl"],
        ["ben", "w", "an owl"],
    ]
    assert list(whole[0])[3:] == ["predicted_label", "probability"]
    monkeypatch.setattr(sources, "BATCH", 2)
    batched = table(of_users(capsys, "--skip-empty"))
    assert [list(row.values())[:4] for row in batched] == [list(row.values())[:4] for row in whole]
    assert of_users(capsys, call=mistake) == "--file: in.csv: row 2: is empty; needed: a text, or --skip-empty"


def test_a_mistake_with_a_bank_is_one_line(users, capsys):
    def line(*words, **options):
        return of_users(capsys, *words, call=mistake, **options)

    together = "--bank and --adapter-column go together: the column names the adapter of each row"
    assert mistake(capsys, "--bank", "users", "a") == together
    assert "--bank: needs --file" in mistake(capsys, "--bank", "users", "--adapter-column", "user", "a")
    assert "--labels: each adapter of a bank names its own" in line("--labels", "a", "b")
    assert "tiny-roberta: no adapter or folder of adapters" in line(bank="tiny-roberta")
    assert "the model takes at most 30 tokens, got 31" in line("--max-length", "31")
    assert "must be at least 3, because 2 tokens are special ones, got 2" in line("--max-length", "2")
    with no_limit_of_the_tokenizer():
        assert "the model takes at most 32 tokens, got 33" in line("--max-length", "33")
    edit_task("ben", max_length=7)
    assert line().startswith("--max-length: needed: the adapters were trained with 7, ")
    edit_task("ben", columns=["a", "b"])
    assert "no column a and b, as in training" in line()
    Path("users/ben/task.json").unlink()
    assert line() == "users: adapter ben: no task.json, which names the columns and labels"
    Path("in.csv").write_text("user,sentence1\nanna,a cat\nbne,a cat\n")
    assert line() == "--file: in.csv: row 2: no adapter 'bne' in users, which holds 2; did you mean ben?"
    Path("in.csv").write_text("user,sentence1\n")
    assert line() == "--file: in.csv: empty; needed: at least one row"
