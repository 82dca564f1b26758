"""Fields of an untrusted configuration: benign ones are what PEFT loads, hostile ones open no file and are a line."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel
from peft.utils import PeftType

from lsr.loading.adapters import load_onto
from lsr.loading.fields import STEPS, filter_fields
from lsr.tuner.files import CONFIG, WEIGHTS
from tests.kit import edit, refused
from tests.lsr.methods import METHODS, SECONDS, UNREAD, in_time, logits, model_of, save
from tests.old_tiny.models import tiny

# Of LoRA: initializations, of which some change the base weights, and variants.
LORAS = {
    **{start: {"init_lora_weights": start} for start in ("gaussian", "orthogonal", "pissa", "olora", "mica", "eva")},
    "pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "random": {"init_lora_weights": False},
    "lora_ga": {"init_lora_weights": "lora_ga", "lora_ga_config": {"direction": "random"}},
    "dora": {"use_dora": True},
    "rank-stabilized": {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
    "biases of factors": {"lora_bias": True, "bias": "all"},
    "kasa": {"kasa_config": {"beta": 0.1}},
    "velora": {"velora_config": {"num_groups": 4}},
    "blocks": {"use_bdlora": {"target_modules_bd_b": ["query"], "nblocks": 2, "match_strict": False}},
    "tokens": {"trainable_token_indices": [3, 4]},
    "layers twice": {"layer_replication": [[0, 2], [1, 2]]},
}


def check_as_peft(folder, method):
    torch.manual_seed(1)  # for the start of "pissa_niter_4"
    expected = logits(PeftModel.from_pretrained(model_of(method), str(folder)), method)
    torch.manual_seed(1)
    with in_time():
        actual = logits(load_onto(model_of(method), folder), method)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    base = logits(model_of(method), None)
    assert actual.shape != base.shape or not torch.allclose(actual, base, atol=1e-4), "the adapter changes nothing"


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_of_any_method_answers_as_peft_loads_it(method, tmp_path):
    check_as_peft(save(tmp_path, method), method)


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_of_any_initialization_and_variant_answers_as_peft_loads_it(name, tmp_path):
    check_as_peft(save(tmp_path, "LORA", **LORAS[name]), "LORA")


def test_every_method_of_peft_is_loaded_or_listed_with_a_reason():
    for method in METHODS:
        if method != "LSR":
            assert filter_fields({"peft_type": method}, 24) == {"peft_type": method}
    for method in UNREAD.keys() - {"KADAPTATION"}:
        refused(filter_fields, {"peft_type": method}, 24, kind=ValueError, says=f"adapters of the method {method} are")


OPENED = []
sys.addaudithook(lambda event, arguments: OPENED.append(str(arguments[0])) if event == "open" else None)


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture(params=["pipe.safetensors", "pipe.bin", "pickle.bin", "/dev/zero"])
def named(request, tmp_path, monkeypatch):
    """A file that a configuration names, and that nobody may open."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / request.param
    late = None
    if path.name.startswith("pipe"):
        os.mkfifo(path)
        # Frees whoever waits for a writer, also in a call that holds Python's lock.
        late = subprocess.Popen(["sh", "-c", f"sleep {SECONDS}; : <> {path}"])
    elif path.name == "pickle.bin":
        path.write_bytes(pickle.dumps(Explosive()))
    OPENED.clear()
    yield str(path)
    if late is not None:
        late.kill()
        late.wait()
    assert str(path) not in OPENED
    assert not (tmp_path / "exploded").exists()


FILES = {  # the method of what is loaded as if the file were not named
    "a state": (
        "MULTITASK_PROMPT_TUNING",
        lambda path: {"prompt_tuning_init": "EXACT_SOURCE_TASK", "prompt_tuning_init_state_dict_path": path},
    ),
    "a tokenizer": (
        "PROMPT_TUNING",
        lambda path: {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x", "tokenizer_name_or_path": path},
    ),
    "a tokenizer of CPT": ("CPT", lambda path: {"tokenizer_name_or_path": path}),
    "covariances": ("LORA", lambda path: {"corda_config": {"cache_file": path, "covariance_file": path}}),
}
REFUSED_FILES = {
    "experts": ("LORA", lambda path: {"arrow_config": {"arrow_expert_num": path}}, "arrow_config: LORA is loaded with"),
    "code": ("LORA", lambda path: {"megatron_config": {"x": path}}, "megatron_config"),
    "adapters": ("LORA", lambda path: {"peft_type": "XLORA", "adapters": {"a": path}}, "adapters of the method XLORA"),
    "a model": ("LORA", lambda path: {"peft_type": "SHADOW", "shadow_model": path}, "adapters of the method SHADOW"),
}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("what", FILES)
def test_a_file_that_a_configuration_names_is_not_opened(what, trainable, named, tmp_path):
    method, fields = FILES[what]
    folder = save(tmp_path / "adapter", method)
    expected = logits(PeftModel.from_pretrained(model_of(method), str(folder)), method)
    edit(folder / CONFIG, **fields(named))
    with in_time():
        actual = load_onto(model_of(method), folder, trainable=trainable)
    assert torch.equal(logits(actual, method), expected)


@pytest.mark.parametrize("what", REFUSED_FILES)
def test_what_would_be_read_of_a_file_is_refused_with_its_field(what, named, tmp_path):
    method, fields, says = REFUSED_FILES[what]
    edit(save(tmp_path / "adapter", method) / CONFIG, **fields(named))
    with in_time():
        refused(load_onto, model_of(method), tmp_path / "adapter", says=says)


HUGE = 10**9
LOFTQ = {"init_lora_weights": "loftq"}
ENDLESS = [  # fields, and words of the line
    ("LORA", {"init_lora_weights": f"pissa_niter_{HUGE}"}, "init_lora_weights must be a bool or one of gaussian"),
    ("LORA", {"init_lora_weights": "pissa_niter_65"}, "pissa_niter_N with N of at most 64, got 'pissa_niter_65'"),
    ("LORA", {"init_lora_weights": "corda"}, "init_lora_weights must be"),
    ("LORA", {"init_lora_weights": ["pissa"]}, "init_lora_weights must be"),
    (
        "LORA",
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": HUGE}},
        "loftq_config must",
    ),
    ("LORA", {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 64, "loftq_iter": 1}}, "loftq_config must"),
    ("LORA", {"layer_replication": [[0, HUGE]]}, "layer_replication must be pairs of whole numbers, for at most 1,000"),
    ("LORA", {"layer_replication": [[0, 2], [2, 0]] * 600}, "layer_replication must be pairs"),
    ("LORA", {"monteclora_config": {"buffer_size": HUGE}}, "monteclora_config: LORA is loaded without it"),
    ("LORA", {"layers_to_transform": [0] * 100_001}, "layers_to_transform must be at most 100,000 values"),
    ("LORA", {"r": 0}, "r"),
    ("UNILORA", {"theta_d_length": HUGE}, "theta_d_length must be a whole number of at most 100,000"),
    ("UNILORA", {"r": HUGE}, "r must be a whole number of at most 24, the largest rank here"),
    ("MULTITASK_PROMPT_TUNING", {"num_tasks": 10**5, "num_ranks": 10**5}, "it creates over 1,"),
    ("PROMPT_TUNING", {"num_virtual_tokens": HUGE}, "it creates over 1,"),
    ("RANDLORA", {"r": 0}, "division"),
]


@pytest.mark.parametrize(("method", "fields", "says"), ENDLESS)
def test_what_would_not_end_is_refused_in_a_line(method, fields, says, tmp_path):
    edit(save(tmp_path, method) / CONFIG, **fields)
    with in_time():
        assert str(tmp_path) in refused(load_onto, model_of(method), tmp_path, says=says)


LOOPS = [
    (method, field)
    for method in METHODS
    for field in sorted({*STEPS} & PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)].__dataclass_fields__.keys())
]


@pytest.mark.parametrize(("method", "field"), LOOPS)
def test_so_is_a_loop_whose_length_is_a_field(method, field, tmp_path):
    edit(save(tmp_path, method) / CONFIG, **{field: HUGE})
    with in_time():
        refused(load_onto, model_of(method), tmp_path, says=f"{field} must be a whole number of at most 64, got 1000")


def test_a_deep_configuration_is_refused_before_anything_is_made_of_it(tmp_path):
    save(tmp_path, "LORA")
    text = (tmp_path / CONFIG).read_text()
    (tmp_path / CONFIG).write_text(text.rstrip()[:-1] + ', "more": ' + "[" * 500 + "]" * 500 + "}")
    refused(load_onto, tiny("bert"), tmp_path, says="values within one another")
    assert (tmp_path / WEIGHTS).exists()
