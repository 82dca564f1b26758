"""What a section makes of a base model: its PEFT configuration, and what PEFT does not know about its training."""

import copy
import warnings
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftConfig, PromptLearningConfig, TaskType
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import PreTrainedModel

from lsr import LsrConfig
from lsr.tuner.options import usual_terms
from lsr.tuner.rates import rate_factor
from lsr.tuner.targets import check_indices, check_names
from pipeline.core.errors import UserError, first_line, nearest
from pipeline.methods import base_models, kadaptation  # noqa: F401 it registers a method
from pipeline.params import PARAMS, FullParams, LsrParams, MethodParams, PeftParams
from pipeline.params.methods import OWN_LOOP, RATE
from pipeline.params.model_row import ModelRow

# PEFT warns about layers that it does adapt.
warnings.filterwarnings("ignore", "Unsupported layer type .*Norm", module="peft")

# Parts of the names of parameters for which zero is neither the initial nor a neutral value.
UNDECAYED = ("lora_magnitude_vector", "ia3_l")


def config_of(section: MethodParams, base: PreTrainedModel, row: ModelRow, seed: int) -> PeftConfig:
    """Return the PEFT configuration of a section on a base model.

    Raises:
        UserError: if a value is not allowed, one line each, or names layers that the model does not have.
    """
    config = configured(section, seed, _targets(section, base, row), _trained_whole(section, base, row))
    if isinstance(section, PeftParams) and getattr(config, "target_modules", None) not in (None, DUMMY_TARGET_MODULES):
        try:
            _check_names(base, config)
        except ValueError as error:
            raise UserError(f"{PARAMS}: {section.word}: {error}") from None
    return config


def _check_names(base: PreTrainedModel, config: PeftConfig) -> None:
    """Refuse names and indices of layers that match nothing, which PEFT skips; LSR does so itself."""
    names = check_names(config, base)
    opened = _maybe_include_all_linear_layers(copy.copy(config), base)
    check_indices(config, [name for name in names if check_target_module_exists(opened, name)])


def configured(section: MethodParams, seed: int, targets: Any, trained_whole: list[str]) -> PeftConfig:
    """Return the PEFT configuration of a section, with the layers that it adapts and the modules that it trains whole.

    Raises:
        UserError: if a value is not allowed, one line each.
    """
    chosen = {"task_type": TaskType.SEQ_CLS, "target_modules": targets, "modules_to_save": trained_whole}
    try:
        match section:
            case LsrParams():
                return LsrConfig(**_lsr_fields(section) | {"seed": seed} | chosen)
            case PeftParams():
                return _type_of(section)(**_peft_fields(section, seed), **chosen)
        # PEFT has no method for everything or for the head alone: an adapter without layers saves whole modules.
        return LoraConfig(**chosen)
    except (ValueError, TypeError) as error:
        raise UserError(f"{PARAMS}: {section.word}: {first_line(error)}") from None


def _lsr_fields(section: LsrParams) -> dict[str, Any]:
    """Return the fields of LsrConfig that a section sets; the initialization comes later."""
    same = {name: value for name, value in section if name in LsrConfig.__dataclass_fields__}
    automatic = {"separation_rank": None} if section.separation_rank == "auto" else {}
    return same | automatic | _layers(section)


def _layers(section: LsrParams | PeftParams) -> dict[str, Any]:
    return {} if section.layers == "all" else {"layers_to_transform": list(section.layers)}


def _peft_fields(section: PeftParams, seed: int) -> dict[str, Any]:
    """Return the fields of PEFT's configuration that a section sets, with the seed for all that PEFT draws by one.

    Raises:
        ValueError: if there is no such method or field, or the method cannot do what the section says.
    """
    known = _type_of(section).__dataclass_fields__
    for name in section.options:
        if name not in known:
            raise ValueError(f"{name}: no such key{nearest(name, known)}")
    if section.layers != "all" and "layers_to_transform" not in known:
        raise ValueError(f"layers: {section.type} cannot choose layers by index; name them by target_modules")
    if section.options.get("init_lora_weights") == "eva":
        raise ValueError("init_lora_weights: eva needs examples, which this pipeline does not pass to it")
    seeds = {name: seed for name in known if name.endswith("seed") or name == "projection_prng_key"}
    return seeds | section.options | _layers(section)


def known_types() -> dict[str, type[PeftConfig]]:
    """Return the configurations of all methods that adapt layers and work in any training loop, by PEFT's name."""
    configs = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: config for name, config in configs.items() if name not in OWN_LOOP and _adapts_layers(config)}


def _adapts_layers(config: type[PeftConfig]) -> bool:
    has_targets = {"target_modules", "modules_to_save"} <= {field.name for field in fields(config) if field.init}
    return has_targets and not issubclass(config, PromptLearningConfig)


def _type_of(section: PeftParams) -> type[PeftConfig]:
    name, known = section.type, known_types()
    if name not in known:
        names = ", ".join(known)
        raise ValueError(
            f"type: PEFT {version('peft')} has no method {name!r} that adapts layers{nearest(name, known)}; there are "
            f"{names}"
        )
    return known[name]


def _targets(section: MethodParams, base: PreTrainedModel, row: ModelRow) -> Any:
    """Return the layers that a section names; by default the usual ones of its method or of the model."""
    if not isinstance(section, LsrParams | PeftParams):
        return DUMMY_TARGET_MODULES
    if isinstance(section, PeftParams) and section.target_modules == "none":
        return DUMMY_TARGET_MODULES
    if section.target_modules != "default":
        return _as_peft(section.target_modules)
    match section.type:
        case "IA3":
            return None  # PEFT has a table by architecture for it
        case "LN_TUNING":
            return _norms(base, base_models.head_of(row, base))
    return _as_peft(base_models.targets_of(row, base))


def _as_peft(targets: Any) -> Any:
    return targets if isinstance(targets, str) else list(targets)


def _norms(base: PreTrainedModel, head: list[str]) -> list[str]:
    """Return the normalization layers outside the head: LayerNorm, RMSNorm and models' own variants."""
    named = [(name, type(module).__name__) for name, module in base.named_modules()]
    return [name for name, kind in named if kind.endswith("Norm") and name.partition(".")[0] not in head]


def _trained_whole(section: MethodParams, base: PreTrainedModel, row: ModelRow) -> list[str]:
    """Return the modules that are trained and saved in full: the head, or all of them."""
    if isinstance(section, FullParams):
        return [name for name, _ in base.named_children()]
    return base_models.head_of(row, base)


def rate_of(section: MethodParams, parameter: str) -> float | None:
    """Return the peak learning rate of an adapter's parameter by its name; None if only the head is trained."""
    usual = section.rates.get(RATE)
    if isinstance(section, LsrParams):
        terms = usual_terms(section.rank_shape) if section.separation_rank == "auto" else section.separation_rank
        return section.learning_rate * rate_factor(parameter, terms)
    own = {name.removesuffix(f"_{RATE}"): rate for name, rate in section.rates.items() if name != RATE}
    return next((rate for part, rate in own.items() if part in parameter), usual)
