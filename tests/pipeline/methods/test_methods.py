"""Every method on a tiny model starts as it says, is saved, loaded and counted; a mistake in its section is a line."""

import copy
from contextlib import suppress

import pytest
import torch
from peft import PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.data import base_models
from pipeline.methods import adapters, device, planning
from pipeline.methods.kadaptation import KAdaptationLinear
from pipeline.params.reading import apply_overrides
from pipeline.params.sections import FIXED
from tests import workspace
from tests.kit import refused, write
from tests.stages.running import added, base_model, logits
from tests.old_tiny.models import tiny

LAYERS = 4  # query and value of two
WIDTH = 24
TRAINED = {  # numbers of the adapter in this workspace, from the formulas of the methods
    "lsr": 2 * 2 * 2 * (4 + 6) * LAYERS,
    "lora": 8 * 2 * WIDTH * LAYERS,
    "full": 19_472,
    "head_only": 0,
    "regression": 0,
    "krona": (4 * 4 + 6 * 6) * LAYERS,
    "kadaptation": 8**3 + 2 * WIDTH * LAYERS,
    "vera": (16 + WIDTH) * LAYERS,
    "vblora": 9 * 8 + 4 * 2 * 3 * 9 * LAYERS,
    "unilora": 50,
    "directions": 12,
    "ia3": 2 * (24 + 24 + 24 + 40),  # PEFT's: keys, values, and what goes into both layers that end so
    "bitfit": 24 + 2 * (7 * 24 + 40),
    "ln_tuning": 2 * 24 * (2 * 2 + 1),
    "peft": 2 * WIDTH * LAYERS,
}
FORMS = ("lsr", "lora", "full", "head_only", "kadaptation", "bitfit", "vera")  # one for each way of storing an adapter
RANDOM = {"vblora", "unilora"}  # whose authors start with a small update that is not zero


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """A workspace as the working folder."""
    folder = workspace.make(tmp_path_factory.mktemp("methods"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        base = base_model(params.load(params.TrainView))
        patch.setattr(base_models, "load_base_model", lambda *_: copy.deepcopy(base))
        yield


def seen(word, overrides=None):
    """What training sees of params.yaml where a section is chosen."""
    return apply_overrides({"adapter": word, **(overrides or {})}, params.TrainView)


def fresh(view):
    return added(base_model(view), view)


@pytest.mark.parametrize("word", TRAINED)
def test_a_fresh_adapter_is_counted_saved_and_loaded(word, tmp_path):
    view = seen(word)
    base = logits(base_model(view))
    model = fresh(view)
    if word in RANDOM:
        assert 0 < (logits(model) - base).abs().max() < 0.05
    else:
        assert torch.equal(logits(model), base)
    counts = adapters.count_parameters(model, view.base_model)
    assert counts["adapter_trained"] == TRAINED[word]
    adapters.save_adapter(model, tmp_path, view.base_model)
    saved = load_file(tmp_path / WEIGHTS)
    twice = 24 + 2 if word == "bitfit" else 0  # PEFT's `bias: all` saves those of the head and of the one it replaces
    numbers = sum(map(torch.Tensor.numel, saved.values()))
    assert counts["adapter_stored"] + counts["head_parameters"] + 2 * twice == numbers
    loaded = adapters.load_adapter(base_model(view), tmp_path, trainable=False)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(tensor.is_meta for tensor in loaded.parameters())
    if word in FORMS:
        check_file(tmp_path, saved, lambda: adapters.load_adapter(base_model(view), tmp_path, trainable=False))


def check_file(folder, whole, load):
    """A file must hold all tensors of its method and no others; PEFT would load it without a word."""
    for name in (min(whole), max(whole)):
        write(folder / WEIGHTS, {key: tensor for key, tensor in whole.items() if key != name})
        assert "missing" in refused(load, says=name.removesuffix(".weight").rpartition(".")[2]).lower()
    write(folder / WEIGHTS, whole | {name: torch.cat([whole[name]] * 2)})
    refused(load, says=str(folder))
    write(folder / WEIGHTS, whole | {"more": torch.zeros(2, 2)})
    refused(load, says="more is not part of this adapter on this base model")


def test_the_update_of_kadaptation_is_the_sum_of_kronecker_products():
    view = seen("kadaptation")
    model = fresh(view)
    layers = [module for module in model.modules() if isinstance(module, KAdaptationLinear)]
    assert len(layers) == LAYERS
    for layer in layers:
        s, u, v = (factor.data.normal_() for factor in layer.factors("default"))
        expected = sum(torch.kron(s[k], u[k] @ v[k]) for k in range(len(s)))
        assert torch.allclose(layer.get_delta_weight("default"), expected, atol=1e-4)
        x = torch.randn(5, WIDTH)
        base = layer.get_base_layer()
        whole = torch.nn.functional.linear(x, base.weight + expected, base.bias)
        assert torch.allclose(layer(x), whole, rtol=1e-4, atol=1e-4)


META = torch.device("meta")


def devices(model):
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


@pytest.mark.parametrize("word", ["lsr", "vera", "full"])
def test_an_adapter_is_loaded_to_the_device_of_its_base_and_moves_as_a_whole(word, tmp_path, monkeypatch):
    """Seen without an accelerator, on a stand-in for one."""
    view = seen(word)
    adapters.save_adapter(fresh(view), tmp_path, view.base_model)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: META)
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: str(META))
    monkeypatch.setattr("peft.utils.save_and_load.infer_device", lambda: str(META))
    model = adapters.load_adapter(base_model(view), tmp_path, trainable=True)
    assert devices(model) == {torch.device("cpu")}
    assert devices(model.to(device.fastest())) == {META}


MISTAKES = workspace.read_yaml(workspace.ROOT / "tests/pipeline/methods/mistakes.yaml")


def config_of(view):
    return planning.resolve(view, base_model(view)).config


@pytest.mark.parametrize(("word", "overrides", "message"), MISTAKES)
def test_a_mistake_is_one_line(word, overrides, message):
    refused(lambda: fresh(seen(word, overrides)), says=f"params.yaml: {message}")


@pytest.mark.parametrize("start", ["olora", "OLoRA"])
@pytest.mark.parametrize("layer", ["c_attn", "attn.c_proj"])  # of a square weight PEFT makes another model
def test_olora_is_refused_on_layers_that_peft_cannot_initialize_by_it(start, layer):
    view = seen("lora", {"lora.init_lora_weights": start, "lora.target_modules": [layer]})
    row = view.base_model.model_copy(update={"head": None})
    view = view.model_copy(update={"base_model": row})
    base = tiny("gpt2")
    config = planning.build_config(view.section, 0, [layer], None)
    with suppress(RuntimeError):
        expected = logits(base)
        assert not torch.allclose(logits(get_peft_model(tiny("gpt2"), config)), expected, atol=1e-3)
    says = "params.yaml: lora: init_lora_weights: olora cannot initialize transformer.h.0.attn.c_"
    refused(planning.resolve, view, base, says=says)


def test_any_method_is_reached_by_its_type(monkeypatch):
    monkeypatch.chdir(workspace.ROOT)
    for name in planning.list_types().keys() - {"LSR"}:
        section = apply_overrides({"adapter": "peft", "peft.type": name}, params.TrainView).section
        assert planning.build_config(section, 0, ["dense"], ["classifier"]).peft_type == name


@pytest.mark.parametrize("key", FIXED)
def test_a_key_that_the_pipeline_or_the_training_decides_is_refused_with_what_to_do(key):
    kinds = [kind for kind in planning.list_types().values() if key in kind.__dataclass_fields__]
    assert kinds, "PEFT has no such key"
    value = {"modules_to_save": ["query"]}.get(key, "x")
    refused(seen, "lora", {f"lora.{key}": value}, says=f"params.yaml: lora: {key}: cannot be set here: {FIXED[key]}")


def test_every_key_that_all_methods_of_peft_share_is_decided_elsewhere():
    assert PeftConfig.__dataclass_fields__.keys() <= FIXED.keys()


HONORED = {
    "r": 3,
    "lora_alpha": 5.0,
    "lora_dropout": 0.25,
    "use_rslora": True,
    "use_dora": True,
    "bias": "lora_only",
    "exclude_modules": ["value"],
    "layers_to_transform": [1],
    "layers_pattern": ["layer"],
    "rank_pattern": {"query": 2},
    "alpha_pattern": {"query": 2.0},
    "init_lora_weights": "gaussian",
    "trainable_token_indices": [3, 4],
}


def test_other_keys_are_what_peft_has_while_it_trains(tmp_path):
    view = seen("lora", {f"lora.{key}": value for key, value in HONORED.items()})
    adapters.save_adapter(fresh(view), tmp_path, view.base_model)
    trained = adapters.load_adapter(base_model(view), tmp_path, trainable=True)
    config = trained.peft_config["default"]
    held = {key: list(its) if isinstance(its := getattr(config, key), set) else its for key in HONORED}
    assert held == HONORED
    layers = {name: its for name, its in trained.named_modules() if isinstance(its, LoraLayer)}
    assert [name.partition("layer.")[2] for name in layers] == ["1.attention.self.query"]
    (layer,) = layers.values()
    assert (layer.r["default"], layer.scaling["default"]) == (2, 2.0 / 2**0.5)


def test_the_seed_is_every_seed_that_a_section_does_not_set():
    for word, field in {"vera": "projection_prng_key", "unilora": "proj_seed", "lsr": "seed"}.items():
        assert getattr(config_of(seen(word, {"seed": 7})), field) == 7
    assert config_of(seen("vera", {"seed": 7, "vera.projection_prng_key": 3})).projection_prng_key == 3


def groups_of(view):
    """The learning rate and the weight decay of each parameter of the adapter, by the last parts of its name."""
    model = fresh(view)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)].partition(".default")[0].rpartition(".")[2]: (group["lr"], group["weight_decay"])
        for group in adapters.optimizer(model, view).param_groups
        for parameter in group["params"]
        if "classifier" not in names[id(parameter)]
    }


@pytest.mark.parametrize(
    ("word", "overrides", "groups"),
    [
        ("lora", {"lora.use_dora": True}, {"lora_A": (0.002, 0.01), "lora_magnitude_vector": (0.002, 0.0)}),
        ("ia3", {}, {"ia3_l": (0.005, 0.0)}),
        ("bitfit", {}, {"bias": (0.001, 0.0)}),
        ("ln_tuning", {}, {"ln_tuning_layers": (0.001, 0.0)}),
        ("vblora", {}, {"vblora_vector_bank": (0.001, 0.01), "vblora_logits_A": (0.01, 0.01)}),
        ("directions", {}, {"lsr_adapters": (0.004, 0.01)}),
    ],
)
def test_each_parameter_has_its_rate_and_decays_where_zero_is_no_change(word, overrides, groups):
    assert groups_of(seen(word, overrides)).items() >= groups.items()
