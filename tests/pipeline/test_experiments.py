"""The table of experiments and the best of them, from what DVC prints of them."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest

from pipeline.core.dvc import run_dvc
from pipeline.core.errors import UserError
from pipeline.experiments import best, main

COLUMNS = ("Experiment", "rev", "State", "best_score", "params.yaml:data")


def experiments(*rows):
    return pd.DataFrame(rows, columns=COLUMNS, dtype=str)


BASE = ("", "main", "", "0.99", "reviews")


def test_the_best_is_one_that_succeeded_on_the_chosen_data_and_a_line_says_what_was_left_out():
    table = experiments(
        BASE,
        ("failed", "1", "Failed", "0.95", "reviews"),
        ("waits", "2", "Queued", "", "reviews"),
        ("runs", "3", "Running", "0.95", "reviews"),
        ("other", "4", "Success", "0.9", "movies"),
        ("part", "8", "", "", "reviews"),  # of `dvc exp run tokenize`
        ("good", "5", "Success", "0.7", "reviews"),
        ("better", "6", "", "0.74", "reviews"),  # of `dvc exp run` without a queue
        ("equal", "7", "Success", "0.74", "reviews"),
    )
    name, reason = best(table, "reviews")
    assert name == "better"
    left_out = "left out: 1 failed, 1 queued, 1 running, 1 of other data, 1 without a score"
    assert reason == f"validation score 0.74 on reviews: the best of 3 experiments; {left_out}"
    assert best(table, "movies")[0] == "other"


def test_without_one_that_succeeded_there_is_no_best():
    with pytest.raises(UserError, match=r"no experiment on reviews has succeeded since the last commit$"):
        best(experiments(BASE), "reviews")
    failed = experiments(BASE, ("failed", "1", "Failed", "0.95", "reviews"))
    with pytest.raises(UserError, match="left out: 1 failed"):
        best(failed, "reviews")


STAGES = """
stages:
  train:
    cmd: cp data/metrics.json metrics.json
    deps: [data]
    params: [data, seed]
    metrics:
      - metrics.json:
          cache: false
"""
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@b.c")


def commit():
    for words in (("add", "--all"), ("commit", "--quiet", "--message", "State")):
        subprocess.run(["git", *AUTHOR, *words], check=True)


def run(*words):
    ended = run_dvc(*words)
    assert ended.returncode == 0, ended.stderr


def test_the_best_is_found_in_what_dvc_prints_without_a_queue(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    run("init", "--quiet")
    Path("data").mkdir()
    Path("data/metrics.json").write_text('{"best_score": 0.6, "data": "reviews"}')  # as evaluate writes it
    Path("params.yaml").write_text("data: reviews\nseed: 1\n")
    Path("dvc.yaml").write_text(STAGES)
    commit()
    without_any = "no experiment on reviews has succeeded since the last commit\n"
    with pytest.raises(SystemExit):
        main(["--best"])
    assert capsys.readouterr().err.endswith(without_any)
    run("repro", "--quiet")
    commit()
    with pytest.raises(SystemExit):
        main(["--best"])
    assert capsys.readouterr().err.endswith(without_any)
    Path("params.yaml").write_text("data: reviews\nseed: 2\n")
    run("exp", "save", "--name", "second")
    main(["--best"])
    printed = capsys.readouterr()
    assert printed.out == "second\n"
    assert printed.err == "validation score 0.6 on reviews: the best of 1 experiment\n"
