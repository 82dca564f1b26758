"""Which process this is, as the launcher's environment says, and who may do what."""

import pytest

from pipeline import params, ranks, stage
from pipeline.core.errors import UserError


@pytest.fixture
def environment(monkeypatch):
    def set_to(**values):
        for name in (ranks.SIZE, ranks.RANK):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_a_process_alone_is_the_first_and_meets_nobody(environment):
    environment()
    assert (ranks.size(), ranks.rank(), ranks.is_first(), ranks.may_speak()) == (1, 0, True, True)
    assert ranks.told(lambda: "found") == "found"
    with ranks.together():
        ranks.wait()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: the environment must say a number, got 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK: the environment must say a number, got None"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK: the environment must say a number, got None"),
    ],
)
def test_an_environment_that_says_half_is_one_line(environment, values, line):
    environment(**values)
    with pytest.raises(UserError) as error:
        ranks.rank()
    assert str(error.value) == line


def test_processes_that_cannot_meet_are_one_line(environment, monkeypatch):
    environment(WORLD_SIZE="2", RANK="1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2, but .*MASTER_ADDR.*; start them with torchrun"):
        ranks.wait()


ran = []


def main(view):
    ran.append(view)


@pytest.fixture
def started(environment, monkeypatch, tmp_path):
    """A function that starts a stage as one of two processes, and says whether it ran."""
    monkeypatch.setattr("sys.argv", ["stage"])
    monkeypatch.setattr(params, "load", lambda view: "view")
    monkeypatch.setattr(ranks, "may_speak", ranks.is_first)  # without meeting the other
    monkeypatch.chdir(tmp_path)

    def start(processes, rank):
        environment(WORLD_SIZE="2", RANK=rank)
        ran.clear()
        stage.run(main, params.TokenizeView, processes)
        return ran == ["view"]

    return start


def test_the_first_process_does_what_one_can_do_and_the_others_leave(started):
    assert not started(stage.Processes.FIRST, "1")
    assert started(stage.Processes.FIRST, "0")


def test_a_stage_for_one_process_refuses_more_in_one_line(started, capsys):
    for rank in ("0", "1"):
        with pytest.raises(SystemExit) as error:
            started(stage.Processes.ONE, rank)
        assert error.value.code == 2
    name = main.__module__
    assert capsys.readouterr().err == (f"{name}: runs in one process, got WORLD_SIZE=2; start it by python -m {name}\n")
