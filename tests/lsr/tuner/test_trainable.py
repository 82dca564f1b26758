"""Which parameters require gradients, with several adapters: the same as with adapters of PEFT's LoRA."""

import re

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lsr import LsrConfig

LAYERS = (["lin0"], ["lin1"], ["lin0", "lin1"])  # of the second adapter; the first adapts lin0
FORMS = {
    "factors": {},
    "core": {"train": "core"},
    "all, shared": {"train": "all", "share": "layers"},
    "with a head": {"modules_to_save": ["head"]},
    "with biases": {"bias": "all"},
    "with biases of layers": {"bias": "only"},
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(12, 12)
        self.lin1 = nn.Linear(12, 12)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.lin1(self.lin0(x).relu()).relu())


def lora(layers, bias="none", modules_to_save=None, **_):
    bias = "lora_only" if bias == "only" else bias
    return LoraConfig(r=2, target_modules=layers, bias=bias, modules_to_save=modules_to_save)


def lsr(layers, bias="none", **fields):
    bias = "lsr_only" if bias == "only" else bias
    return LsrConfig(rank_shape=(2,), separation_rank=1, target_modules=layers, bias=bias, **fields)


def flags(model):
    """Whether the parameters of each module and adapter require gradients, under names that both methods share."""
    actual = {}
    for name, parameter in model.named_parameters():
        name = re.sub(r"lora_[AB]\.(\w+)\.weight|lsr_adapters\.(\w+)\.\w+", r"ADAPTER.\1\2", name)
        actual.setdefault(name, set()).add(parameter.requires_grad)
    return actual


def history(config, fields, layers, first_trains, second_trains, folder):
    """Yield each step of the life of a model with several adapters, and its flags after it."""
    others = {**fields, "bias": "none"}  # PEFT refuses two adapters with biases
    get_peft_model(Model(), config(["lin0"], **fields)).save_pretrained(folder / "first")
    get_peft_model(Model(), config(layers, **others)).save_pretrained(folder / "second")
    model = PeftModel.from_pretrained(Model(), folder / "first", is_trainable=first_trains)
    yield "the first is loaded", flags(model)
    model.load_adapter(folder / "second", "second", is_trainable=second_trains)
    yield "a second is loaded", flags(model)
    model.set_adapter("second")
    yield "the second is active", flags(model)
    model.add_adapter("third", config(layers, **others))
    yield "a third is added", flags(model)
    model.base_model.set_adapter("third", inference_mode=True)
    yield "the third is active and frozen", flags(model)
    model.set_requires_grad("default")
    yield "the first is made trainable", flags(model)
    if "modules_to_save" not in fields:  # PEFT refuses several active heads
        model.base_model.set_adapter(["default", "second"])
        yield "two are active", flags(model)
    with model.disable_adapter():
        yield "all are disabled", flags(model)
    yield "all are enabled", flags(model)
    model.merge_adapter()
    yield "what is active is merged", flags(model)
    model.unmerge_adapter()
    yield "it is unmerged", flags(model)
    model.set_adapter("second")
    model.delete_adapter("default")
    yield "the first is deleted", flags(model)
    model.delete_adapter("second")
    yield "the active one is deleted", flags(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first_trains", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_parameters_train_as_with_loras(form, first_trains, tmp_path):
    for layers in LAYERS:
        for second_trains in (True, False):
            case = layers, FORMS[form]
            ours = history(lsr, FORMS[form], layers, first_trains, second_trains, tmp_path / "lsr")
            theirs = history(lora, FORMS[form], layers, first_trains, second_trains, tmp_path / "lora")
            steps = 0
            for (step, actual), (same, expected) in zip(ours, theirs, strict=True):
                assert (step, actual) == (same, expected), case
                steps += 1
            assert steps > 7
