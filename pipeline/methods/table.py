"""How each method is trained: one row per section of params.yaml. A new method needs a section and a row here.

A row defines the section's PEFT configuration, the modules that are trained in full alongside it, the learning rates of
its parameters, and what merging and counting need to know.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    C3AConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
)
from peft.tuners.tuners_utils import _get_tuner_state_dict_key_prefixes
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import lsr
from lsr.tuner.config import usual_terms
from lsr.tuner.linear import adapted_layers
from lsr.tuner.rates import rate_factor
from pipeline import params
from pipeline.methods import checks, fields, other, placement
from pipeline.methods.bitfit import BitfitConfig
from pipeline.methods.kadaptation import KadaptationConfig
from pipeline.params import FullParams, HeadParams, LoraParams, LsrParams, MethodParams, PeftParams
from pipeline.params.rows import ModelRow

# PEFT warns about layers that it does adapt, and about EVA, which is initialized here with the model in memory.
warnings.filterwarnings("ignore", "Unsupported layer type .*Norm|lora with eva initialization", module="peft")

LINEAR = (nn.Linear, Conv1D)


def one_rate(section: Any, parameter: str) -> float | None:
    """Return the section's learning rate for any parameter; None if it has none because only the head is trained."""
    return getattr(section, "learning_rate", None)


def lsr_rate(section: Any, parameter: str) -> float:
    """Return the learning rate of an LSR parameter."""
    terms = usual_terms(section.rank_shape) if section.separation_rank == "auto" else section.separation_rank
    rate: float = section.learning_rate * rate_factor(parameter, section.train, terms)
    return rate


def logits_rate(section: Any, parameter: str) -> float:
    """Return the learning rate of a VB-LoRA parameter: the logits that select vectors have their own."""
    return section.logits_learning_rate if "vblora_logits" in parameter else section.learning_rate


def frozen_frames(model: PeftModel) -> int:
    """Return the number of frozen elements in LSR's factors."""
    sizes = [layer.sizes("default") for layer in adapted_layers(model).values()]
    return sum(size.effective - size.trained for size in sizes)


def frozen_elements(model: PeftModel) -> int:
    """Return the number of frozen elements in a method's own parameters and buffers."""
    own = tuple(f"{prefix}." for prefix in _get_tuner_state_dict_key_prefixes(model))
    tensors = (*model.named_parameters(), *model.named_buffers())
    frozen = ((f"{name}.", tensor) for name, tensor in tensors if not tensor.requires_grad)
    return sum(tensor.numel() for name, tensor in frozen if name.startswith(own))


@dataclass(frozen=True)
class Method:
    """One row of the table. Fields that section and configuration have in common are copied."""

    config: type[PeftConfig]
    fields: Callable[[Any, int], dict[str, Any]] = lambda section, seed: {}  # others of the configuration
    targets: Callable[[Any, PreTrainedModel, ModelRow], dict[str, Any]] = placement.named_targets
    layers: tuple[type[nn.Module], ...] = (
        nn.Linear,
    )  # layer types that it can adapt; LSR and PEFT's other methods check themselves
    check: Callable[[Any, nn.Module], None] = lambda section, layer: None  # whether it can adapt a layer of this size
    whole: Callable[[PreTrainedModel, ModelRow], list[str]] = (
        placement.the_head
    )  # modules that are trained and saved in full
    rate: Callable[[Any, str], float | None] = one_rate  # peak learning rate, from the section and a parameter's name
    undecayed: tuple[
        str, ...
    ] = ()  # parts of names of parameters for which zero is neither the initial nor a neutral value
    merges_exactly: bool = False  # whether unmerging restores the exact weights
    frozen: Callable[[PeftModel], int] = frozen_elements  # frozen elements that form the update


METHODS: dict[type[MethodParams], Method] = {
    LsrParams: Method(lsr.LsrConfig, fields=fields.lsr_names, rate=lsr_rate, merges_exactly=True, frozen=frozen_frames),
    LoraParams: Method(
        LoraConfig,
        fields=fields.lora_names,
        layers=(*LINEAR, nn.Embedding),
        check=checks.lora,
        undecayed=("lora_magnitude_vector",),
    ),
    # PEFT has no method for everything or for the head alone: use an adapter without layers that saves whole modules.
    FullParams: Method(LoraConfig, whole=placement.every_module),
    HeadParams: Method(LoraConfig),
    params.LokrParams: Method(LoKrConfig, fields=fields.lokr_names, check=checks.divides("decompose_factor")),
    params.KronaParams: Method(LoKrConfig, fields=fields.krona_names, check=checks.divides("factor")),
    params.KadaptationParams: Method(KadaptationConfig, fields=fields.chosen_layers, check=checks.divides("n")),
    params.VeraParams: Method(VeraConfig, fields=fields.seeded("projection_prng_key"), layers=LINEAR),
    params.FourierftParams: Method(
        FourierFTConfig, fields=fields.seeded("random_loc_seed"), layers=LINEAR, check=checks.spectrum
    ),
    params.VbloraParams: Method(
        VBLoRAConfig,
        fields=fields.chosen_layers,
        layers=LINEAR,
        check=checks.divides("vector_length"),
        rate=logits_rate,
    ),
    params.UniloraParams: Method(UniLoraConfig, fields=fields.seeded("proj_seed"), layers=LINEAR),
    params.TinyloraParams: Method(
        TinyLoraConfig, fields=fields.seeded("projection_seed"), layers=LINEAR, check=checks.directions
    ),
    params.C3aParams: Method(C3AConfig, fields=fields.c3a_names, check=checks.divides("block_size")),
    # These three expand to a section of LSR, so they use LSR's row.
    params.DirectionsParams: Method(lsr.LsrConfig),
    params.LoraxsParams: Method(lsr.LsrConfig),
    params.LorasbParams: Method(lsr.LsrConfig),
    params.Ia3Params: Method(IA3Config, targets=placement.ia3_targets, layers=LINEAR, undecayed=("ia3_l",)),
    params.BitfitParams: Method(BitfitConfig, targets=placement.biases),
    params.LnTuningParams: Method(LNTuningConfig, targets=placement.norms),
    PeftParams: Method(PeftConfig),
}


def row_of(section: MethodParams) -> Method:
    """Return the row of a section, or of the one that it is a special case of."""
    return next(METHODS[kind] for kind in type(section).__mro__ if kind in METHODS)


def config_of(section: MethodParams, base: PreTrainedModel, row: ModelRow, seed: int) -> PeftConfig:
    """Return the PEFT configuration of a section on a base model.

    Raises:
        ValueError: if a value does not fit; or TypeError, or whatever the configuration raises.
    """
    method = row_of(section)
    chosen = {
        "task_type": TaskType.SEQ_CLS,
        "modules_to_save": method.whole(base, row),
        **method.targets(section, base, row),
    }
    if isinstance(section, PeftParams):
        return other.config_of(section, chosen)
    same = {name: value for name, value in section if name in method.config.__dataclass_fields__}
    return method.config(**same | method.fields(section, seed) | chosen)


def check_layer(section: MethodParams, name: str, layer: nn.Module) -> None:
    """Check that a section's method can adapt a layer.

    Raises:
        ValueError: names the key, the value and the layer.
    """
    method = row_of(section)
    if not isinstance(layer, method.layers):
        able = " or ".join(kind.__name__ for kind in method.layers)
        raise ValueError(f"target_modules: {name} is of {type(layer).__name__}, but {section.word} adapts {able}")
    try:
        method.check(section, layer)
    except ValueError as error:
        raise ValueError(f"{error} {name}") from None


def method_of(model: PeftModel) -> Method:
    """Return the row of a model's kind of adapter; rows of one kind differ only in what they train."""
    kind = type(model.peft_config["default"])
    return next((method for method in METHODS.values() if method.config is kind), METHODS[PeftParams])


def peft_types() -> list[str]:
    """Return PEFT's names, such as LORA, of all methods that can be trained here."""
    chosen = {*(method.config for method in METHODS.values()), *other.kinds().values()}
    return [str(kind.value) for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if config in chosen]
