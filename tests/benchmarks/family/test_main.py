from functools import partial
from types import SimpleNamespace

import pytest

from benchmarks.family import __main__ as program
from benchmarks.family import store
from pipeline.core.errors import UserError
from tests.benchmarks.family.made_up import line

ONLY = "movie-reviews: core r=4"  # four runs
MOST = 2 * 2 * 9  # two protocols and two methods, at most nine cells each


class Pool:
    """Runs what is submitted in this process, when its result is asked for."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, measure, cell):
        return SimpleNamespace(result=partial(measure, cell))

    def shutdown(self, cancel_futures):
        assert cancel_futures


@pytest.fixture(autouse=True)
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(program, "workers_of_this_program", Pool)
    monkeypatch.setattr(program, "as_completed", list)
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    monkeypatch.setattr(program, "CELLS", tmp_path / "cells.jsonl")
    return tmp_path


@pytest.fixture
def measured(monkeypatch):
    """The cells that were measured; `measured.fail` is raised when there are as many as `measured.at`."""

    class Cells(list):
        fail, at = None, None

    cells = Cells()

    def measure(cell):
        if cells.fail and len(cells) == cells.at:
            raise cells.fail
        cells.append(cell)
        return line(cell, validation=cell.rate, test=0.7)[cell.key()]

    monkeypatch.setattr(program, "measure", measure)
    return cells


def test_a_run_ends_with_the_table(measured, results, capsys):
    program.main(["--only", ONLY])
    assert len(measured) == len(store.load(results / "cells.jsonl")) == MOST
    assert {path.name for path in results.iterdir()} == {
        "cells.jsonl",
        *(f"table.{ending}" for ending in ("json", "md", "png")),
        "size.png",
        "rates.md",
    }
    assert "core r=4, last layers" in capsys.readouterr().out
    assert [cell.run.protocol for cell in measured] == ["short"] * (MOST // 2) + ["long"] * (MOST // 2)


def test_a_protocol_can_be_chosen(measured):
    program.main(["--protocol", "long", "--only", ONLY])
    assert [cell.run.protocol for cell in measured] == ["long"] * (MOST // 2)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(KeyboardInterrupt(), 130, "finished cells are kept"), (UserError("params.yaml: a mistake"), 2, "a mistake")],
)
def test_a_stopped_run_goes_on_where_it_was(error, code, words, measured, results, capsys):
    measured.fail, measured.at = error, 11
    with pytest.raises(SystemExit) as stopped:
        program.main(["--only", ONLY])
    assert stopped.value.code == code
    assert words in capsys.readouterr().err
    measured.fail = None
    assert len(store.load(results / "cells.jsonl")) == 11
    program.main(["--only", ONLY])
    assert len(measured) == MOST


def test_words_in_no_name_are_one_line_and_write_nothing(measured, results, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["--only", "short movie-reviews: core r=44"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--only short movie-reviews: core r=44: no run has this in its name; did you mean short ")
    assert not any(results.iterdir())


def test_the_table_alone_runs_nothing(measured, results, capsys):
    program.main(["--table"])
    assert "nothing to compare" in capsys.readouterr().out
    program.main(["--only", ONLY])
    (results / "table.md").unlink()
    count = len(measured)
    program.main(["--table"])
    assert (results / "table.md").is_file()
    assert len(measured) == count
