"""A LoRA becomes an LSR adapter: certificates are distances of loaded models, and what has no exact form is refused."""

import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from benchmarks.capabilities.models import logits, tiny
from lsr import compress_lora, export_lora
from lsr.convert.files import InputError
from lsr.convert.loading import load_adapter
from lsr.tuner.linear import adapted_layers
from lsr.tuner.saved import CONFIG, WEIGHTS
from tests.lsr import fits
from tests.lsr.distances import check_certificate, updates
from tests.lsr.saved import CASES, adapted, train

pytestmark = pytest.mark.usefixtures("remembered_fits")

LORAS = {  # what it shows: model, fields
    "a head of one layer": ("bert", {}),
    "a head of two layers": ("roberta", {}),
    "transposed weights": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "a language model": (
        "gpt2-causal",
        {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "fan_in_fan_out": True},
    ),
    "no task": ("bert", {"task_type": None}),
    "padded widths": ("bert-padded", {}),
    "rank stabilized": ("bert", {"use_rslora": True}),
    "patterns": (
        "bert",
        {"rank_pattern": {"query": 2, r"layer\.1\..*value": 3}, "alpha_pattern": {"0.attention.self.query": 5}},
    ),
    "rank stabilized with patterns": (
        "bert",
        {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 5}},
    ),
    "all biases": ("bert", {"bias": "all"}),
    "biases of the adapted": ("bert", {"bias": "lora_only"}),
    "one layer": ("bert", {"layers_to_transform": [1]}),
    "dropout": ("bert", {"lora_dropout": 0.1}),
    "an expression": ("bert", {"target_modules": r".*layer\.1\..*(query|dense)"}),
    "another start": ("bert", {"init_lora_weights": "orthogonal"}),
}
each_lora = pytest.mark.parametrize("case", LORAS)


def save_lora(name, folder, **fields):
    """Save a trained LoRA at `folder`/lora and its base at `folder`/base; return the model."""
    base = tiny(name)
    base.save_pretrained(str(folder / "base"))
    base.name_or_path = str(folder / "base")
    torch.manual_seed(0)
    usual = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 6, "target_modules": ["query", "value"]}
    model = train(get_peft_model(base, LoraConfig(**{**usual, **fields})))
    model.save_pretrained(str(folder / "lora"), save_embedding_layers=False)
    return model


def compressed(case, folder, **options):
    name, fields = LORAS[case]
    model = save_lora(name, folder, **fields)
    certificate = compress_lora(folder / "lora", folder / "lsr", **options)
    return model, certificate, load_adapter(folder / "lsr")


@pytest.mark.parametrize(
    ("case", "options"),
    [
        *((case, {"separation_rank": 2}) for case in LORAS),
        *((case, {"separation_rank": 1}) for case in ("padded widths", "patterns")),
        *((case, {"error": 0.4}) for case in ("padded widths", "patterns")),
    ],
)
def test_certificates_are_distances_of_the_loaded_models(case, options, tmp_path):
    model, certificate, loaded = compressed(case, tmp_path, **options)
    check_certificate(certificate, model, loaded, options.get("error", 1))
    written = load_file(tmp_path / "lsr" / WEIGHTS)
    assert sum(layer.parameters for layer in certificate.layers.values()) == sum(
        t.numel() for n, t in written.items() if ".lsr_" in n
    )
    lora = load_file(tmp_path / "lora" / WEIGHTS)
    assert sum(layer.parameters_before for layer in certificate.layers.values()) == sum(
        t.numel() for n, t in lora.items() if ".lora_" in n
    )


@each_lora
def test_heads_and_biases_are_carried_over(case, tmp_path):
    compressed(case, tmp_path, separation_rank=1)
    lora, written = (
        {
            name: value
            for name, value in load_file(tmp_path / folder / WEIGHTS).items()
            if not re.search(r"\.(lora|lsr)_", name)
        }
        for folder in ("lora", "lsr")
    )
    twice = {
        name for name in lora if "modules_to_save" in name or "original_module" in name
    }  # by PEFT, with all biases
    assert lora.keys() - twice == written.keys()
    assert all(torch.equal(value, lora[name]) for name, value in written.items())


@pytest.mark.parametrize("case", ["a head of two layers", "patterns"])
def test_a_small_error_gives_the_same_outputs(case, tmp_path):
    model, certificate, loaded = compressed(case, tmp_path, error=1e-5)
    assert certificate.error <= 1e-5
    assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)


def test_each_layer_gets_the_fewest_terms(tmp_path):
    save_lora("bert", tmp_path)
    found = compress_lora(tmp_path / "lora", tmp_path / "lsr", error=0.3)
    terms = {name: layer.separation_rank for name, layer in found.layers.items()}
    assert all(layer.error <= 0.3 for layer in found.layers.values())
    fewer = compress_lora(tmp_path / "lora", tmp_path / "fewer", separation_rank=max(terms.values()) - 1)
    assert all(fewer.layers[name].error > 0.3 for name in terms if terms[name] == max(terms.values()))
    loaded = adapted_layers(load_adapter(tmp_path / "lsr"))
    assert {name: layer.adapter("default").form.separation_rank for name, layer in loaded.items()} == terms


def test_a_rank_shape_cuts_the_rank_too(tmp_path):
    save_lora("bert", tmp_path)
    found = compress_lora(tmp_path / "lora", tmp_path / "lsr", separation_rank=4, rank_shape=(2, 1))
    layers = adapted_layers(load_adapter(tmp_path / "lsr"))
    assert {layer.adapter("default").form.rank_shape for layer in layers.values()} == {(2, 1)}
    assert 0.01 < found.error < 1
    three = compress_lora(tmp_path / "lora", tmp_path / "three", separation_rank=2, rank_shape=(2, 1, 2))
    assert {
        len(layer.adapter("default").form.in_shape)
        for layer in adapted_layers(load_adapter(tmp_path / "three")).values()
    } == {3}
    assert three.error < 1


def test_an_untrained_lora_stays_zero(tmp_path):
    base = tiny("bert")
    base.save_pretrained(str(tmp_path / "base"))
    base.name_or_path = str(tmp_path / "base")
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).save_pretrained(
        str(tmp_path / "lora")
    )
    assert compress_lora(tmp_path / "lora", tmp_path / "lsr", error=0.01).error == 0
    assert not any(update.any() for update in updates(load_adapter(tmp_path / "lsr")).values())


@pytest.mark.parametrize("case", ["a head of two layers", "padded widths", "transposed weights"])
def test_an_exported_adapter_comes_back(case, tmp_path):
    name, fields = CASES[case]
    model = adapted(name, tmp_path / "base", **fields)
    export_lora(model, tmp_path / "lora")
    found = compress_lora(tmp_path / "lora", tmp_path / "lsr", separation_rank=3, rank_shape=(2, 2))
    assert found.error < 1e-5
    assert_close(logits(load_adapter(tmp_path / "lsr")), logits(model), atol=1e-5, rtol=1e-5)


def test_the_result_can_be_trained_further(tmp_path):
    save_lora("bert", tmp_path)
    compress_lora(tmp_path / "lora", tmp_path / "lsr", separation_rank=2)
    model = PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "lsr"), is_trainable=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train(model)
    assert not [name for name, value in before.items() if torch.equal(value, dict(model.named_parameters())[name])]


def test_the_same_lora_gives_the_same_bytes(tmp_path):
    save_lora("bert", tmp_path)
    for name in ("one", "two"):
        fits.forget()
        compress_lora(tmp_path / "lora", tmp_path / name, separation_rank=2)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


# What has no exact form


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora=True has no exact LSR form"),
        ({"lora_bias": True}, "lora_bias=True has no exact LSR form"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' has no exact LSR form"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication=\[\[0, 1\]\] has no exact LSR form"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\] has no exact LSR form"),
        ({"target_parameters": ["x"]}, r"target_parameters=\['x'\] has no exact LSR form"),
        ({"a_new_option": 3}, "a_new_option=3 has no exact LSR form"),
        ({"bias": "some"}, r"bias must be one of \['none', 'all', 'lora_only'\], got 'some'"),
        ({"peft_type": "LSR"}, "an adapter of the method LSR; needed: LORA"),
        ({"r": 5}, "has rank 4, but its configuration says 5"),
        ({"lora_dropout": 1.5}, r"dropout must be in \[0, 1\), got 1.5"),
        ({"task_type": "NOPE"}, "adapter_config.json: .*NOPE"),
        ({"task_type": {}}, "adapter_config.json: task_type: must be a string or null, got {}"),
    ],
)
def test_what_has_no_exact_form_is_refused(fields, message, tmp_path):
    save_lora("bert", tmp_path)
    path = tmp_path / "lora" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(InputError, match=message):
        compress_lora(tmp_path / "lora", tmp_path / "lsr", separation_rank=2)
    assert not (tmp_path / "lsr").exists()


def test_a_real_dora_is_refused(tmp_path):
    save_lora("bert", tmp_path, use_dora=True)
    with pytest.raises(InputError, match="use_dora=True has no exact LSR form; needed: plain LoRA"):
        compress_lora(tmp_path / "lora", tmp_path / "lsr", separation_rank=2)


def test_an_embedding_is_refused(tmp_path):
    save_lora("bert", tmp_path, target_modules=["word_embeddings", "query"])
    with pytest.raises(InputError, match=r"lora_embedding_A .* has no LSR form; needed: LoRA of linear layers"):
        compress_lora(tmp_path / "lora", tmp_path / "lsr", separation_rank=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(next(name for name in tensors if "lora_B" in name)), "or one is missing"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if "lora_" in name], "holds no LoRA factors"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(change, message, tmp_path):
    save_lora("bert", tmp_path)
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / "lora" / WEIGHTS)
    with pytest.raises(InputError, match=message):
        compress_lora(tmp_path / "lora", tmp_path / "lsr", separation_rank=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--separation-rank or --error is needed, or both"),
        ({"separation_rank": 0}, "--separation-rank must be >= 1, got 0"),
        ({"separation_rank": 99}, r"--separation-rank must be in \[1, 8\] for these layers, got 99"),
        ({"error": 0.0}, r"--error must be a number in \(0, 1\), got 0"),
        ({"error": float("nan")}, r"--error must be a number in \(0, 1\), got nan"),
        ({"error": 1.5}, r"--error must be a number in \(0, 1\), got 1.5"),
        ({"error": 0.1, "rank_shape": (4,)}, "--rank-shape must hold two or more ranks >= 1, got 4"),
        ({"error": 0.1, "rank_shape": (2, 0)}, "--rank-shape must hold two or more ranks >= 1, got 2 0"),
        ({"error": 0.1, "rank_shape": (9, 9)}, r"layer '.*query': the rank must be in \[1, 24\], got 81"),
        (
            {"error": 1e-6, "separation_rank": 1},
            r"layer '.*': the error 1e-06 is out of reach: rank \[2, 2\] with 1 terms leaves 0",
        ),
        (
            {"error": 1e-3, "rank_shape": (1, 1)},
            r"the error 0.001 is out of reach: rank \[1, 1\] with \d terms leaves 0",
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(options, message, tmp_path):
    save_lora("bert", tmp_path)
    with pytest.raises(InputError, match=message):
        compress_lora(tmp_path / "lora", tmp_path / "lsr", **options)
    assert not (tmp_path / "lsr").exists()
