"""What a section makes of a base model, resolved once: PEFT's configuration, the layers that it adapts, the head."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any, cast

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftConfig, PromptLearningConfig, TaskType
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES
from transformers import PreTrainedModel

from lsr import LsrConfig, LsrModel
from lsr.tuner.forms import check_forms
from lsr.tuner.targets import adapted_names, check_indices, check_names, linear_layers
from pipeline.core.errors import UserError, first_line, nearest
from pipeline.data.base_models import public_name
from pipeline.methods import kadaptation  # noqa: F401 it registers a method
from pipeline.params import PARAMS, FullParams, LsrParams, MethodParams, PeftParams
from pipeline.params.model_row import ModelRow
from pipeline.params.sections import OWN_LOOP
from pipeline.tasks import Task

# PEFT warns about layers that it does adapt.
warnings.filterwarnings("ignore", "Unsupported layer type .*Norm", module="peft")

MISFIT = (ValueError, TypeError)  # raised by a method if a value does not fit a model
# Methods of PEFT may raise anything else.
ANY_MISFIT = (*MISFIT, KeyError, AttributeError, IndexError, RuntimeError, AssertionError, ImportError)


@dataclass(frozen=True)
class Plan:
    """An adapter on a base model, before it is added: all that its section and the model's row decide."""

    section: MethodParams
    config: PeftConfig
    layers: tuple[str, ...]  # that LSR adapts, by name; other methods of PEFT find theirs themselves
    head: tuple[str, ...]  # the modules of the base model's head

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn what the method raises where a value does not fit a model into one line.

        Raises:
            UserError: in place of it.
        """
        misfit = ANY_MISFIT if isinstance(self.section, PeftParams) else MISFIT
        try:
            yield
        except misfit as error:
            raise UserError(f"{PARAMS}: {self.section.word}: {first_line(error)}") from None


def resolve(
    section: MethodParams, base: PreTrainedModel, row: ModelRow, seed: int, task_type: str = Task.peft_task
) -> Plan:
    """Return what a section makes of a base model, checked by the names and shapes of its layers: it needs no weights.

    Raises:
        UserError: if a value is not allowed, one line each, or does not fit the layers of the model.
    """
    head = head_of(row, base)
    whole = [name for name, _ in base.named_children()] if isinstance(section, FullParams) else head
    config = configured(section, seed, _targets(section, base, row, head), whole, task_type)
    plan = Plan(section, config, (), tuple(head))
    if getattr(config, "target_modules", None) in (None, DUMMY_TARGET_MODULES):
        return plan
    with plan.explaining():
        names = check_names(config, base)
        if not isinstance(section, LsrParams):  # names and indices that match nothing, which PEFT skips
            opened = _maybe_include_all_linear_layers(copy.copy(config), base)
            check_indices(config, [name for name in names if check_target_module_exists(opened, name)])
            return plan
        lsr = cast("LsrConfig", config)
        layers = adapted_names(base, lsr, names)
        # A budget chooses the ranks later, from 1 on.
        check_forms(base, layers, lsr if section.budget == "none" else replace(lsr, rank_shape=(1,)))
        return replace(plan, layers=tuple(layers))


def configured(
    section: MethodParams, seed: int, targets: Any, trained_whole: list[str], task_type: str = Task.peft_task
) -> PeftConfig:
    """Return the PEFT configuration of a section, with the layers that it adapts and the modules that it trains whole.

    Raises:
        UserError: if a value is not allowed, one line each.
    """
    chosen = {"task_type": TaskType(task_type), "target_modules": targets, "modules_to_save": trained_whole}
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


def _targets(section: MethodParams, base: PreTrainedModel, row: ModelRow, head: list[str]) -> Any:
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
            return _norms(base, head)
    return _as_peft(targets_of(row, base))


def _as_peft(targets: Any) -> Any:
    return targets if isinstance(targets, str) else list(targets)


def targets_of(row: ModelRow, model: PreTrainedModel) -> Sequence[str] | str:
    """Return name suffixes of the layers to adapt, or a regular expression: from the row, or from PEFT's table.

    Raises:
        UserError: if the row names a layer that the model does not have, or none where PEFT does not know the
            architecture; lists the linear layers.
    """
    kind = model.config.model_type
    usual = LsrModel.target_module_mapping.get(kind) if row.target_modules is None else row.target_modules
    layers = [name for name, module in model.named_modules() if getattr(module, "weight", None) is not None]
    unknown = [
        ending for ending in row.target_modules or () if not any(f".{name}".endswith(f".{ending}") for name in layers)
    ]
    if usual is not None and not unknown:
        return usual
    linear = linear_layers(model.base_model)
    listed = f"; its linear layers: {', '.join(linear)}"
    if unknown:
        near = nearest(unknown[0], linear)
        raise UserError(f"{row.where}: target_modules: the model has no layer {unknown[0]!r}{near}{listed}")
    raise UserError(
        f"{row.where}: {public_name(row)[0]}: it is not known which layers of the architecture {kind} are usually "
        f"adapted; name them by target_modules of a row{listed}"
    )


def head_of(row: ModelRow, model: PreTrainedModel) -> list[str]:
    """Return the modules of the head: from the row, or all modules with parameters outside the backbone.

    Raises:
        UserError: if the row names a module that the model does not have; lists those that there are.
    """
    modules = dict(model.named_children())
    if unknown := [name for name in row.head or () if name not in modules]:
        raise UserError(f"{row.where}: head: the model has no module {unknown[0]}; it has {', '.join(modules)}")
    if row.head is not None:
        return list(row.head)
    beside = {name: module for name, module in modules.items() if name != model.base_model_prefix}
    return [name for name, module in beside.items() if any(True for _ in module.parameters())]


def _norms(base: PreTrainedModel, head: list[str]) -> list[str]:
    """Return the normalization layers outside the head: LayerNorm, RMSNorm and models' own variants."""
    named = [(name, type(module).__name__) for name, module in base.named_modules()]
    return [name for name, kind in named if kind.endswith("Norm") and name.partition(".")[0] not in head]
