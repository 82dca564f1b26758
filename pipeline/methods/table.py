"""How each method trains: one row a section of params.yaml. A new method is a section and a row here.

A row says which PEFT configuration the section becomes, which modules train whole beside it, at which rates its
parameters train, and what merging and counting must know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftConfig, PeftModel, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import PreTrainedModel

import lsr
from lsr.tuner.config import CORED
from lsr.tuner.linear import adapted_layers
from pipeline.methods import architecture
from pipeline.params import FullParams, HeadParams, LoraParams, LsrParams, MethodParams
from pipeline.params.rows import ModelRow


def lsr_names(section: Any, seed: int) -> dict[str, Any]:
    """Return the fields of LsrConfig that are no words of params.yaml, or other ones; it is initialized later."""
    automatic = {name: None for name in ("in_shape", "out_shape") if getattr(section, name) == "auto"}
    return {"seed": seed, **chosen_layers(section, seed), **automatic}


def chosen_layers(section: Any, seed: int) -> dict[str, Any]:
    """Return which layers of the base model are adapted, as PEFT calls it."""
    return {"layers_to_transform": None if section.layers == "all" else list(section.layers)}


def the_head(base: PreTrainedModel, row: ModelRow) -> list[str]:
    """Return the modules of the head."""
    return architecture.head_of(row, base)


def every_module(base: PreTrainedModel, row: ModelRow) -> list[str]:
    """Return all modules of the model, the head among them."""
    return [name for name, _ in base.named_children()]


def one_rate(section: Any, parameter: str) -> float | None:
    """Return the section's learning rate for any parameter; None if it has none: nothing but the head trains."""
    return getattr(section, "learning_rate", None)


def lsr_rate(section: Any, parameter: str) -> float:
    """Return the learning rate of a parameter of LSR: that of A2 and B2 is smaller by sqrt(s), as their entries are.

    A step of Adam is as large for every entry, so at one rate these would turn sqrt(s) times faster than A1 does.
    """
    is_small = parameter.endswith((".factor_A2", ".factor_B2")) and section.train not in CORED
    return section.learning_rate / (section.separation_rank**0.5 if is_small else 1.0)


def frozen_frames(model: PeftModel) -> int:
    """Return how many elements of LSR's factors are frozen."""
    sizes = [layer.sizes("default") for layer in adapted_layers(model).values()]
    return sum(size.effective - size.trained for size in sizes)


@dataclass(frozen=True)
class Method:
    """One row of the table. A field of the section that the configuration has too is taken as it is."""

    config: type[PeftConfig]
    fields: Callable[[Any, int], dict[str, Any]] = lambda section, seed: {}  # others of the configuration
    whole: Callable[[PreTrainedModel, ModelRow], list[str]] = the_head  # modules that train and are saved whole
    rate: Callable[[Any, str], float | None] = one_rate  # peak learning rate, from the section and a parameter's name
    merges_exactly: bool = False  # whether unmerging puts the very weights back
    frozen: Callable[[PeftModel], int] = lambda model: 0  # elements that shape the update and do not train


METHODS: dict[type[MethodParams], Method] = {
    LsrParams: Method(lsr.LsrConfig, fields=lsr_names, rate=lsr_rate, merges_exactly=True, frozen=frozen_frames),
    LoraParams: Method(LoraConfig, fields=chosen_layers),
    # PEFT has no method "everything" or "the head": an adapter of no layers that saves whole modules is just that.
    FullParams: Method(LoraConfig, whole=every_module),
    HeadParams: Method(LoraConfig),
}


def adapts_layers(section: MethodParams) -> bool:
    """Return whether a method adapts layers, rather than training modules whole and nothing else."""
    return "target_modules" in type(section).model_fields


def config_of(section: MethodParams, base: PreTrainedModel, row: ModelRow, seed: int) -> PeftConfig:
    """Return the PEFT configuration that a section becomes on a base model.

    Raises:
        ValueError: if a value does not fit; or TypeError, whatever the configuration raises.
    """
    method = METHODS[type(section)]
    same = {name: value for name, value in section if name in method.config.__dataclass_fields__}
    chosen: Mapping[str, Any] = {
        **same,
        **method.fields(section, seed),
        "task_type": TaskType.SEQ_CLS,
        "target_modules": _targets(section, base, row),
        "modules_to_save": method.whole(base, row),
    }
    return method.config(**chosen)


def _targets(section: Any, base: PreTrainedModel, row: ModelRow) -> list[str] | str:
    if not adapts_layers(section):
        return DUMMY_TARGET_MODULES
    chosen = section.target_modules
    named = architecture.targets_of(row, base) if chosen == "default" else chosen
    return named if isinstance(named, str) else list(named)


def method_of(model: PeftModel) -> Method:
    """Return the row of the kind of adapter that a model has; those of one kind differ only in what they train."""
    kind = type(model.peft_config["default"])
    return next(method for method in METHODS.values() if method.config is kind)


def peft_types() -> list[str]:
    """Return what the configuration files of the table's methods call them, such as LORA."""
    kinds = {method.config for method in METHODS.values()}
    return [str(name.value) for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items() if config in kinds]
