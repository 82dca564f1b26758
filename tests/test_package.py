"""What `pip install .` gives: lsr alone, which works in a process that can import no package of the pipeline."""

import os
import re
import shutil
import subprocess
import zipfile

import pytest

from tests.helpers import ROOT, in_new_process

PACKAGES = ("lsr/", "lsr_onnx/", "lsr_server/")
NEEDED = {"torch", "peft", "transformers", "tensorly", "scipy", "safetensors", "aenum"}
# What the extras bring, by the names that are imported. accelerate is left out: PEFT needs it.
OTHERS = ("dvc", "datasets", "pydantic", "rich", "ruamel", "sklearn", "matplotlib", "pandas", "pyarrow")
ALONE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # None: Python says that it is not there

import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import lsr

sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
BertForSequenceClassification(BertConfig(vocab_size=64, **sizes)).save_pretrained("base")
config = lsr.LsrConfig(task_type="SEQ_CLS", separation_rank=3, init_weights="principal")
model = get_peft_model(BertForSequenceClassification.from_pretrained("base"), config).eval()
ids = torch.arange(12).reshape(2, 6)
expected = model(input_ids=ids).logits
model.save_pretrained("adapter", save_embedding_layers=False)
again = PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained("base"), "adapter").eval()
torch.testing.assert_close(again(input_ids=ids).logits, expected)
lsr.export_lora(model, "lora")
assert all(callable(getattr(lsr, name)) for name in lsr.__all__)
print(lsr.__file__)

from importlib.metadata import entry_points
(script,) = [one for one in entry_points(group="console_scripts") if one.name == "lsr"]
sys.argv = ["lsr", "export", "adapter", "--to", "lora", "-o", "again", "--base", "base"]
script.load()()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the files that Git tracks; built without a connection."""
    source = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        if name.startswith(PACKAGES) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", "out"]
    in_new_process(source, "-m", "pip", "wheel", *options, ".")
    (built,) = (source / "out").iterdir()
    return built


def read_metadata(wheel):
    """Return the lines of a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return archive.read(name).decode().splitlines()


def test_the_wheel_holds_the_packages_of_lsr_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {"lsr/py.typed", "lsr_server/openapi.json"}
    for package in PACKAGES:
        modules = (ROOT / package).rglob("*.py")
        expected |= {path.relative_to(ROOT).as_posix() for path in modules}
    assert {name for name in names if "dist-info" not in name} == expected


def test_the_wheel_needs_what_the_method_needs(wheel):
    required = set()
    for line in read_metadata(wheel):
        if line.startswith("Requires-Dist: ") and "extra ==" not in line:
            required.add(re.split("[ <>]+", line)[1])
    assert required == NEEDED


def test_an_adapter_is_made_saved_loaded_and_exported_without_the_pipeline(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    ended = in_new_process(tmp_path, "-c", ALONE, *OTHERS, PYTHONPATH=os.fspath(site), PYTHONSAFEPATH="1")
    assert str(site / "lsr/__init__.py") in ended.stdout
    assert (tmp_path / "again/adapter_model.safetensors").is_file()
