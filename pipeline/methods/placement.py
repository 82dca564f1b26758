"""The layers of a base model that a section adapts, in PEFT's fields, and the modules that are trained in full."""

from typing import Any

from peft.utils.constants import (
    DUMMY_TARGET_MODULES,
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from transformers import PreTrainedModel

from pipeline.methods import architecture
from pipeline.methods.bitfit import biased_layers
from pipeline.params import MethodParams
from pipeline.params.methods import PUBLISHED
from pipeline.params.rows import ModelRow


def adapts_layers(section: MethodParams) -> bool:
    """Return whether a method adapts layers, as opposed to only training whole modules."""
    return "target_modules" in type(section).model_fields


def named_targets(section: Any, base: PreTrainedModel, row: ModelRow) -> dict[str, Any]:
    """Return the layers that a section names; by default those of the model's row or architecture."""
    if not adapts_layers(section):
        return {"target_modules": DUMMY_TARGET_MODULES}
    if section.target_modules == "default":
        return {"target_modules": _as_peft(architecture.targets_of(row, base))}
    return {"target_modules": _as_peft(section.target_modules)}


def ia3_targets(section: Any, base: PreTrainedModel, row: ModelRow) -> dict[str, Any]:
    """Return the layers whose outputs, or inputs in a feed-forward module, (IA)3 scales.

    Raises:
        ValueError: if PEFT has no published layers for this architecture.
    """
    tables = {
        "target_modules": TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
        "feedforward_modules": TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    }
    chosen = named_targets(section, base, row) | {"feedforward_modules": _as_peft(section.feedforward_modules)}
    for field, known in tables.items():
        if getattr(section, field) == PUBLISHED:
            if base.config.model_type not in known:
                raise ValueError(f"{field}: none are published for a {base.config.model_type}; name them")
            chosen[field] = known[base.config.model_type]
    return chosen


def biases(section: Any, base: PreTrainedModel, row: ModelRow) -> dict[str, Any]:
    """Return the layers that have a bias.

    Raises:
        ValueError: if there is none, or one cannot be shifted.
    """
    return {"target_modules": biased_layers(base, architecture.head_of(row, base))}


def norms(section: Any, base: PreTrainedModel, row: ModelRow) -> dict[str, Any]:
    """Return the normalization layers outside the head: LayerNorm, RMSNorm and models' own variants."""
    named = [(name, type(module).__name__) for name, module in base.named_modules()]
    head = architecture.head_of(row, base)
    return {
        "target_modules": [name for name, kind in named if kind.endswith("Norm") and name.partition(".")[0] not in head]
    }


def _as_peft(targets: Any) -> Any:
    return targets if isinstance(targets, str) else list(targets)


def the_head(base: PreTrainedModel, row: ModelRow) -> list[str]:
    """Return the modules of the head."""
    return architecture.head_of(row, base)


def every_module(base: PreTrainedModel, row: ModelRow) -> list[str]:
    """Return all modules of the model, including the head."""
    return [name for name, _ in base.named_children()]
