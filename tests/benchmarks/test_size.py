"""`python -m benchmarks.size`, on code whose nodes and lines are counted by hand."""

import pytest

from benchmarks.size import Source, habits, main, measure, sources
from pipeline.core.console import MISTAKE
from tests.workspace import ROOT

CODE = '''"""A module's docstring is no code."""

# Nor is a comment.
x = 1


def both(its):
    """Nor is this."""
    a, b = (
        its,
        2,
    )
    if (c := a) > b:
        return c
    return """
    a text is code
    """
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "lsr").mkdir()
    (tmp_path / "lsr/code.py").write_text(CODE)
    return tmp_path


def test_nodes_are_those_of_the_syntax_tree_and_lines_those_that_hold_code(tmp_path, folder):
    (tmp_path / "lsr/code.py").write_text(
        '"""A docstring."""\n\n# A comment.\nx = 1  # Module, Expr, Constant; Assign, Name, Store, Constant\n'
    )
    size = measure(sources(folder))
    assert size.nodes == 3 + 4
    assert size.lines == 1
    assert size.density == 7


def test_packing_changes_the_lines_and_not_the_nodes(tmp_path):
    packed = Source(tmp_path, "x = [1, 2, 3]\n")
    loose = Source(tmp_path, "x = [\n    1,\n    2,\n    3,\n]\n")
    assert measure([packed]).nodes == measure([loose]).nodes
    assert measure([packed]).lines == 1
    assert measure([loose]).lines == 5


def test_habits_and_bodies_are_counted(folder):
    (file,) = sources(folder)
    counts = habits([file])
    assert counts["tuple assignments"] == 1
    assert counts["assignment expressions"] == 1
    assert counts["variables named by a pronoun"] == 1
    assert counts["bodies above 30 code lines"] == 0
    assert list(file.bodies()) == [("lsr/code.py:7 both", 9)]


def test_the_tables_are_of_the_checkout_that_is_named(folder, capsys):
    main([str(folder), "--longest", "1"])
    output = capsys.readouterr().out
    assert "lsr/code.py:7 both | 9" in output
    assert "| lsr/code.py:7\n" not in output
    main([str(folder), "--places"])
    listed = capsys.readouterr().out.partition("places")[2]
    assert "variables named by a pronoun | lsr/code.py:7\n" in listed
    assert "tuple assignments | lsr/code.py:9\n" in listed
    assert "assignment expressions | lsr/code.py:13\n" in listed
    main([str(ROOT)])
    assert "lsr/tuner | " in capsys.readouterr().out


def test_a_folder_without_code_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path)])
    assert end.value.code == MISTAKE
    packages = "lsr, lsr_onnx, lsr_server, pipeline, stages, benchmarks"
    assert capsys.readouterr().err == f"{tmp_path}: no Python files in {packages}; give the folder of a checkout\n"
