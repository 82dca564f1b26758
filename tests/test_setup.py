"""What `make` says and asks pip for while it sets up an environment, with a pip that prints what it is asked for."""

import shutil

import pytest

from tests.repository import command
from tests.workspace import ROOT

# In place of Python: its venv has a pip that installs torch as the real one does, by a file.
PYTHON3 = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exit 0
mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
printf '#!/bin/sh\\necho "pip $*${PYTHONDONTWRITEBYTECODE:+, and compiles nothing}"\\n' > "$3/bin/pip"
chmod +x "$3/bin/pip"
"""
NEWEST = "pip install --quiet --upgrade pip"
INSTALL = "install --no-compile"
PINNED = "--constraint constraints.txt"
FROM_CPU_INDEX = f"pip {INSTALL} --no-deps {PINNED} --index-url https://download.pytorch.org/whl/cpu torch"
ALL = f"pip {INSTALL} {PINNED} --editable .[pipeline,demo]"


@pytest.fixture
def folder(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python3").write_text(PYTHON3)
    (tmp_path / "python3").chmod(0o700)
    return tmp_path


def set_up(folder, *words, code=0):
    made = ("make", "PYTHON=./python3", ".venv/.with-pipeline,demo", *words)
    return command(folder, *made, code=code, MAKEFLAGS="--silent", PYTHONDONTWRITEBYTECODE="1").splitlines()


def test_it_says_what_pip_will_fetch_and_how_to_fetch_less_before_pip_shows_its_progress(folder):
    upgraded, *said, asked = set_up(folder)
    assert upgraded == NEWEST
    assert "3 GB, 2.7 GB of it torch with CUDA" in said[0]
    assert "TORCH=cpu" in said[1]
    assert asked == ALL  # not --quiet; and whatever runs may compile, or each process would do so again


def test_the_cpu_build_comes_first_from_its_own_index(folder):
    _, said, *asked = set_up(folder, "TORCH=cpu")
    assert "160 MB of it torch without CUDA" in said
    assert asked == [FROM_CPU_INDEX, ALL]


def test_a_torch_that_is_there_is_taken_as_it_is(folder):
    set_up(folder)
    there = folder / ".venv/lib/python3.11/site-packages/torch"
    there.mkdir()
    (there / "version.py").touch()
    (folder / ".venv/.with-pipeline,demo").unlink()
    said, asked = set_up(folder)
    assert "is taken as it is" in said
    assert asked == ALL


def test_another_build_is_refused_in_a_line_before_anything_is_fetched(folder):
    (line,) = set_up(folder, "TORCH=gpu", code=2)
    assert line.endswith("TORCH: must be cpu, or be left out for the build of the package index, got gpu.  Stop.")
    assert not (folder / ".venv").exists()
