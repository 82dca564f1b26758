"""The commands of a sweep are what DVC would run, and none is printed before all of them are valid."""

import shlex

import pytest

from pipeline import sweep
from pipeline.core.errors import UserError
from tests.workspace import ROOT


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def changes(lines):
    """The words after each -S, line by line."""
    return [shlex.split(line)[7::2] for line in lines]


def test_every_combination_is_a_line(capsys):
    sweep.main(["seed=range(0,2)", "lsr.rank_shape=[2],[3]", "--name", "mine"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "dvc exp run --temp --name mine-1 -S seed=0 -S 'lsr.rank_shape=[2]'"
    assert changes(lines) == [[f"seed={seed}", f"lsr.rank_shape=[{rank}]"] for seed in (0, 1) for rank in (2, 3)]
    assert [shlex.split(line)[5] for line in lines] == ["mine-1", "mine-2", "mine-3", "mine-4"]


def test_a_row_of_a_table_is_swept_too():
    (one, two) = sweep.commands(["data=mrpc", "pipeline/datasets.yaml:mrpc.select_on=test,validation"], "x")
    assert changes([one, two])[0] == ["data=mrpc", "pipeline/datasets.yaml:mrpc.select_on=test"]


def test_experiments_that_would_run_alike_are_one(capsys):
    lines = sweep.commands(["adapter=lora,head", "lora.r=4,8"], "x")
    assert changes(lines) == [["adapter=lora", "lora.r=4"], ["adapter=lora", "lora.r=8"], ["adapter=head", "lora.r=4"]]
    assert "1 of 4 experiments would run like another one" in capsys.readouterr().err


def test_one_bad_combination_prints_no_command(capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main(["seed=0,-1", "train.epochs=1,0"])
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "seed=0 train.epochs=0: params.yaml: train.epochs: input should be greater than or equal to 1, got 0",
        "seed=-1 train.epochs=1: params.yaml: seed: input should be greater than or equal to 0, got -1",
        "seed=-1 train.epochs=0: params.yaml: seed: input should be greater than or equal to 0, got -1",
        "seed=-1 train.epochs=0: params.yaml: train.epochs: input should be greater than or equal to 1, got 0",
    ]


def test_a_value_means_nothing_to_a_shell():
    (line,) = sweep.commands(["lsr.target_modules='$(touch exploded); a|b'"], "x")
    assert shlex.split(line)[-1] == "lsr.target_modules='$(touch exploded); a|b'"
    assert line.endswith(shlex.quote(shlex.split(line)[-1]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lsr.nope=1,2", "lsr.nope=1: params.yaml: Could not override 'lsr.nope'."),
        ("seed", "sweep: seed: Error parsing override 'seed' missing EQUAL"),
        ("lsr.alpha=interval(0,1)", "sweep: lsr.alpha=interval(0,1): BasicSweeper does not support sweep type"),
        ("seed=range(0,1000000000)", "sweep: over 10,000 experiments; at most that are allowed"),
        ("setup.cfg:a=1", "setup.cfg:a=1: setup.cfg: values are in params.yaml, pipeline/datasets.yaml, pipeline/"),
    ],
)
def test_what_cannot_be_swept_is_one_line(value, message):
    with pytest.raises(UserError) as error:
        sweep.commands([value], "x")
    assert str(error.value).splitlines()[0].startswith(message)


def test_outside_the_repository_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        sweep.main(["seed=0,1"])
    assert end.value.code == 2
    assert capsys.readouterr().err == "params.yaml: not found; run from the root of the repository\n"


@pytest.mark.parametrize("name", ["a b", "", "a/b", "-x;y"])
def test_a_name_that_git_does_not_take_is_one_line(name, capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main(["seed=0", f"--name={name}"])
    assert end.value.code == 2
    assert "--name: letters, digits, - and _ are allowed" in capsys.readouterr().err
