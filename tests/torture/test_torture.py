"""The counts of make torture: what fails, and what was never tried, is failed; and its exit status says so."""

import pytest

from tests.torture.__main__ import CASES, main
from tests.torture.trials import Case, Trial


def nothing():
    pass


def fail():
    raise ValueError("went wrong")


def case(name, *runs, breaks=False, count=None):
    def trials(folder, count, random):
        for number, run in enumerate(runs[:count]):
            yield Trial(f"number {number}", run)
        if breaks:
            raise OSError("no more")

    return Case(name, len(runs) if count is None else count, trials)


@pytest.mark.parametrize(
    ("one", "row", "status"),
    [
        (case("fine", nothing, nothing), "fine | 2 | 2 | 0", 0),
        (case("bad", nothing, fail, nothing), "bad | 3 | 2 | 1", 1),
        (case("broken", nothing, breaks=True, count=4), "broken | 1 | 1 | 3", 1),
        (case("short", nothing, count=3), "short | 1 | 1 | 2", 1),
    ],
)
def test_what_fails_or_is_not_tried_is_counted(one, row, status, capsys):
    assert main([], [one]) == status
    printed = capsys.readouterr()
    assert f"  {row} | " in printed.out
    assert f"  {row.replace(one.name, 'all')} | " in printed.out
    assert ("bad: number 1: Traceback" in printed.err) == (one.name == "bad")
    assert ("no more trials could be made" in printed.err) == (one.name == "broken")


def test_one_word_chooses_cases_and_a_number_scales_them(capsys):
    cases = [case("one", *[nothing] * 10), case("other", fail)]
    assert main(["--only", "one", "--scale", "0.5"], cases) == 0
    assert "  one | 5 | 5 | 0 | " in capsys.readouterr().out


def test_a_word_that_chooses_nothing_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--only", "kils"])
    assert end.value.code == 2
    assert "names no case" in capsys.readouterr().err


def test_there_are_as_many_trials_as_promised():
    counts = {case.name: case.count for case in CASES}
    assert counts["kills-at-random"] >= 50
    assert counts["kills-at-writes"] >= 50
    assert counts["mistakes"] >= 1000
    assert counts["adapters"] >= 300
