"""The counts of make torture: what fails, and what was never tried, is failed; and its exit status says so."""

import os
from functools import partial

import pytest

from tests.torture.__main__ import CASES, main
from tests.torture.trials import Case, Trial


def nothing():
    pass


def fail():
    raise ValueError("went wrong")


def stop():
    raise KeyboardInterrupt


def die():
    os._exit(3)


def made(runs, breaks, folder, count, random):
    for number, run in enumerate(runs[:count]):
        yield Trial(f"number {number}", run)
    if breaks:
        raise OSError("no more")


def case(name, *runs, breaks=False, count=None):
    return Case(name, len(runs) if count is None else count, partial(made, runs, breaks))


@pytest.fixture
def torture(tmp_path):
    """A function that runs cases in this process, unless it is told otherwise, with a journal of its own."""
    return lambda *words, cases, jobs=1: main(["--jobs", str(jobs), *words], cases, tmp_path / "journal")


@pytest.mark.parametrize(
    ("one", "row", "status"),
    [
        (case("fine", nothing, nothing), "fine | 2 | 2 | 0", 0),
        (case("bad", nothing, fail, nothing), "bad | 3 | 2 | 1", 1),
        (case("broken", nothing, breaks=True, count=4), "broken | 1 | 1 | 3", 1),
        (case("short", nothing, count=3), "short | 1 | 1 | 2", 1),
    ],
)
def test_what_fails_or_is_not_tried_is_counted(one, row, status, torture, capsys):
    assert torture(cases=[one]) == status
    printed = capsys.readouterr()
    assert f"  {row} | " in printed.out
    assert f"  {row.replace(one.name, 'all')} | " in printed.out
    assert ("bad: number 1: Traceback" in printed.err) == (one.name == "bad")
    assert ("no more trials could be made" in printed.err) == (one.name == "broken")


def test_one_word_chooses_cases_and_a_number_scales_them(torture, capsys):
    cases = [case("one", *[nothing] * 10), case("other", fail)]
    assert torture("--only", "one", "--scale", "0.5", cases=cases) == 0
    assert "  one | 5 | 5 | 0 | " in capsys.readouterr().out


def test_a_word_that_chooses_nothing_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--only", "kils"])
    assert end.value.code == 2
    assert "names no case" in capsys.readouterr().err


def test_what_has_run_is_printed_when_it_is_stopped_and_not_run_again(torture, tmp_path, capsys):
    cases = [case("one", nothing, fail, stop, nothing), case("other", nothing)]
    assert torture(cases=cases) == 130
    printed = capsys.readouterr().out
    assert "stopped after 2 of 5 trials" in printed
    assert "  one | 2 | 1 | 1 | " in printed
    assert "  other | 0 | 0 | 0 | " in printed
    calls = []
    cases[0] = case("one", *[lambda number=number: calls.append(number) for number in range(4)])
    assert torture(cases=cases) == 1  # what failed has failed
    assert calls == [2, 3]
    assert "  all | 5 | 4 | 1 | " in capsys.readouterr().out
    assert not (tmp_path / "journal").exists()


def test_trials_that_could_not_be_made_have_failed_where_it_is_stopped_and_are_made_again(torture, capsys):
    assert torture(cases=[case("broken", nothing, breaks=True, count=3), case("last", stop)]) == 130
    assert "  broken | 1 | 1 | 2 | " in capsys.readouterr().out
    assert torture(cases=[case("broken", fail, nothing, nothing), case("last", nothing)]) == 0
    assert "  broken | 3 | 3 | 0 | " in capsys.readouterr().out


def test_another_seed_begins_anew(torture, capsys):
    torture(cases=[case("one", nothing, stop)])
    assert torture("--seed", "1", cases=[case("one", nothing, nothing)]) == 0
    assert "seed 1: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_case_whose_process_dies_has_failed_and_the_others_go_on(torture, capsys):
    assert torture(cases=[case("dead", nothing, die), case("fine", nothing), case("bad", fail)], jobs=2) == 1
    printed = capsys.readouterr()
    assert "dead: the process of the case ended with 3" in printed.err
    for row in ("dead | 1 | 1 | 1", "fine | 1 | 1 | 0", "bad | 1 | 0 | 1"):
        assert f"  {row} | " in printed.out


def test_there_are_as_many_trials_as_promised():
    counts = {case.name: case.count for case in CASES}
    assert counts["kills-at-random"] >= 50
    assert counts["kills-at-writes"] >= 50
    assert counts["mistakes"] >= 1000
    assert counts["adapters"] >= 300
