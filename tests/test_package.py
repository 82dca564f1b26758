"""What `pip install .` gives: lsr alone, which needs no package of the pipeline."""

import configparser
import shutil
import sys
import zipfile
from importlib.metadata import EntryPoint

import pytest

from lsr.__main__ import main
from tests.kit import refused
from tests.repository import command
from tests.workspace import ROOT

PACKAGES = ("lsr/", "lsr_onnx/", "lsr_server/")
# What the extras bring, by the names that are imported. accelerate is left out: PEFT needs it.
OTHERS = ("dvc", "datasets", "pydantic", "rich", "ruamel", "sklearn", "matplotlib", "pandas", "pyarrow")
ALONE = f"""
import sys
sys.modules.update(dict.fromkeys({OTHERS}))  # None: Python says that it is not there

import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import lsr

assert not [name for name in sys.modules if name.startswith(("lsr.convert", "lsr.serve"))], "loaded on first use"
sizes = {{"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}}
BertForSequenceClassification(BertConfig(vocab_size=64, **sizes)).save_pretrained("base")
model = get_peft_model(BertForSequenceClassification.from_pretrained("base"),
                       lsr.LsrConfig(task_type="SEQ_CLS", separation_rank=3, init_weights="principal")).eval()
ids = torch.arange(12).reshape(2, 6)
expected = model(input_ids=ids).logits
model.save_pretrained("adapter", save_embedding_layers=False)
again = PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained("base"), "adapter").eval()
torch.testing.assert_close(again(input_ids=ids).logits, expected)
lsr.export_lora(model, "lora")
assert all(callable(getattr(lsr, name)) for name in lsr.__all__)

from lsr.__main__ import main
main(["export", "adapter", "--to", "lora", "-o", "again", "--base", "base"])
print("done")
"""


def test_an_adapter_is_made_saved_loaded_and_exported_without_the_pipeline(tmp_path):
    assert "done" in command(tmp_path, sys.executable, "-c", ALONE, PYTHONPATH=str(ROOT)).splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in the wheel of the files that Git tracks, and its metadata; built without a connection."""
    source = tmp_path_factory.mktemp("source")
    for name in filter(None, command(ROOT, "git", "ls-files", "-z").split("\0")):
        if name.startswith(PACKAGES) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command(source, *pip, "-w", "out", ".")
    (built,) = (source / "out").iterdir()
    with zipfile.ZipFile(built) as archive:
        return {name.rpartition("dist-info/")[2]: archive.read(name).decode() for name in archive.namelist()}


def test_the_wheel_holds_lsr_and_nothing_else(wheel):
    names = {name for name in wheel if name.startswith(PACKAGES)}
    others = {"lsr/py.typed", "lsr_server/openapi.json"}
    modules = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert names == {path.relative_to(ROOT).as_posix() for path in modules} | others


def test_the_wheel_asks_for_the_packages_of_the_method_alone(wheel):
    lines = wheel["METADATA"].splitlines()
    lines = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist")]
    needed = {line.split("<")[0].split(">")[0].strip() for line in lines if "extra ==" not in line}
    assert needed == {"torch", "peft", "transformers", "tensorly", "scipy", "safetensors", "aenum"}


def test_the_console_script_is_python_m_lsr_and_says_its_own_name(wheel, monkeypatch):
    declared = configparser.ConfigParser(delimiters="=")
    declared.read_string(wheel["entry_points.txt"])
    script = EntryPoint("lsr", declared["console_scripts"]["lsr"], "console_scripts").load()
    words = ["import", "nothing", "-o", "out"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lsr", *words])
    assert refused(script) == "lsr import: nothing: no such folder"
    assert refused(main, words) == "python -m lsr import: nothing: no such folder"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lsr", "exprot"])
    assert refused(script).startswith("lsr: argument COMMAND: invalid choice: 'exprot'")
