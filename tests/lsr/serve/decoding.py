"""What the bytes of a bank's file stand for, computed in float64 as its documentation says, and as a LoRA of PEFT.

A row of a bank in few bits holds the codes of its parts, each code from its lowest bit on, and a bfloat16 scale for
each group of about 64 of them. A code c of b bits stands for scale * (c - (2^b - 1) / 2). Other rows are in bfloat16.

The values of an adapter are by the names of stacks: of a layer, rows of A (r, n) next to columns of B (m, r) in
`layers/MODULE/directions`, and (1, 1) in `layers/MODULE/scaling`; of a head, `heads/MODULE/weight` and `bias`.
"""

import json

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from lsr.serve import file
from tests.lsr.saved import with_labels
from tests.old_tiny.models import tokens

GROUP = 64
BFLOAT16_STEP = 2.0**-7  # of a value, between it and the next one


def from_codes(rows, parts, bits):  # (n, bytes), widths of the parts
    """Return the values for which rows of codes stand and the step of each, (n, width), in float64."""
    groups = []
    for part in parts:
        pieces = np.array_split(np.arange(part), max(1, round(part / GROUP)))
        groups += map(len, pieces)
    width = sum(parts)
    end = -(-width * bits // 8)
    single = np.unpackbits(rows[:, :end], axis=1, count=width * bits, bitorder="little")
    codes = single.reshape(len(rows), width, bits) @ (1 << np.arange(bits))
    upper = np.ascontiguousarray(rows[:, end:]).view("<u2").astype(np.uint32)  # bfloat16 is the upper half of float32
    scales = (upper << 16).view(np.float32).astype(np.float64)
    steps = scales.repeat(groups, axis=1)
    return torch.from_numpy(steps * (codes - (2**bits - 1) / 2)), torch.from_numpy(steps)


def read(folder, base, bits):
    """Return the values of each adapter of a bank's file, and the steps between the values that a row may hold there.

    `base` is the base model.
    """
    tensors = load_file(folder / file.FILE)
    with safe_open(folder / file.FILE, framework="pt") as content:
        names = json.loads(content.metadata()[file.HEADER])["task_infos"]
    adapters = {name: ({}, {}) for name in names}
    for stack in [name.removesuffix("/values") for name in tensors if name.endswith("/values")]:
        _, module, part = stack.split("/")
        rows = tensors[f"{stack}/values"]
        if rows.dtype is torch.uint8:
            outputs, inputs = base.get_submodule(module).weight.shape
            parts = (inputs, outputs) if part == "directions" else (inputs,)
            values, steps = from_codes(rows.numpy(), parts, bits)
        else:
            values = rows.double()
            steps = BFLOAT16_STEP * values.abs()
        counts = [1, *tensors[f"{stack}/counts"][1:].tolist()]  # before the adapters, there is the row of zeros
        pieces = zip(values.split(counts)[1:], steps.split(counts)[1:], strict=True)
        for adapter, (own, own_steps) in zip(adapters.values(), pieces, strict=True):
            if len(own):
                adapter[0][stack] = own
                adapter[1][stack] = own_steps
    return adapters


def values_of(contents):
    """Return the values of an adapter as it is before it is in a bank."""
    values = {}
    for name, tensor in contents.heads.items():
        module, _, part = name.rpartition(".")
        values[f"heads/{module}/{part}"] = tensor.reshape(len(tensor), -1)
    for layer, update in contents.updates.items():
        values[f"layers/{layer}/directions"] = torch.cat([update.bases.a, update.bases.b.T], dim=1)
        values[f"layers/{layer}/scaling"] = torch.tensor([[update.scaling]])
    return values


def logits(base, values, rows):
    """Return what PEFT computes for rows of tokens with the values of a LoRA and its head, in float64."""
    state = {}
    layers = []
    for stack, value in values.items():
        kind, module, part = stack.split("/")
        name = f"base_model.model.{module}"
        if part == "directions":
            inputs = base.get_submodule(module).weight.shape[1]
            scaling = values[f"layers/{module}/scaling"]
            state[f"{name}.lora_A.weight"] = value[:, :inputs]
            state[f"{name}.lora_B.weight"] = scaling * value[:, inputs:].T
            layers.append(module)
            rank = len(value)
        elif kind == "heads":
            state[f"{name}.{part}"] = value.squeeze(1) if part == "bias" else value
    config = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=rank, target_modules=layers)
    labels = len(values["heads/classifier/bias"])
    model = get_peft_model(with_labels(base, labels), config).double().eval()
    loaded = set_peft_model_state_dict(model, state)
    assert not loaded.unexpected_keys
    with torch.no_grad():
        return model(**tokens(rows)).logits
