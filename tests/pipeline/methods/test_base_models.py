"""A model row is loaded as pinned, or refused in one line."""

import hashlib
import json
import sys

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.data import base_models
from pipeline.methods import planning
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.methods import HeadParams
from pipeline.params.model_row import ModelRow
from tests import workspace

SPLITS = {"train": "train", "test": "validation"}
PAIRS = DatasetRow.model_validate(
    {"source": {"kind": "hub", "path": "glue", "config": "mrpc", "splits": SPLITS}, **workspace.GLUE_ROW}
)
RATINGS = DatasetRow.model_validate(
    {"source": {"kind": "files", "files": {"train": "ratings.csv"}}, **workspace.RATING_ROW}
)
COMPARISONS = DatasetRow.model_validate(
    {"source": {"kind": "files", "files": {"train": "ratings.csv"}}, **workspace.COMPARISON_ROW}
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


def test_the_head_fits_the_labels(package):
    assert base_models.load_base_model(package, PAIRS).classifier.out_proj.out_features == 2
    assert base_models.load_base_model(package, PAIRS).config.id2label == {0: "not_equivalent", 1: "equivalent"}
    assert base_models.load_base_model(package, RATINGS).classifier.out_proj.out_features == 1
    compares = base_models.load_base_model(package, COMPARISONS).config
    assert (compares.id2label, compares.problem_type) == ({0: "first", 1: "second"}, "single_label_classification")


def test_the_seed_decides_the_head_and_nothing_else(package):
    loaded = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        loaded.append(base_models.load_base_model(package, PAIRS).state_dict())
    same = [{name for name in loaded[0] if torch.equal(loaded[0][name], other[name])} for other in loaded[1:]]
    assert same[0] == set(loaded[0])
    assert set(loaded[0]) - same[1] == {"classifier.dense.weight", "classifier.out_proj.weight"}


def changed(model_row, **source):
    return model_row.model_copy(update={"source": model_row.source.model_copy(update=source)})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"sha256": "0" * 64}, r"model.safetensors of carrying==1.0 has sha256 [0-9a-f]{64}, not the row's"),
        ({"package": "carrying==2.0"}, "carrying has version 1.0, the row pins 2.0; install it with: pip install"),
        ({"folder": "carrying/other"}, "holds no carrying/other/model.safetensors"),
    ],
)
def test_a_package_that_is_not_what_the_row_pins_is_refused(package, source, words):
    with pytest.raises(UserError, match=words):
        base_models.load_base_model(changed(package, **source), PAIRS)


def test_a_head_that_the_model_does_not_have_lists_its_modules(package):
    model, section = base_models.load_base_model(package, PAIRS), HeadParams()
    with pytest.raises(UserError, match=r"head: the model has no module score; it has roberta, classifier"):
        planning.resolve(section, model, package.model_copy(update={"head": ("score",)}), 0)


@pytest.mark.parametrize(
    "call", [lambda row: base_models.outline(row, PAIRS), lambda row: base_models.load_base_model(row, PAIRS)]
)
def test_the_code_that_a_model_brings_is_not_run(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on the terminal"))
    workspace.save_tiny_roberta(tmp_path / "own")
    (tmp_path / "own/code_of_own.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    config = tmp_path / "own/config.json"
    mapping = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "code_of_own.Own")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "own", "auto_map": mapping}))
    with pytest.raises(UserError, match=r"^pipeline/models.yaml: .*own: .*") as error:
        call(row(path="own"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
