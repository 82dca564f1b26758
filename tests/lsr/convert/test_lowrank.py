"""Adapters of any PEFT method as plain LoRAs, held to PEFT's merged models and to numpy's ranks."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lsr import export_lora, export_merged
from lsr.__main__ import main
from lsr.errors import InputError
from lsr.tuner.files import WEIGHTS
from pipeline.methods import kadaptation
from tests import architectures
from tests.kit import digests, edit, refused, said, write
from tests.lsr.methods import METHODS, logits, model_of, save
from tests.old_tiny.models import tiny
from tests.old_tiny.training import stir
from tests.workspace import ROOT, read_yaml

WIDTH = 24  # of the layers that most methods adapt
LOW = {  # the ranks by which the tiny adapters of methods are defined
    "ADALORA": 6,
    "ADAMSS": 2,
    "DEFT": 4,
    "DELORA": 4,
    "GRALORA": 8,
    "HRA": 4,
    "KADAPTATION": 4,  # two terms with a factor of rank 2 and one of rank 1
    "LORA": 4,
    "LSR": 2,
    "MISS": 4,
    "PEANUT": 4,
    "PSOFT": 4,
    "PVERA": 4,
    "TINYLORA": 4,
    "UNILORA": 4,
    "VBLORA": 4,
    "VERA": 4,
}
HIGH = {  # likewise, where a LoRA of that rank is larger than a layer
    "BOFT": WIDTH,
    "C3A": WIDTH,
    "FOURIERFT": None,  # twice the rows or columns that have a frequency
    "FROD": WIDTH,
    "GLORA": WIDTH,
    "HIRA": WIDTH,
    "IA3": WIDTH,
    "LOHA": 4 * 4,
    "LOKR": WIDTH,
    "OFT": WIDTH,
    "OSF": WIDTH,
    "RANDLORA": WIDTH,
    "ROAD": WIDTH,
    "WAVEFT": None,
}
REFUSED = {
    "ADAPTION_PROMPT": "cannot be merged",
    "BEFT": "changes no weight of a linear layer, so there is no LoRA",
    "CARTRIDGE": "cannot be merged",
    "CPT": "cannot be merged",
    "LILY": "cannot be merged",
    "LN_TUNING": "changes bert.embeddings.LayerNorm.weight, which is not a weight of a linear layer",
    "MULTITASK_PROMPT_TUNING": "cannot be merged",
    "POLY": "cannot be merged",
    "PREFIX_TUNING": "cannot be merged",
    "PROMPT_TUNING": "cannot be merged",
    "P_TUNING": "cannot be merged",
    "TRAINABLE_TOKENS": "changes bert.embeddings.word_embeddings.weight, which is not a weight of a linear layer",
}


NOT_LINEAR = ("BEFT", "LN_TUNING", "TRAINABLE_TOKENS")  # they change biases, layer norms or embeddings


def test_every_method_of_peft_and_of_the_arena_is_here():
    here = {*LOW, *HIGH, *REFUSED}
    assert here == {*METHODS, kadaptation.NAME}
    of_params = {section["type"] for section in read_yaml(ROOT / "params.yaml").values() if "type" in (section or ())}
    of_arena = re.findall(r"\w+\.type: (\w+)", (ROOT / "pipeline/arena.yaml").read_text())
    assert len(of_params) > 5
    assert len(of_arena) > 3
    assert of_params.union(of_arena) <= here


def test_a_method_that_no_module_has_registered_is_refused_in_a_line(bases, tmp_path):
    save(tmp_path / "adapter", "LORA")
    edit(tmp_path / "adapter/adapter_config.json", peft_type="MYOWN")
    with pytest.raises(
        InputError, match="PEFT has no method 'MYOWN', and no imported module has registered one"
    ) as error:
        export_lora(tmp_path / "adapter", tmp_path / "lora", base=str(bases / "bert"))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """By name, folders of tiny models."""
    folder = tmp_path_factory.mktemp("bases")
    for name in ("bert", "llama-causal", "gpt2", "bert-wide"):
        tiny(name).save_pretrained(folder / name)
    return folder


def base_of(bases, method):
    return str(bases / ("bert" if "Bert" in type(model_of(method)).__name__ else "llama-causal"))


def merged(folder, base):
    """Return the base model with an adapter, merged by PEFT in float64."""
    model = PeftModel.from_pretrained(base, str(folder)).double().merge_and_unload()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "ModulesToSaveWrapper":
            model.set_submodule(name, module.modules_to_save["default"])
    return model.eval()


def weights(model):
    """Return the weights of linear layers, outputs by inputs."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight = module.weight.detach().double().numpy()
            found[name] = weight.T if isinstance(module, Conv1D) else weight
    return found


def check(adapter, lora, name, heads=("classifier", "score", "lm_head")):
    """Check that a LoRA adds what an adapter does to a tiny model, by least ranks; return these by layer."""
    before = weights(tiny(name).double())
    expected = merged(adapter, tiny(name))
    actual = merged(lora, tiny(name))
    ranks = {}
    for layer, weight in weights(expected).items():
        update = weight - before[layer]
        difference = weights(actual)[layer] - weight
        if layer in heads or not update.any():
            assert not difference.any(), layer
            continue
        assert np.linalg.norm(difference) <= 1e-6 * np.linalg.norm(update), layer
        values = np.linalg.svd(update, compute_uv=False)
        tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1]) / np.linalg.norm(values)
        tensors = load_file(lora / WEIGHTS)
        ranks[layer] = len(tensors[f"base_model.model.{layer}.lora_A.weight"])
        assert not (tails[ranks[layer] :] > 1e-6).any()
        assert tails[ranks[layer] - 1] > 1e-7, "fewer would do"
    return expected, actual, ranks


@pytest.mark.parametrize("method", LOW)
def test_an_adapter_of_low_rank_is_the_same_lora_in_the_fewest_ranks(method, bases, tmp_path):
    save(tmp_path / "adapter", method)
    lost = export_lora(tmp_path / "adapter", tmp_path / "lora", base=base_of(bases, method))
    assert lost.total <= 1e-6
    expected, actual, ranks = check(tmp_path / "adapter", tmp_path / "lora", "bert")
    assert ranks
    assert set(ranks.values()) == {LOW[method]}
    assert torch.allclose(logits(actual, method), logits(expected, method), atol=1e-6)
    unmerged = PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "adapter"))
    assert torch.allclose(logits(actual, method), logits(unmerged, method).double(), atol=1e-5)
    fields = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert fields["peft_type"] == "LORA"


@pytest.mark.parametrize("method", HIGH)
def test_one_of_high_rank_is_refused_with_the_rank_that_it_needs_and_written_with_that(method, bases, tmp_path):
    base = base_of(bases, method)
    save(tmp_path / "adapter", method)
    with pytest.raises(InputError, match="at which a LoRA is larger than the weight") as error:
        export_lora(tmp_path / "adapter", tmp_path / "lora", base=base)
    assert not (tmp_path / "lora").exists()
    needed = int(re.search(r"--rank (\d+) writes all layers whole", str(error.value))[1])
    assert HIGH[method] in (None, needed, needed + 1)  # RandLoRA's last direction is smaller than rounding
    assert export_lora(tmp_path / "adapter", tmp_path / "lora", base=base, rank=needed).total <= 1e-6
    expected, actual, ranks = check(tmp_path / "adapter", tmp_path / "lora", "bert")
    assert max(ranks.values()) == needed
    assert torch.allclose(logits(actual, method), logits(expected, method), atol=1e-5)


@pytest.mark.parametrize("method", REFUSED)
def test_what_is_no_lora_is_refused_in_a_line(method, bases, tmp_path):
    save(tmp_path / "adapter", method)
    with pytest.raises(InputError, match=re.escape(REFUSED[method])) as error:
        export_lora(tmp_path / "adapter", tmp_path / "lora", base=base_of(bases, method))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize("method", sorted([*LOW, *HIGH, *NOT_LINEAR]))
def test_a_merged_checkpoint_has_the_weights_that_peft_merges(method, bases, tmp_path):
    save(tmp_path / "adapter", method)
    lost = export_merged(tmp_path / "adapter", tmp_path / "merged", base=base_of(bases, method))
    assert lost.total <= 1e-5
    written = BertForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    expected = merged(tmp_path / "adapter", tiny("bert")).float()
    actual = written.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.allclose(actual[name], value, atol=1e-6), name
    unmerged = PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "adapter"))
    assert torch.allclose(logits(written, method), logits(unmerged, method), atol=1e-5)


def test_a_prompt_cannot_be_merged_and_is_refused_in_a_line(bases, tmp_path):
    save(tmp_path / "adapter", "PROMPT_TUNING")
    with pytest.raises(InputError, match="PROMPT_TUNING cannot be merged") as error:
        export_merged(tmp_path / "adapter", tmp_path / "merged", base=str(bases / "llama-causal"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_the_command_merges_any_method_and_prints_rounding_and_the_difference_of_outputs(bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "oft", "OFT")
    write("oft/task.json", {"labels": ["bad", "fair", "good"]})
    base = ["--base", str(bases / "bert")]
    text = said(main, "export", "oft", "--to", "merged", "-o", "out", *base)
    (difference,) = re.findall(r"^merged: differs by (\S+) at most$", text, re.MULTILINE)
    assert float(difference) < 1e-5
    assert json.loads(Path("out/config.json").read_text())["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    text = said(main, "export", "oft", "--to", "merged", "--dtype", "bfloat16", "-o", "half", *base, "--force")
    rounding = re.findall(r"rounding error of the update in bfloat16: (\S+) in total", text)
    assert float(rounding[0]) > 1e-3
    said(main, "export", "oft", "--to", "merged", "-o", "again", *base)
    assert [*digests("again").values()] == [*digests("out").values()]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_at_a_rank_it_is_the_nearest_update_with_its_errors(rank, bases, tmp_path):
    save(tmp_path / "adapter", "LOKR")
    lost = export_lora(tmp_path / "adapter", tmp_path / "lora", base=str(bases / "bert"), rank=rank)
    before = weights(tiny("bert").double())
    expected = weights(merged(tmp_path / "adapter", tiny("bert")))
    actual = weights(merged(tmp_path / "lora", tiny("bert")))
    squares = {}
    for layer, error in lost.layers.items():
        update = expected[layer] - before[layer]
        left, values, right = np.linalg.svd(update)
        nearest = left[:, :rank] * values[:rank] @ right[:rank]  # Eckart and Young
        assert np.linalg.norm(actual[layer] - before[layer] - nearest) <= 1e-6 * np.linalg.norm(update)
        assert error == pytest.approx(np.linalg.norm(update - nearest) / np.linalg.norm(update), abs=1e-6)
        squares[layer] = np.linalg.norm(update - nearest) ** 2, np.linalg.norm(update) ** 2
    missing, whole = np.sum(list(squares.values()), axis=0)
    assert lost.total == pytest.approx(np.sqrt(missing / whole), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gpt2", VeraConfig(task_type="SEQ_CLS", r=4, target_modules=["c_attn"])),
        ("gpt2", LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["c_attn", "c_fc"], use_rslora=True)),
        (
            "bert-wide",
            LoHaConfig(task_type="SEQ_CLS", r=2, rank_pattern={"value": 3}, target_modules=["query", "value"]),
        ),
        (
            "bert",
            LoraConfig(
                task_type="SEQ_CLS",
                r=2,
                rank_pattern={"layer.1.attention.self.query": 5},
                alpha_pattern={"value": 7},
                bias="all",
                target_modules=["query", "value", "output.dense"],
            ),
        ),
        ("bert", LoraConfig(task_type="SEQ_CLS", r=3, init_lora_weights="pissa", target_modules=["query"])),
    ],
    ids=["Conv1D", "Conv1D of two widths", "ranks of LoHa", "ranks, alphas and biases", "a changed base"],
)
def test_transposed_weights_patterns_and_biases_are_kept(name, config, bases, tmp_path):
    torch.manual_seed(0)
    model = stir(get_peft_model(tiny(name), config).eval())
    model.save_pretrained(str(tmp_path / "adapter"))
    assert export_lora(tmp_path / "adapter", tmp_path / "lora", base=str(bases / name)).total <= 1e-6
    expected, actual, ranks = check(tmp_path / "adapter", tmp_path / "lora", name)
    assert ranks
    assert torch.allclose(logits(actual, "LORA"), logits(expected, "LORA"), atol=1e-6)


@pytest.mark.parametrize(("kind", "target"), [("deberta", "in_proj"), ("t5", "q")])
def test_a_parameter_that_is_only_named_like_a_bias_stays_the_base_models(kind, target, tmp_path):
    base = str(architectures.save(tmp_path / "base", kind))
    torch.manual_seed(0)
    start = AutoModelForSequenceClassification.from_pretrained(base)
    start.save_pretrained(base)  # with the head: PEFT does not save that of T5
    config = LoraConfig(task_type="SEQ_CLS", r=2, bias="all", target_modules=[target])
    model = stir(get_peft_model(copy.deepcopy(start), config).eval())
    model.save_pretrained(str(tmp_path / "adapter"))
    export_lora(tmp_path / "adapter", tmp_path / "lora", base=base)
    # Neither DeBERTa's q_bias nor T5's relative_attention_bias, which PEFT neither trains nor saves.
    names = load_file(tmp_path / "adapter" / WEIGHTS).keys()
    once = {name for name in names if "modules_to_save" not in name and "original_module" not in name}
    assert load_file(tmp_path / "lora" / WEIGHTS).keys() == once
    loaded = PeftModel.from_pretrained(start, str(tmp_path / "lora")).eval()
    inputs = {"input_ids": torch.tensor([[5, 9, 7, 0]])}
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=1e-6)
    said(main, "export", str(tmp_path / "adapter"), "--to", "lora", "-o", str(tmp_path / "again"), "--base", base)


def test_the_command_prints_ranks_errors_and_the_difference_of_outputs(bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "vera", "VERA")
    save(tmp_path / "lokr", "LOKR")
    base = ["--base", str(bases / "bert")]
    text = said(main, "export", "vera", "--to", "lora", "-o", "out", *base)
    assert text.startswith("out: LoRA of rank 4 to 4, 4 layers, ")
    differences = [float(value) for value in re.findall(r": differs by (\S+) at most", text)]
    assert len(differences) == 2
    assert max(differences) < 1e-5
    text = said(main, "export", "lokr", "--to", "lora", "--rank", "2", "-o", "low", *base)
    assert text.startswith("low: LoRA of rank 2 to 2, 4 layers, ")
    assert len(re.findall(r"^ +\d+\.\d{3}%  bert\.encoder\.layer\.\d\.attention\.self\.\w+$", text, re.MULTILINE)) == 4
    said(main, "export", "vera", "--to", "lora", "-o", "again", *base)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "out" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "lora"], "needs rank 24, at which"),
        (["--to", "lora", "--rank", "0"], "argument --rank: needed: a whole number above 0, got '0'"),
        (["--to", "merged", "--rank", "3"], "--rank 3 has no effect with --to merged"),
        (["--to", "onnx", "--rank", "3"], "--rank 3 has no effect with --to onnx"),
        (["--to", "lora", "--rank", "2", "--base", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_of_the_command_is_one_line_and_writes_nothing(words, message, bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = tiny("bert")
    base.name_or_path = str(bases / "bert")
    config = IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    stir(get_peft_model(base, config)).save_pretrained("adapter")
    before = sorted(tmp_path.rglob("*"))
    refused(main, ["export", "adapter", "-o", "out", *words], says=message)
    assert sorted(tmp_path.rglob("*")) == before
