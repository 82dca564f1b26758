"""What README and documentation show is what the repository does."""

import importlib
import importlib.util
import re
import shlex
import shutil

import pytest
from ruamel.yaml import YAML

from lsr.__main__ import parser as lsr_parser
from pipeline import params
from pipeline.arena import preset
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.model_row import ModelRow
from pipeline.predict.__main__ import parser as predict_parser
from tests.workspace import ROOT, merged, read_yaml, write_yaml

PAGES = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]]
ALL = "\n".join(PAGES)


def blocks(language):
    return sorted(set(re.findall(rf"```{language}\n(.*?)```", ALL, re.DOTALL)))


def commands(start):
    """What follows `start` in the lines of code that begin with it, without their comments."""
    lines = re.findall(rf"^(?: {{4}})?{re.escape(start)} (.*)$", ALL, re.MULTILINE)
    return sorted({line.partition("  #")[0].rstrip() for line in lines})


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_row_that_is_shown_is_valid(block):
    ((name, row),) = YAML(typ="safe", pure=True).load(block).items()
    if name == "methods":  # of a preset of the arena
        assert [preset.Method.model_validate(method) for method in row.values()]
    else:
        (DatasetRow if "label" in row else ModelRow).model_validate(row)


@pytest.mark.parametrize("override", sorted(set(re.findall(r"-S '?([\w./:-]+?)=", ALL))))
def test_an_override_that_is_shown_names_a_key(override):
    path, _, keys = override.rpartition(":")
    values = read_yaml(ROOT / (path or params.PARAMS))
    for key in keys.split("."):
        values = values[key]


PARSERS = {"python -m lsr": lsr_parser, "python -m pipeline.predict": predict_parser}


@pytest.mark.parametrize(("start", "line"), [(start, line) for start in PARSERS for line in commands(start)])
def test_a_command_that_is_shown_is_one(start, line):
    PARSERS[start]().parse_args(shlex.split(line.partition(" < ")[0]))


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ((?:lsr|pipeline|stages|benchmarks)[\w.]*)", ALL)))
)
def test_a_module_that_is_shown_is_there(module):
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)(?=`|  )", ALL))))
def test_a_make_target_that_is_shown_is_there(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_that_is_shown_compiles(block):
    compile(block, "a page", "exec")


def test_the_message_that_is_shown_is_what_the_command_prints(tmp_path, monkeypatch, capsys):
    shown = re.findall(r"^    \$ python (.*)\n    (.*)$", ALL, re.MULTILINE)
    assert len(shown) == 1  # others would need a mistake of their own
    for path in (table.built_in for table in params.TABLES.values()):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    write_yaml(tmp_path / "params.yaml", merged(read_yaml(ROOT / "params.yaml"), {"lsr": {"separation_rank": 0}}))
    command, message = shown[0]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"{command.removeprefix('-m ')}.__main__").main([])
    assert capsys.readouterr() == ("", f"{message}\n")
