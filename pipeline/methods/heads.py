"""The last layer of a trained head, which has a row for each output."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from lsr.serve.shared_adapter import last_layer
from lsr.tuner.files import PREFIX, Files, read_files
from pipeline.core import artifacts


def last_layer_of(model: PeftModel, layer: str) -> nn.Linear:
    """Return the head's last layer, by its name in the base model, as it is trained: PEFT has it inside a wrapper."""
    named = {}
    for name, module in model.named_modules():
        name_in_base = name.replace(".modules_to_save.default", "")
        named[name_in_base] = module
    trained = named[f"{PREFIX}{layer}"]
    assert isinstance(trained, nn.Linear)
    return trained


def find_last_layer(model: PeftModel) -> nn.Linear:
    """Return the head's last layer as it is trained, of a model whose adapter need not be in a folder."""
    fields = model.peft_config["default"].to_dict()
    files = Files(Path(), fields, get_peft_model_state_dict(model, save_embedding_layers=False))
    return last_layer_of(model, last_layer(files))


@torch.no_grad()
def scale_head(model: PeftModel, temperatures: Tensor) -> None:
    """Divide the outputs of the head of the model that artifacts/init began by temperatures, (1,) or (outputs,)."""
    layer = last_layer_of(model, last_layer(read_files(artifacts.INIT)))
    divisors = temperatures.to(layer.weight.device)
    layer.weight.div_(divisors[:, None])
    if layer.bias is not None:
        layer.bias.div_(divisors)
