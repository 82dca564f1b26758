"""What README and documentation show is what the repository does."""

import importlib
import re
import subprocess

import pytest
from ruamel.yaml import YAML

from docs import hooks, tables
from pipeline import params
from pipeline.arena import preset
from tests.kit import refused, write
from tests.workspace import ROOT, copy_committed, merged, read_yaml

PAGES = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]]
ALL = "\n".join(PAGES)


def blocks(language):
    return sorted(set(re.findall(rf"```{language}\n(.*?)```", ALL, re.DOTALL)))


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.startswith("methods:")])
def test_methods_of_a_preset_that_are_shown_are_valid(block):
    for method in YAML(typ="safe", pure=True).load(block)["methods"].values():
        assert preset.Method.model_validate(method)


def test_the_reference_says_what_params_yaml_says():
    comments = re.findall(r"^.*\S # (.+)$", (ROOT / params.PARAMS).read_text(encoding="utf-8"), re.MULTILINE)
    reference = hooks.params()
    assert comments
    assert not [comment for comment in comments if comment not in reference]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)(?=`|  )", ALL))))
def test_a_make_target_that_is_shown_is_there(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_python_that_is_shown_compiles():
    for block in blocks("python"):
        compile(block, "a page", "exec")


def test_the_message_that_is_shown_is_what_the_command_prints(tmp_path, monkeypatch):
    shown = re.findall(r"^```console\n\$ python (.*)\n(.*)\n```$", ALL, re.MULTILINE)
    assert len(shown) == 1  # others would need a mistake of their own
    copy_committed(tmp_path)
    write(tmp_path / "params.yaml", merged(read_yaml(ROOT / "params.yaml"), {"lsr": {"separation_rank": 0}}))
    command, message = shown[0]
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(command.removeprefix("-m ")).main
    assert refused(main, []) == message


def committed(path):
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", [*tables.PAGES, tables.PICTURE])
def test_what_a_page_shows_is_what_the_reports_give(name, monkeypatch):
    text = (ROOT / name).read_text(encoding="utf-8")
    if tables.made(name) != text:  # reports that a reader's own `make repro` or `make bench` has written are no mistake
        monkeypatch.setattr(tables, "read", committed)
        assert tables.made(name) == text, "run: python -m docs.tables"


def test_every_table_is_on_a_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    assert {place[2] for text in texts for place in tables.PLACE.finditer(text)} == set(tables.TABLES)
