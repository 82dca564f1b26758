"""A model row is loaded as pinned, or refused in one line."""

import hashlib
import sys

import pytest

from pipeline.data import base_models
from pipeline.methods import planning
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.model_row import ModelRow
from pipeline.params.sections import HeadParams
from tests import workspace
from tests.kit import edit, refused

SPLITS = {"train": "train", "test": "validation"}
PAIRS = DatasetRow.model_validate(
    {"source": {"kind": "hub", "path": "glue", "config": "mrpc", "splits": SPLITS}, **workspace.GLUE_ROW}
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package that carries the tiny model, and its row."""
    folder = tmp_path / "carrying/model"
    workspace.save_tiny_roberta(folder)
    (tmp_path / "carrying/__init__.py").write_text("raise RuntimeError('the code of the package was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(base_models, "version", {"carrying": "1.0"}.__getitem__)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    yield row(package="carrying==1.0", folder="carrying/model", sha256=digest)
    sys.modules.pop("carrying", None)


def row(head=("classifier",), **source):
    source = (
        {"kind": "package", "same_as": "someone/tiny", **source} if "package" in source else {"kind": "hub", **source}
    )
    return ModelRow.model_validate({"source": source, "target_modules": ["query"], "head": head})


def changed(model_row, **source):
    return model_row.model_copy(update={"source": model_row.source.model_copy(update=source)})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"sha256": "0" * 64}, "model.safetensors of carrying==1.0 has sha256 "),
        ({"package": "carrying==2.0"}, "carrying has version 1.0, the row pins 2.0; install it with: pip install"),
        ({"folder": "carrying/other"}, "holds no carrying/other/model.safetensors"),
    ],
)
def test_a_package_that_is_not_what_the_row_pins_is_refused(package, source, words):
    refused(base_models.load_base_model, changed(package, **source), PAIRS, says=words)


def test_a_head_that_the_model_does_not_have_lists_its_modules(package):
    model, section = base_models.load_base_model(package, PAIRS), HeadParams()
    says = "head: the model has no module score; it has roberta, classifier"
    refused(planning.resolve, section, model, package.model_copy(update={"head": ("score",)}), 0, says=says)


@pytest.mark.parametrize(
    "call", [lambda row: base_models.outline(row, PAIRS), lambda row: base_models.load_base_model(row, PAIRS)]
)
def test_the_code_that_a_model_brings_is_not_run(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on the terminal"))
    workspace.save_tiny_roberta(tmp_path / "own")
    (tmp_path / "own/code_of_own.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    mapping = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "code_of_own.Own")
    edit(tmp_path / "own/config.json", model_type="own", auto_map=mapping)
    assert refused(call, row(path="own"), says="own: ").startswith("pipeline/models.yaml: ")
    assert not (tmp_path / "ran").exists()
