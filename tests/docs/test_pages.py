"""What README and documentation show is what the repository does."""

import importlib
import re
import shlex
import shutil

import pytest
from ruamel.yaml import YAML

from docs import hooks
from lsr.__main__ import parser as lsr_parser
from pipeline import params
from pipeline.arena import preset
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


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.startswith("methods:")])
def test_methods_of_a_preset_that_are_shown_are_valid(block):
    for method in YAML(typ="safe", pure=True).load(block)["methods"].values():
        assert preset.Method.model_validate(method)


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


def test_the_reference_says_what_params_yaml_says():
    comments = re.findall(r"^.*\S # (.+)$", (ROOT / params.PARAMS).read_text(encoding="utf-8"), re.MULTILINE)
    reference = hooks.params()
    assert comments
    assert not [comment for comment in comments if comment not in reference]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)(?=`|  )", ALL))))
def test_a_make_target_that_is_shown_is_there(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_that_is_shown_compiles(block):
    compile(block, "a page", "exec")


def test_the_message_that_is_shown_is_what_the_command_prints(tmp_path, monkeypatch, capsys):
    shown = re.findall(r"^```console\n\$ python (.*)\n(.*)\n```$", ALL, re.MULTILINE)
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
