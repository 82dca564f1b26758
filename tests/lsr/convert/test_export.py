"""Exports say what the adapter says: to plain PEFT in a process without this package, and to plain transformers.

A LoRA's folder as an LSR adapter is the same, and comes back as it was.
"""

import ast
import copy
import json
import re
import sys
from collections import OrderedDict

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig, export_lora, export_merged, from_lora
from lsr.convert.export import TOLERATED_LOSS
from lsr.loading.adapters import load_adapter
from lsr.tuner.files import CONFIG, PREFIX, WEIGHTS, read_config
from lsr.tuner.layer import find_lsr_layers
from tests.kit import refused, write
from tests.lsr.saved import CASES, save, save_lora, save_with_base
from tests.repository import command
from tests.old_tiny.models import logits, tiny, tokens

each_case = pytest.mark.parametrize("case", CASES)
PORTABLE = {
    *("alpha_pattern", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights"),
    *("layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "r"),
    *("rank_pattern", "revision", "target_modules", "task_type", "use_dora", "use_rslora"),
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
found = {}
for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    kind = json.loads((folder / "base/config.json").read_text())["architectures"][0]
    base = getattr(transformers, kind).from_pretrained(str(folder / "base"))
    model = PeftModel.from_pretrained(base, str(folder / "lora")).eval()
    inputs = load_file(Path(sys.argv[1]) / "tokens.safetensors")
    with torch.no_grad():
        found[f"{folder.name}.beside"] = model(**inputs).logits
        found[f"{folder.name}.merged"] = model.merge_and_unload()(**inputs).logits
save_file(found, Path(sys.argv[1]) / "found.safetensors")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """All cases: what the adapters say, their LoRA folders, and what a reader without this package makes of them.

    Beside each LoRA is the adapter.
    """
    folder = tmp_path_factory.mktemp("exported")
    expected = {}
    for position, (case, (name, fields)) in enumerate(CASES.items()):
        model = save_with_base(folder / str(position), name, **fields)
        expected[case] = logits(model)
        export_lora(model, folder / str(position) / "lora")
    save_file(tokens(), folder / "tokens.safetensors")
    command(folder, sys.executable, "-c", READER, str(folder))
    actual = load_file(folder / "found.safetensors")
    return {
        case: (expected[case], folder / f"{at}/lora", actual[f"{at}.beside"], actual[f"{at}.merged"])
        for at, case in enumerate(CASES)
    }


@each_case
def test_peft_without_this_package_says_the_same(exported, case):
    expected, _, beside, merged = exported[case]
    assert_close(beside, expected, atol=2e-6, rtol=2e-6)
    assert_close(merged, expected, atol=1e-5, rtol=1e-5)


@each_case
def test_the_file_says_only_what_old_readers_know_and_the_true_ranks(exported, case):
    folder = exported[case][1]
    fields = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / WEIGHTS)
    assert fields.keys() - {"auto_mapping"} == PORTABLE
    if case in ("one factor, principal, transposed", "no task"):  # a LoRA already: its own alpha
        assert (fields["lora_alpha"], fields["r"]) == (7, 4)
    else:
        assert fields["lora_alpha"] == fields["r"]
        assert fields["alpha_pattern"] == fields["rank_pattern"]
    ranks = {n[len(PREFIX) : -len(".lora_A.weight")]: len(v) for n, v in tensors.items() if "lora_A" in n}
    assert fields["rank_pattern"] == {re.escape(n): rank for n, rank in ranks.items() if rank != fields["r"]}
    if case == "two factors":
        assert set(ranks.values()) == {4}
    assert fields["target_modules"] == sorted(fields["target_modules"])
    assert (fields["task_type"] is None) == ("auto_mapping" in fields)


def named(**modules):
    return nn.Sequential(OrderedDict(modules))


def test_values_of_a_layer_are_not_those_of_one_whose_name_ends_like_it(tmp_path):
    config = LsrConfig(target_modules=["q"], rank_shape=(2,), rank_pattern={"^block.q": (1,)}, init_weights=False)
    inner, outer = (nn.Linear(6, 6) for _ in range(2))
    model = get_peft_model(named(inner=named(block=named(q=inner)), block=named(q=outer)), config)
    x = torch.ones(1, 6)
    base = copy.deepcopy(model).unload()
    export_lora(model, tmp_path / "lora")
    assert_close(PeftModel.from_pretrained(base, str(tmp_path / "lora"))(x), model(x))


@pytest.mark.parametrize("labels", [3, 24, 30])  # fewer than the head is wide, as many, and more
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_the_card_of_an_exported_folder_has_a_name_for_each_output_of_the_head(name, labels, tmp_path):
    save(tmp_path / "adapter", name, labels=labels)
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    names = re.search(r"id2label=(\{.*?\})", (tmp_path / "lora/README.md").read_text())
    assert ast.literal_eval(names[1]) == {number: f"LABEL_{number}" for number in range(labels)}


def test_an_export_needs_an_lsr_adapter(tmp_path):
    model = get_peft_model(tiny("bert"), LoraConfig(target_modules=["query"]))
    refused(export_lora, model, tmp_path / "lora", says="the model has no LSR adapter 'default'")


@each_case
def test_the_merged_checkpoint_says_the_same_to_plain_transformers(exported, case, tmp_path):
    expected, folder, *_ = exported[case]
    name, _ = CASES[case]
    export_merged(load_adapter(folder.parent / "adapter"), tmp_path / "merged")
    loaded = type(tiny(name)).from_pretrained(str(tmp_path / "merged")).eval()
    assert loaded.state_dict().keys() == tiny(name).state_dict().keys()
    assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


def test_the_error_of_a_merge_is_that_of_the_rounded_weights(tmp_path):
    model = save_with_base(tmp_path)
    deltas = {n: layer.get_delta_weight("default").detach().double() for n, layer in find_lsr_layers(model).items()}
    actual = export_merged(model, tmp_path / "merged", dtype=torch.bfloat16, force=True)
    written = load_file(tmp_path / "merged/model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    errors = {}
    for name, delta in deltas.items():
        base = tiny("bert").get_submodule(name).weight.detach().double()
        errors[name] = written[f"{name}.weight"].double() - base - delta
        assert actual.layers[name] == pytest.approx(float(errors[name].norm() / delta.norm()), rel=1e-5)
    error, update = (torch.stack([one.norm() for one in many.values()]).norm() for many in (errors, deltas))
    assert actual.total == pytest.approx(float(error / update), rel=1e-5)
    assert actual.layers[actual.worst] == max(actual.layers.values())


def shrink(model, factor):
    for layer in find_lsr_layers(model).values():
        layer.adapter("default").factor_B1.data *= factor
    return model


def test_a_dtype_in_which_a_small_update_vanishes_is_refused_and_the_update_survives_as_lora(tmp_path):
    model = shrink(save_with_base(tmp_path), 1e-3)
    says = re.compile(r"bfloat16 would lose [\d.]+% of the update, .* in bert\.encoder.*; at most 5% is")
    assert says.search(refused(export_merged, model, tmp_path / "merged", dtype=torch.bfloat16))
    assert not (tmp_path / "merged").exists()
    assert export_lora(model, tmp_path / "lora", dtype=torch.bfloat16).total < TOLERATED_LOSS
    assert export_merged(model, tmp_path / "merged", dtype=torch.bfloat16, force=True).total > TOLERATED_LOSS


def test_an_overflow_is_refused_even_by_force(tmp_path):
    model = shrink(save_with_base(tmp_path), 1e6)
    line = refused(export_lora, model, tmp_path / "lora", dtype=torch.float16, force=True)
    assert re.search(r"float16 cannot hold the weights of bert\.encoder\.layer.*they overflow", line)


LORAS = {  # what it shows: model, fields
    "usual": ("bert", {}),
    "transposed weights": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "rank stabilized with patterns, all biases": (
        "bert",
        {
            "use_rslora": True,
            "rank_pattern": {"query": 2, "1.attention.self.value": 3},
            "alpha_pattern": {"0.attention.self.query": 5},
            "bias": "all",
        },
    ),
    "rank one, a head of two layers, dropout": ("roberta", {"r": 1, "bias": "lora_only", "lora_dropout": 0.1}),
    "no task": ("bert", {"r": 8, "task_type": None}),
}


def loaded(name, folder, **options):
    return PeftModel.from_pretrained(tiny(name), str(folder), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", LORAS)
def test_the_way_there_and_back_changes_no_bit_and_no_scaling(case, dtype, tmp_path):
    name, fields = LORAS[case]
    save_lora(tmp_path / "lora", name, **{"r": 4, "lora_alpha": 6, **fields})
    stored = {key: value.to(dtype) for key, value in load_file(tmp_path / "lora" / WEIGHTS).items()}
    write(tmp_path / "lora" / WEIGHTS, stored)
    from_lora(tmp_path / "lora", tmp_path / "lsr")
    export_lora(tmp_path / "lsr", tmp_path / "back", dtype=dtype)
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert back.keys() == {key for key in stored if "original_module" not in key and "modules_to_save" not in key}
    assert all(value.dtype == dtype and torch.equal(value, stored[key]) for key, value in back.items())
    ours, theirs = (scalings(loaded(name, tmp_path / folder)) for folder in ("back", "lora"))
    assert ours == pytest.approx(theirs, rel=2**-52)
    before, after = (read_config(tmp_path / folder) for folder in ("lora", "back"))
    for field in ("task_type", "base_model_name_or_path", "revision", "auto_mapping", "bias", "lora_dropout"):
        assert after.get(field) == before[field]
    ours, theirs = (loaded(name, tmp_path / folder).eval() for folder in ("lsr", "lora"))
    assert_close(logits(ours), logits(theirs), atol=1e-6, rtol=0)
    merged = theirs.merge_and_unload().state_dict()
    assert all(torch.equal(value, merged[key]) for key, value in ours.merge_and_unload().state_dict().items())


def scalings(model):
    return {name: m.scaling["default"] for name, m in model.named_modules() if isinstance(m, LoraLayer)}
