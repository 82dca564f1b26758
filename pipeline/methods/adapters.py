"""Adapters on a base model: create from the selected section, initialize, merge, save, load and count."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import peft
import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_parameter_names

from lsr.algebra.spectrum import Matrix
from lsr.init.allocation import allocate
from lsr.loading.adapters import load_onto
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import CONFIG, PREFIX
from lsr.tuner.initialize import initialize_factors
from lsr.tuner.options import default_separation_rank
from lsr.tuner.rates import rate_factor
from pipeline.core.errors import UserError, as_user_error
from pipeline.data.base_models import public_name
from pipeline.methods import planning
from pipeline.methods.planning import Plan
from pipeline.params import PARAMS, LsrParams, MethodParams, PeftParams, TrainView
from pipeline.params.sections import RATE
from pipeline.params.sources import ModelEntry

# Names of biases, and of parameters for which zero is neither the initial nor a neutral value: they do not decay.
UNDECAYED = (r"(\b|_)bias$", r"\bparametrizations\.bias\.", "lora_magnitude_vector", "ia3_l")
# At the peak of the learning rate, a step multiplies tenants' deviations from the rows that they share by 1 - this.
DECAY_OF_DEVIATIONS = 0.02


def add_adapter(
    base: PreTrainedModel,
    plan: Plan,
    statistics: Mapping[str, Matrix]
    | None = None,  # gradients or updates by layer, by which total_directions are allocated
) -> PeftModel:
    """Return the base model with a fresh adapter; LSR factors are random until `initialize` is called.

    Raises:
        UserError: if the plan does not fit the model, or has a learning rate for parameters that the method does not
            have.
    """
    section = plan.section
    config = plan.config
    with planning.wrap_method_errors(section):
        if isinstance(section, LsrParams) and section.total_directions != "none":
            lsr = cast("LsrConfig", config)
            ranks = allocate(statistics or {}, section.total_directions, lsr.seed or 0)
            config = lsr.with_ranks(ranks)
        model = peft.get_peft_model(base, config)
    if isinstance(section, PeftParams):
        _check_rates(section, model)
    return model


def _check_rates(section: PeftParams, model: PeftModel) -> None:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for key in section.rates:
        part = key.removesuffix(RATE).removesuffix("_")
        if not any(part in name for name in names):
            no_part = f"no parameter of {section.type} has {part!r} in its name"
            raise UserError(f"{PARAMS}: {section.key}: {key}: {no_part}")


def initialize(
    model: PeftModel,
    plan: Plan,
    statistics: Mapping[str, Matrix] | None = None,
    done: Callable[[str], object] = lambda name: None,
) -> None:
    """Initialize LSR from the statistics read; call `done` with the name of each layer or layer group.

    Raises:
        UserError: if the initialization fails on a weight or a statistic.
    """
    section = plan.section
    if not isinstance(section, LsrParams):
        return  # PEFT has initialized it
    with as_user_error(ValueError, before=f"{PARAMS}: {section.key}.init: "):
        initialize_factors(model, init_weights=section.scheme, statistics=statistics, done=done)


def rate_of(section: MethodParams, parameter: str) -> float | None:
    """Return the peak learning rate of an adapter's parameter by its name; None if only the head is trained."""
    if isinstance(section, LsrParams):
        terms = section.separation_rank
        if terms == "auto":
            terms = default_separation_rank(section.rank_shape)
        return section.learning_rate * rate_factor(parameter, terms)
    for key, rate in section.rates.items():
        if key.removesuffix(f"_{RATE}") in parameter:
            return rate
    return section.rates.get(RATE)


def optimizer(model: PeftModel, view: TrainView) -> torch.optim.AdamW:
    """Return AdamW with separate learning rates for adapter and head, and no weight decay of biases and norms."""
    head_rate = view.train.head_learning_rate
    types = set(map(type, model.modules()))
    norms = [module_class for module_class in types if module_class.__name__.endswith("Norm")]
    norms.append(nn.LayerNorm)  # and its subclasses of other names, as Nemotron has one
    decaying = set(get_parameter_names(model, norms, UNDECAYED))
    in_head = head_parameters(model, view.base_model)
    groups = dict[tuple[float, float], dict[str, Any]]()  # parameter groups by learning rate and weight decay
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = None if id(parameter) in in_head else rate_of(view.section, name)
        rate = head_rate if rate is None else rate
        decay = view.train.weight_decay if name in decaying else 0.0
        if name.endswith(".deviations"):
            decay = DECAY_OF_DEVIATIONS / rate
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    # A third of the time that many small tensors take one by one.
    return torch.optim.AdamW(list(groups.values()), foreach=True)


def save_adapter(model: PeftModel, folder: Path, entry: ModelEntry) -> None:
    """Write adapter_config.json and adapter_model.safetensors to an existing folder, deterministically."""
    # Not "auto", which would ask the hub whether the vocabulary has changed.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # PEFT's empty model card
    path = folder / CONFIG
    config = vars(model.peft_config["default"])
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["base_model_name_or_path"], fields["revision"] = public_name(entry)
    # PEFT writes sets in hash order, which differs between processes.
    for name, value in config.items():
        if isinstance(value, set):
            fields[name] = sorted(value)
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Return the base model with the adapter in a folder, on the device of the base model.

    Raises:
        InputError: if the folder is not an adapter, is incomplete, or does not fit the base model.
    """
    model = load_onto(base, folder, trainable=trainable)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.original_module.requires_grad_(False)  # PEFT's `bias: all` has made its biases trainable
    # The folder names a hub repository, which PEFT would query whenever the Trainer saves a checkpoint.
    model.peft_config["default"].base_model_name_or_path = base.name_or_path
    return model


def head_parameters(model: PeftModel, entry: ModelEntry) -> set[int]:
    """Return the ids of the head's parameters: the trainable copy and the original that it replaces."""
    base = cast("PreTrainedModel", model.get_base_model())
    ids = set[int]()
    for name in planning.head_of(entry, base):
        head = base.get_submodule(name)
        ids.update(map(id, head.parameters()))
    return ids


def count_parameters(model: PeftModel, entry: ModelEntry) -> dict[str, int]:
    """Return the number of parameters of the adapter, counted in two ways, of the head and of the frozen base.

    `adapter_trained` counts parameters that require grad, `adapter_stored` those in the adapter's file, both without
    the head. The base model's own head, which the trained one replaces, is not counted. The adapter must have been
    loaded as trainable.
    """
    in_head = head_parameters(model, entry)
    heads = planning.head_of(entry, cast("PreTrainedModel", model.get_base_model()))
    of_heads = tuple(f"{PREFIX}{name}." for name in heads)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = [value.numel() for name, value in saved.items() if not name.startswith(of_heads)]
    sizes = Counter[tuple[bool, bool]]()  # parameters by (is in the head, is trained)
    for parameter in model.parameters():
        sizes[id(parameter) in in_head, parameter.requires_grad] += parameter.numel()
    return {
        "adapter_trained": sizes[False, True],
        "adapter_stored": sum(stored),
        "head_parameters": sizes[True, True],
        "base_parameters": sizes[False, False],
    }
