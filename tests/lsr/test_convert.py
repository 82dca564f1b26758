"""Converted adapters answer as they did: to PEFT and transformers in a process without `lsr`, and by dense matrices.

LSR adapters are held to Kronecker products of their files, adapters of other methods to what PEFT merges.
"""

import json
import re
import zlib
from collections import OrderedDict
from contextlib import chdir
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoTokenizer

from lsr import LsrConfig, compress_adapter, export_lora, export_merged, quantize_adapter
from tests import reference, rows, tiny
from tests.helpers import digests, edit, in_new_process, printed, read_json, refused, run_stages, write

WEIGHTS = "adapter_model.safetensors"
DENSE = {"rank_shape": (4,)}
CORE = DENSE | {"train": "core", "init_weights": "principal"}
SHARED = CORE | {"share": "layers"}
PATTERNS = {
    "separation_rank": 2,
    "target_modules": r".*\.(query|key|value)",
    "rank_pattern": {"query": (1, 2), r"layer\.1\..*value": (2, 1)},
    "alpha_pattern": {"0.attention.self.query": 3},
    "modules_to_save": ["pooler"],
}
ADAPTERS = {  # of LSR: the architecture, and fields of its configuration
    "two factors": ("bert", {"rank_shape": (2, 2), "separation_rank": 3}),
    "patterns": ("bert", PATTERNS),
    "no task": ("bert", DENSE | {"task_type": None, "target_modules": ["query"]}),
    "core": ("roberta", CORE),
    "diagonal core": ("deberta-v2", CORE | {"core": "diagonal"}),
    "shared": ("distilbert", SHARED),
    "transposed": ("gpt2", SHARED | {"train": "all", "core": "diagonal", "target_modules": "all-linear"}),
    "encoder and decoder": ("t5", DENSE | {"dropout": 0.3}),
    "grouped queries": ("llama", SHARED | {"init_weights": True, "task_type": "CAUSAL_LM"}),
    "one of the layers": ("gpt2", DENSE | {"layers_to_transform": 0, "layers_pattern": "h", "task_type": "CAUSAL_LM"}),
}
RANKS = {"r": 3, "rank_pattern": {"value": 2}, "alpha_pattern": {"query": 5}}
FULL = 24  # the width of the layers
METHODS = {  # of PEFT: the architecture, fields of its configuration, and the rank of the LoRA; 0 if there is none
    "LoraConfig": ("bert", RANKS | {"use_rslora": True}, 3),
    "LoraConfig, DoRA": ("bert", {"r": 2, "use_dora": True}, FULL),
    "LoraConfig, PiSSA": ("bert", {"r": 3, "init_lora_weights": "pissa"}, 6),
    "VeraConfig": ("bert", {"r": 4}, 4),
    "VeraConfig, transposed": ("gpt2", {"r": 4}, 4),
    "LoHaConfig": ("bert", {"r": 2}, 4),
    "LoKrConfig": ("bert", {"r": 4}, FULL),
    "HRAConfig": ("bert", {"r": 4}, 4),
    "AdaLoraConfig": ("bert", {"total_step": 10, "target_r": 4, "init_r": 6}, 6),
    "VBLoRAConfig": ("bert", {"r": 4, "num_vectors": 8, "vector_length": 3}, 4),
    "OFTConfig": ("bert", {"oft_block_size": 4, "r": 0}, 0),
    "IA3Config": ("bert", {"feedforward_modules": []}, 0),
    "LNTuningConfig": ("bert", {"target_modules": ["LayerNorm"]}, 0),
}
PORTABLE = {  # fields that old versions of PEFT know
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save"),
    *("peft_type", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_rslora"),
}
# A reader who has PEFT alone: `import lsr` fails there, as it does where it is not installed.
READER = """
import json, sys, warnings
from pathlib import Path
sys.modules["lsr"] = None
import torch, transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
warnings.simplefilter("error")  # such as that of a missing key, or of a wrong fan_in_fan_out
warnings.filterwarnings("ignore", category=FutureWarning)
root = Path(sys.argv[1])
inputs = load_file(root / "inputs.safetensors")
found = {}
def load(folder):
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, kind).from_pretrained(str(folder), dtype=torch.float32).double().eval()
with torch.no_grad():
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if (folder / "lora").is_dir():
            model = PeftModel.from_pretrained(load(folder / "base"), str(folder / "lora")).double().eval()
            found[f"{folder.name}/lora"] = model(**inputs).logits
            found[f"{folder.name}/lora, merged"] = model.merge_and_unload()(**inputs).logits
        found[f"{folder.name}/merged"] = load(folder / "merged")(**inputs).logits
save_file(found, root / "found.safetensors")
"""


def is_causal(fields):
    """Return whether an adapter is one of a language model."""
    return fields.get("task_type") == "CAUSAL_LM"


def save(folder, architecture, kind, to="adapter", **fields):
    """Save a model at `folder`/base, and an adapter with random values beside it; return the adapted model."""
    causal = is_causal(fields)
    tiny.base_model(architecture, causal=causal).save_pretrained(folder / "base")
    usual = {"task_type": "SEQ_CLS", "target_modules": tiny.ARCHITECTURES[architecture].targets}
    model = tiny.adapted(architecture, kind(**usual | fields), causal=causal)
    model.active_peft_config.base_model_name_or_path = str(Path(folder, "base").resolve())
    model.save_pretrained(str(folder / to))
    return model


def save_lsr(folder, architecture="bert", to="adapter", **fields):
    """Save a model and an adapter of LSR, and return the adapted model."""
    return save(folder, architecture, LsrConfig, to, **{"seed": 0, "alpha": 7} | fields)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders with base/, adapter/, lora/ and merged/ of all adapters, and what a reader without `lsr` finds there."""
    root = tmp_path_factory.mktemp("exported")
    for name, (architecture, fields) in ADAPTERS.items():
        save_lsr(root / name, architecture, **fields)
        printed("lsr", "export", root / name / "adapter", "--to", "lora", "-o", root / name / "lora")
        printed("lsr", "export", root / name / "adapter", "--to", "merged", "-o", root / name / "merged")
    for name, (architecture, fields, rank) in METHODS.items():
        save(root / name, architecture, getattr(peft, name.partition(",")[0]), **fields)
        export_merged(root / name / "adapter", root / name / "merged")
        if rank:
            export_lora(root / name / "adapter", root / name / "lora", rank=rank if rank == FULL else None)
    save_file(tiny.batch(), root / "inputs.safetensors")
    in_new_process(root, "-c", READER, root)
    return root, load_file(root / "found.safetensors")


def merged_by_hand(folder, architecture, fields):
    """Return the base model in float64 with the update and the head of an adapter of LSR, by dense matrices."""
    model = tiny.base_model(architecture, causal=is_causal(fields)).double()
    for layer, update in reference.dense_updates(folder, model).items():
        model.get_submodule(layer).weight.data += reference.as_stored(model, layer, update)
    reference.load_head(model, folder)
    return model


def merged_by_peft(folder, architecture):
    """Return a base model in float64 with an adapter of a method of PEFT."""
    model = PeftModel.from_pretrained(tiny.base_model(architecture), str(folder))
    return model.double().merge_and_unload().eval()


# Exports.


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_and_transformers_without_lsr_answer_as_the_adapter(exported, name):
    root, found = exported
    architecture, fields = ADAPTERS[name]
    expected = tiny.logits(merged_by_hand(root / name / "adapter", architecture, fields))
    for form in ("lora", "lora, merged", "merged"):
        assert_close(found[f"{name}/{form}"], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_adapters_of_other_methods_answer_as_in_peft(exported, name):
    root, found = exported
    expected = tiny.logits(merged_by_peft(root / name / "adapter", METHODS[name][0]))
    forms = ["lora", "lora, merged", "merged"] if METHODS[name][2] else ["merged"]
    for form in forms:
        assert_close(found[f"{name}/{form}"], expected, atol=2e-6, rtol=2e-6)


def loras(folder):
    """Return lora_B and lora_A of each layer of a LoRA's folder in float64."""
    tensors = reference.tensors_of(folder)
    layers = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {name: [tensors[f"{name}.lora_{side}.weight"].double() for side in "BA"] for name in layers}


@pytest.mark.parametrize("name", [*ADAPTERS, *(name for name, (*_, rank) in METHODS.items() if rank)])
def test_a_lora_has_the_true_rank_of_each_layer_and_fields_that_old_versions_of_peft_know(exported, name):
    folder = exported[0] / name / "lora"
    assert reference.fields_of(folder).keys() <= PORTABLE
    ranks = [len(a) for _, a in loras(folder).values()]
    assert ranks == [int(torch.linalg.matrix_rank(b @ a, rtol=2e-7)) for b, a in loras(folder).values()]
    if name in METHODS:
        assert max(ranks) == METHODS[name][2]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_model_in_memory_is_exported_like_its_folder(exported, name, tmp_path):
    root, _ = exported
    architecture, fields = ADAPTERS[name]
    model = save_lsr(tmp_path, architecture, **fields)
    export_lora(model, tmp_path / "lora")
    assert (tmp_path / "lora" / WEIGHTS).read_bytes() == (root / name / "lora" / WEIGHTS).read_bytes()
    export_merged(model, tmp_path / "merged")
    one, other = (load_file(folder / "merged/model.safetensors") for folder in (tmp_path, root / name))
    assert_close(one, other, atol=1e-6, rtol=1e-6)


def twice(inner, outer):
    """Return a model in which the name of one layer ends like the name of the other."""
    block = nn.Sequential(OrderedDict(q=inner))
    nested = nn.Sequential(OrderedDict(block=block))
    return nn.Sequential(OrderedDict(inner=nested, block=nn.Sequential(OrderedDict(q=outer))))


def test_values_of_a_layer_are_not_those_of_one_whose_name_ends_like_it(tmp_path):
    layers = [nn.Linear(6, 6), nn.Linear(6, 6)]
    config = LsrConfig(target_modules=["q"], rank_shape=(2,), rank_pattern={"^block.q": (1,)}, init_weights=False)
    model = get_peft_model(twice(*layers), config)
    export_lora(model, tmp_path / "lora")
    x = torch.ones(1, 6)
    loaded = PeftModel.from_pretrained(twice(*layers), str(tmp_path / "lora"))
    assert_close(loaded(x), model(x))


def test_kadaptation_of_the_pipeline_becomes_a_lora(tmp_path, monkeypatch):
    monkeypatch.chdir(rows.make_workspace(tmp_path, adapter="kadaptation", kadaptation={"n": 2}))
    run_stages(tmp_path, "tokenize", "factorize_init")
    edit(Path("artifacts/init", WEIGHTS), lambda tensors: {name: value + 0.1 for name, value in tensors.items()})
    export_lora("artifacts/init", "lora")
    tensors = {name: value.double() for name, value in reference.tensors_of(Path("artifacts/init")).items()}
    (shared,) = (value for name, value in tensors.items() if "kadaptation_s" in name)
    for layer, (b, a) in loras(Path("lora")).items():
        own = tensors[f"{layer}.kadaptation_u"] @ tensors[f"{layer}.kadaptation_v"]
        expected = sum(map(torch.kron, shared, own))
        assert_close(b @ a, expected, atol=1e-6, rtol=1e-6)


# Ranks and dtypes.


def errors_of(found, updates):
    """Return the relative errors of dense updates by layer, and in total; one that is not there is zero."""
    errors = {name: float((found.get(name, 0) - update).norm()) for name, update in updates.items()}
    norms = {name: float(update.norm()) for name, update in updates.items()}
    total = np.linalg.norm([*errors.values()]) / np.linalg.norm([*norms.values()])
    return {name: errors[name] / norms[name] for name in errors}, total


def least_error(update, rank):
    """Return the relative error of the nearest matrix of a rank (Eckart & Young 1936)."""
    values = np.linalg.svd(update.numpy(), compute_uv=False)
    return np.linalg.norm(values[rank:]) / np.linalg.norm(values)


def differences(model, base, layers):
    """Return by how much weights of layers differ between two models."""
    return {name: reference.weight_of(model, name).data - reference.weight_of(base, name).data for name in layers}


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", ["two factors", "LoKrConfig"])
def test_at_a_rank_each_update_is_the_nearest_with_its_error(exported, name, rank, tmp_path):
    folder = exported[0] / name / "adapter"
    errors = export_lora(folder, tmp_path / "lora", rank=rank)
    found = {layer: b @ a for layer, (b, a) in loras(tmp_path / "lora").items()}
    merged = merged_by_peft(folder, "bert") if name in METHODS else merged_by_hand(folder, *ADAPTERS[name])
    updates = differences(merged, tiny.base_model("bert").double(), found)
    layers, total = errors_of(found, updates)
    assert layers == pytest.approx({layer: least_error(update, rank) for layer, update in updates.items()}, abs=1e-6)
    assert errors.layers == pytest.approx(layers, abs=1e-6)
    assert errors.total == pytest.approx(total, abs=1e-6)


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_lower_precision_has_the_error_that_is_returned(exported, dtype, tmp_path):
    folder = exported[0] / "two factors/adapter"
    errors = export_merged(folder, tmp_path / "merged", dtype=HALVES[dtype], force=True)
    export_lora(folder, tmp_path / "lora", dtype=HALVES[dtype])
    state = load_file(tmp_path / "merged/model.safetensors")
    for tensors in (state, load_file(tmp_path / "lora" / WEIGHTS)):
        assert {value.dtype for value in tensors.values()} == {HALVES[dtype]}
    base = tiny.base_model("bert").double()
    updates = reference.dense_updates(folder, base)
    written = tiny.base_model("bert").double()
    written.load_state_dict(state)
    layers, total = errors_of(differences(written, base, updates), updates)
    assert errors.layers == pytest.approx(layers, rel=1e-3)
    assert errors.total == pytest.approx(total, rel=1e-3)


# Imports.


LORAS = {
    "usual": ("bert", {}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "patterns": ("bert", METHODS["LoraConfig"][1] | {"lora_dropout": 0.1}),
    "a head of two layers": ("distilbert", {"r": 1}),
    "no task": ("bert", {"task_type": None}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LORAS)
def test_a_lora_becomes_lsr_and_comes_back_without_the_change_of_a_bit(name, dtype, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    architecture, fields = LORAS[name]
    save(Path(), architecture, LoraConfig, **{"r": 4, "lora_alpha": 6} | fields)
    edit(Path("adapter", WEIGHTS), lambda tensors: {key: value.to(HALVES.get(dtype)) for key, value in tensors.items()})
    printed("lsr", "import", "adapter", "-o", "lsr")
    printed("lsr", "export", "lsr", "--to", "lora", "-o", "back", "--dtype", dtype)
    stored = load_file(f"adapter/{WEIGHTS}")
    back = load_file(f"back/{WEIGHTS}")
    assert back.keys() <= stored.keys()
    assert all(torch.equal(value, stored[key]) for key, value in back.items())
    expected = tiny.logits(merged_by_peft("adapter", architecture))
    for folder in ("lsr", "back"):
        assert_close(tiny.logits(merged_by_peft(folder, architecture)), expected, atol=1e-9, rtol=1e-9)
    for field in ("task_type", "base_model_name_or_path"):
        assert reference.fields_of(Path("back"))[field] == reference.fields_of(Path("adapter"))[field]


# Fewer bits.


LEAST = {"8bit": 0.0001, "4bit": 0.01154, "3bit": 0.03744, "2bit": 0.1188}  # squared errors: Max 1960, table II


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A LoRA of rank 1, whose tensors are one or two groups of 64 values."""
    folder = tmp_path_factory.mktemp("wide")
    layers = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 64))
    config = LoraConfig(r=1, target_modules=["0", "1", "2"], init_lora_weights=False)
    tiny.stir(get_peft_model(layers, config), size=1).save_pretrained(str(folder))
    return folder


def groups_in(folder):
    """Return the values of a folder's tensors in groups of 64."""
    tensors = load_file(folder / WEIGHTS)
    return torch.cat([tensors[name].reshape(-1, 64) for name in sorted(tensors)])


@pytest.mark.parametrize("precision", LEAST)
def test_values_are_rounded_to_the_nearest_of_few_levels(wide, precision, tmp_path):
    printed("lsr", "quantize", wide, "--to", precision, "-o", tmp_path / "few")
    printed("lsr", "quantize", tmp_path / "few", "--to", "float32", "-o", tmp_path / "back")
    exact = groups_in(wide)
    rounded = groups_in(tmp_path / "back")
    for values, found in zip(exact, rounded, strict=True):
        levels = found.unique()
        assert 1 < len(levels) <= 2 ** int(precision[0])
        is_inside = values.abs() <= levels.abs().max()
        errors = (values - found)[is_inside].abs()
        assert errors.max() <= 0.501 * levels.diff().min()
    lost = (exact - rounded).norm(dim=1) / exact.norm(dim=1)
    assert lost.square().mean() < 1.2 * LEAST[precision]
    before = (wide / WEIGHTS).stat().st_size
    assert sum(path.stat().st_size for path in (tmp_path / "few").glob("*.safetensors")) < before


@pytest.mark.parametrize("precision", ["bfloat16", *LEAST])
def test_rounding_again_changes_no_byte_and_small_tensors_are_in_bfloat16(exported, precision, tmp_path):
    folder = exported[0] / "diagonal core/adapter"
    quantize_adapter(folder, tmp_path / "one", precision)
    quantize_adapter(tmp_path / "one", tmp_path / "two", precision)
    once = digests(tmp_path / "one").values()
    assert sorted(once) == sorted(digests(tmp_path / "two").values())
    quantize_adapter(tmp_path / "two", tmp_path / "back", "float32")
    back = load_file(tmp_path / "back" / WEIGHTS)
    for name, value in load_file(folder / WEIGHTS).items():
        if value.numel() < 64:
            assert torch.equal(back[name], value.bfloat16().float())


@pytest.mark.parametrize("name", ["two factors", "shared", "LoKrConfig", "LoraConfig, DoRA"])
def test_everything_reads_an_adapter_of_few_bits(exported, name, tmp_path):
    folder = exported[0] / name / "adapter"
    quantize_adapter(folder, tmp_path / "few", "4bit")
    quantize_adapter(tmp_path / "few", tmp_path / "back", "float32")
    export_merged(tmp_path / "few", tmp_path / "merged")
    architecture, *_ = (METHODS | ADAPTERS)[name]
    expected = merged_by_peft(tmp_path / "back", architecture).state_dict()
    for key, value in load_file(tmp_path / "merged/model.safetensors").items():
        assert_close(value.double(), expected[key], atol=1e-6, rtol=1e-6)


def deflated(text):
    """Return deflated text as a tensor of bytes."""
    return torch.tensor(list(zlib.compress(text.encode())), dtype=torch.uint8)


LYING = {  # indices of a file of few bits
    "missing": None,
    "of another type": torch.ones(3),
    "of too many entries": deflated(json.dumps(["3bit", {"a": ["values", *8 * [2**40]]}])),
    "of too many bytes": deflated(" " * 10**7),
}


@pytest.mark.parametrize("index", LYING.values(), ids=LYING)
def test_a_file_of_few_bits_whose_index_lies_is_rejected_before_memory_is_taken(exported, index, tmp_path):
    quantize_adapter(exported[0] / "core/adapter", tmp_path / "few", "3bit")
    lie = {} if index is None else {"index": index}
    edit(tmp_path / "few/adapter_rounded.safetensors", lambda tensors: {"values": tensors["values"]} | lie)
    refused("lsr", "export", tmp_path / "few", "--to", "lora", "-o", tmp_path / "out", says="index")


# Lower ranks.


COMPRESSED = {
    "LoRA": ("bert", LoraConfig, {"r": 5, "target_modules": "all-linear", "use_rslora": True}),
    "terms": ("bert", LsrConfig, {"rank_shape": (2, 2), "separation_rank": 2}),
    "cores": ("distilbert", LsrConfig, CORE),
    "decoder": ("gpt2", LoraConfig, {"r": 4, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}),
}


@pytest.fixture(params=COMPRESSED, scope="module")
def large(request, tmp_path_factory):
    """The folder of an adapter, its base model, and the update of each layer in float64 by dense matrices."""
    architecture, kind, fields = COMPRESSED[request.param]
    folder = tmp_path_factory.mktemp("large")
    save(folder, architecture, kind, **fields)
    base = tiny.base_model(architecture, causal=is_causal(fields)).double()
    if kind is LsrConfig:
        return folder / "adapter", base, reference.dense_updates(folder / "adapter", base)
    model = tiny.base_model(architecture, causal=is_causal(fields)).double()
    merged = PeftModel.from_pretrained(model, str(folder / "adapter")).double().merge_and_unload()
    return folder / "adapter", base, differences(merged, base, loras(folder / "adapter"))


@pytest.mark.parametrize("form", ["rank:24", "directions:999", "shared:24"])
def test_at_full_rank_only_rounding_is_lost(large, form, tmp_path):
    folder, base, updates = large
    compress_adapter(folder, tmp_path / "small", form)
    found = reference.dense_updates(tmp_path / "small", base)
    layers, _ = errors_of(found, updates)
    assert max(layers.values()) < 1e-6


@pytest.mark.parametrize("form", ["rank:1", "rank:2", "directions:7"])
def test_what_is_lost_are_the_smallest_singular_values(large, form, tmp_path):
    folder, base, updates = large
    errors = compress_adapter(folder, tmp_path / "small", form)
    found = reference.dense_updates(tmp_path / "small", base)
    layers, total = errors_of(found, updates)
    assert errors.layers == pytest.approx(layers, abs=1e-6)
    assert errors.total == pytest.approx(total, abs=1e-6)
    count = int(form[-1])
    kept = dict.fromkeys(updates, count)
    if "directions" in form:
        values = {name: np.linalg.svd(update.numpy(), compute_uv=False) for name, update in updates.items()}
        least = np.sort(np.concatenate([*values.values()]))[-count]
        kept = {name: (own >= least).sum() for name, own in values.items()}
    for name, update in updates.items():
        assert layers[name] == pytest.approx(least_error(update, kept[name]), abs=1e-6)


def test_shared_bases_lose_less_than_those_of_the_stacked_updates(large, tmp_path):
    """The HOSVD is an upper bound of the least error."""
    folder, base, updates = large
    errors = compress_adapter(folder, tmp_path / "small", "shared:3")
    layers, _ = errors_of(reference.dense_updates(tmp_path / "small", base), updates)
    assert errors.layers == pytest.approx(layers, abs=1e-6)
    groups = {}
    for name in updates:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    for names in groups.values():
        stack = torch.stack([updates[name] / updates[name].norm() for name in names])
        rows = torch.linalg.svd(stack.flatten(0, 1)).Vh[:3]
        columns = torch.linalg.svd(stack.mT.flatten(0, 1)).Vh[:3]
        kept = columns @ stack @ rows.T
        lost = sum(layers[name] ** 2 for name in names)
        assert lost <= len(names) - kept.square().sum() + 1e-5


def test_bits_round_what_is_compressed(exported, tmp_path):
    folder = exported[0] / "LoraConfig/adapter"
    printed("lsr", "compress", folder, "--to", "shared:2", "--bits", "3", "-o", tmp_path / "both")
    compress_adapter(folder, tmp_path / "small", "shared:2")
    quantize_adapter(tmp_path / "small", tmp_path / "few", "3bit")
    for name in ("both", "few"):
        export_lora(tmp_path / name, tmp_path / f"{name}, exported")
    one, other = (load_file(tmp_path / f"{name}, exported" / WEIGHTS) for name in ("both", "few"))
    assert_close(one, other, atol=0, rtol=0)


# What lies beside the tensors.


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A working directory with an adapter of LSR, a LoRA and their base model; return its path."""
    monkeypatch.chdir(tmp_path)
    save(Path(), "bert", LoraConfig, to="lora", r=2)
    save_lsr(Path(), **DENSE)
    return tmp_path


COMMANDS = {
    "export": ["export", "adapter", "--to", "lora", "-o", "out"],
    "quantize": ["quantize", "adapter", "--to", "4bit", "-o", "out"],
    "compress": ["compress", "adapter", "--to", "rank:1", "-o", "out"],
    "import": ["import", "lora", "-o", "out"],
    "merge": ["export", "adapter", "--to", "merged", "-o", "out"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("beside")
def test_labels_head_and_tokenizer_are_in_what_is_written(command):
    words = COMMANDS[command]
    task = {"labels": ["bad", "fair", "good"], "max_length": 20}
    for folder in ("adapter", "lora"):
        write(Path(folder, "task.json"), task)
        tiny.tokenizer("bert", chat_template="{{ messages }}").save_pretrained(folder)
    printed("lsr", *words)
    assert read_json(Path("out/task.json")) == task
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in ("out", words[1]))
    text = "the owl sleeps in the garden at night"
    assert one(text).data == other(text).data
    assert one.chat_template == "{{ messages }}"
    if command == "merge":
        assert read_json(Path("out/config.json"))["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    if command in ("export", "import", "compress"):
        source = reference.tensors_of(Path(words[1]))
        written = reference.tensors_of(Path("out"))
        assert torch.equal(written["classifier.weight"], source["classifier.weight"])


@pytest.mark.usefixtures("beside")
def test_lsr_becomes_a_lora_without_its_base_model():
    printed("lsr", *COMMANDS["export"])
    before = Path("out", WEIGHTS).read_bytes()
    Path("base").rename("elsewhere")
    printed("lsr", *COMMANDS["export"], "--force")
    assert Path("out", WEIGHTS).read_bytes() == before
    refused("lsr", *COMMANDS["merge"], "--force", says="base")
    printed("lsr", *COMMANDS["merge"], "--force", "--base", "elsewhere")


# Outputs that exist, and mistakes.


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("beside")
def test_what_exists_is_replaced_by_force_alone(command):
    printed("lsr", *COMMANDS[command])
    before = digests(Path("out"))
    assert "exists" in refused("lsr", *COMMANDS[command])
    assert digests(Path("out")) == before
    write(Path("out/README.md"), "old")
    printed("lsr", *COMMANDS[command], "--force")
    assert digests(Path("out")) == before


@pytest.mark.parametrize("output", ["adapter", ".", "notes", "notes/ideas.md", "notes/ideas.md/out"])
@pytest.mark.usefixtures("beside")
def test_nothing_of_somebody_else_is_replaced(output):
    write(Path("notes/ideas.md"), "mine")
    before = digests(Path())
    refused("lsr", "export", "adapter", "--to", "lora", "-o", output, "--force", "--base", "base")
    assert digests(Path()) == before


def scale(folder, factor):
    """Multiply the tensors of an adapter."""
    edit(Path(folder, WEIGHTS), lambda tensors: {name: factor * value for name, value in tensors.items()})


@pytest.mark.usefixtures("beside")
def test_a_failure_leaves_what_was_there():
    printed("lsr", *COMMANDS["export"])
    scale("adapter", 1e6)
    before = digests(Path())
    refused("lsr", *COMMANDS["export"], "--force", "--dtype", "float16", says="float16")
    assert digests(Path()) == before


MISTAKES = [  # words of a command, and what its line says
    ("import base", "adapter_config.json"),
    ("import adapter", "LORA"),
    ("import dora", "dora"),
    ("export nowhere --to lora", "nowhere"),
    ("export adapter --to merged --base nowhere", "nowhere"),
    ("export adapter --to lora --rank 0", "--rank"),
    ("export adapter --to lora --dtype int8", "bfloat16"),
    ("export prompt --to lora --base writer", "PROMPT_TUNING"),
    ("export prompt --to merged --base writer", "PROMPT_TUNING"),
    ("export misnamed --to merged", "labels"),
    ("export norms --to lora", "norms"),
    ("quantize adapter --to 5bit", "8bit"),
    ("quantize huge --to 3bit", "finite"),
    ("compress adapter --to core:3", "shared:R"),
    ("compress adapter --to rank:0", "rank:R"),
    ("compress adapter --to shared:25", "24"),
    ("compress adapter --bits 1", "--bits"),
    ("compress zero", "zero"),
    ("compress dora", "dora"),
]


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory):
    """A folder with adapters of several kinds, which nobody changes."""
    folder = tmp_path_factory.mktemp("mistaken")
    with chdir(folder):
        save(Path(), "bert", LoraConfig, to="dora", use_dora=True)
        save(Path(), "bert", peft.LNTuningConfig, to="norms", target_modules=["LayerNorm"])
        for name in ("misnamed", "huge", "zero", "adapter"):
            save_lsr(Path(), to=name, **DENSE)
        write(Path("misnamed/task.json"), {"labels": ["bad", "good"]})
        scale("huge", 1e40)
        scale("zero", 0)
        tiny.base_model("llama", causal=True).save_pretrained("writer")
        prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        tiny.adapted("llama", prompt, causal=True).save_pretrained("prompt")
    return folder


@pytest.mark.parametrize(("words", "says"), MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(mistaken, words, says, monkeypatch):
    monkeypatch.chdir(mistaken)
    before = sorted(mistaken.rglob("*"))
    refused("lsr", *words.split(), "-o", "out", says=says)
    assert sorted(mistaken.rglob("*")) == before
