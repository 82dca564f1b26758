"""A model row is loaded as pinned, adapted where it is usual, padded and classified correctly, or refused in a line."""

import hashlib
import sys

import pytest
import torch

from pipeline import tasks
from pipeline.data import base_models
from pipeline.methods import planning
from pipeline.methods.batches import tokenizer_of
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sources import ModelEntry
from tests import architectures, workspace
from tests.kit import edit, refused, write

PAIRS = DatasetEntry.model_validate(workspace.ROWS["glue"])


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package that carries the tiny model, and its row."""
    folder = tmp_path / "carrying/model"
    workspace.save_tiny_roberta(folder)
    (tmp_path / "carrying/__init__.py").write_text("raise RuntimeError('the code of the package was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / "carrying-1.0.dist-info/METADATA", "Name: carrying\nVersion: 1.0\n")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    yield row(package="carrying==1.0", folder="carrying/model", sha256=digest)
    sys.modules.pop("carrying", None)


def row(head=("classifier",), **source):
    usual = {"kind": "package", "same_as": "someone/tiny"} if "package" in source else {"kind": "hub"}
    return ModelEntry.model_validate({"source": usual | source, "target_modules": ["query"], "head": head})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"sha256": "0" * 64}, "model.safetensors of carrying==1.0 has sha256 "),
        ({"package": "carrying==2.0"}, "carrying has version 1.0, the entry pins 2.0; install it with: pip install"),
        ({"folder": "carrying/other"}, "holds no carrying/other/model.safetensors"),
    ],
)
def test_a_package_that_is_not_what_the_row_pins_is_refused(package, source, words):
    changed = package.model_copy(update={"source": package.source.model_copy(update=source)})
    refused(base_models.load_base_model, changed, tasks.of(PAIRS), says=words)


def test_a_head_that_the_model_does_not_have_lists_its_modules(package):
    model = base_models.load_base_model(package, tasks.of(PAIRS))
    row = package.model_copy(update={"head": ("score",)})
    refused(planning.head_of, row, model, says="head: the model has no module score; it has roberta, classifier")


@pytest.mark.parametrize("call", [base_models.outline, base_models.load_base_model])
def test_the_code_that_a_model_brings_is_not_run(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks on the terminal"))
    workspace.save_tiny_roberta(tmp_path / "own")
    (tmp_path / "own/code_of_own.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    mapping = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "code_of_own.Own")
    edit(tmp_path / "own/config.json", model_type="own", auto_map=mapping)
    assert refused(call, row(path="own"), tasks.of(PAIRS), says="own: ").startswith("pipeline/models.yaml: ")
    assert not (tmp_path / "ran").exists()


TEXTS = ["the cat", "the owl number 3 sleeps in the barn at night", "nobody saw 3"]
USUAL = {  # by PEFT's table, which MPNet is not in
    "gpt2": (["c_attn"], ["score"]),
    "llama": (["q_proj", "v_proj"], ["score"]),
    "opt": (["q_proj", "v_proj"], ["score"]),
    "deberta-v2": (["query_proj", "value_proj"], ["pooler", "classifier"]),
    "distilbert": (["q_lin", "v_lin"], ["pre_classifier", "classifier"]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that returns the folder of a tiny model."""
    root = tmp_path_factory.mktemp("models")
    return lambda kind: root / kind if (root / kind).is_dir() else architectures.save(root / kind, kind)


@pytest.fixture
def named(saved):
    """A function that returns the row of a tiny model that is named itself."""
    return lambda kind: ModelEntry.from_name(str(saved(kind)), "params.yaml: model")


POSITIONS = {"gpt2", "opt", "deberta-v2", "mpnet"}  # that have learned 64 of them; the others turn by any angle


@pytest.mark.parametrize("kind", sorted({*POSITIONS, "llama"}))
def test_the_longest_text_that_positions_allow_is_the_longest_that_the_model_takes(kind, named, monkeypatch):
    model = base_models.load_base_model(named(kind), tasks.of(PAIRS)).eval()

    def check(length):
        base_models.check_positions(model, length)
        model(input_ids=torch.full((1, length), 5), attention_mask=torch.ones(1, length))

    check(64)
    if kind not in POSITIONS:
        check(65)
        return
    refused(check, 65, says=" takes at most 64 tokens, got 65")
    monkeypatch.setattr(base_models, "check_positions", lambda *_: None)
    with pytest.raises((IndexError, RuntimeError)):
        check(65)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_decoder_classifies_the_last_token_of_each_text_in_a_batch(kind, named):
    row = named(kind)
    model = base_models.load_base_model(row, tasks.of(PAIRS))
    tokenizer = tokenizer_of(model, row)
    assert tokenizer.pad_token == ("<pad>" if kind in architectures.PADS else architectures.END)
    found = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    for text, logits in zip(TEXTS, found, strict=True):
        before, last = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -2:]
        assert torch.allclose(logits, model.score(last), atol=1e-5)
        assert not torch.allclose(logits, model.score(before), atol=1e-3)


@pytest.mark.parametrize("kind", USUAL)
def test_a_model_that_is_named_itself_has_the_usual_layers_and_its_head(kind, named):
    row = named(kind)
    model = base_models.load_base_model(row, tasks.of(PAIRS))
    assert (list(planning.targets_of(row, model)), planning.head_of(row, model)) == USUAL[kind]


def test_an_architecture_that_no_table_knows_lists_its_linear_layers(named):
    model = base_models.load_base_model(named("mpnet"), tasks.of(PAIRS))
    line = refused(planning.targets_of, named("mpnet"), model)
    assert line.startswith("params.yaml: model: ")
    assert "of the architecture mpnet are usually adapted; name them by target_modules of its entry" in line
    assert line.endswith("its linear layers: q, k, v, o, dense")


def test_a_repository_may_be_named_with_its_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = ModelEntry.from_name("Qwen/Qwen2.5-0.5B@abc", "here").source
    assert (source.path, source.revision) == ("Qwen/Qwen2.5-0.5B", "abc")
    assert ModelEntry.from_name("Qwen/Qwen2.5-0.5B", "here").source.revision is None
    assert ModelEntry.from_name("roberta-bsae", "here") is None
