"""Resolve a section for a base model once: PEFT's configuration, the adapted layers, and the head."""

import copy
import sys
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
from transformers.pytorch_utils import Conv1D

from lsr import LsrConfig, LsrModel
from lsr.loading.fields import START, filter_fields, methods
from lsr.loading.updates import LSR
from lsr.tuner.files import PREFIX
from lsr.tuner.forms import check_forms
from lsr.tuner.options import check_patterns
from lsr.tuner.targets import check_indices, check_names, heads_of, linear_layers, select_layers
from pipeline import tasks
from pipeline.core.errors import UserError, as_user_error, nearest
from pipeline.data.base_models import outline, public_name
from pipeline.methods import kadaptation  # noqa: F401 it registers a method
from pipeline.params import PARAMS, FactorizeInitView, FullParams, LsrParams, MethodParams, PeftParams
from pipeline.params.sections import OWN_LOOP, HeadOnlyParams
from pipeline.params.sources import ModelEntry
from pipeline.tasks.head import Head

# PEFT warns about layers that it does adapt.
warnings.filterwarnings("ignore", "Unsupported layer type .*Norm", module="peft")

FROM_EXAMPLES = ("eva", "corda", "lora_ga")  # initializations of PEFT
OLORA = "olora"  # another one
SIZES = ("r", "n")  # keys of ranks and numbers of terms; a method whose default is 0 computes them
OWN_TABLES = ("IA3", "LN_TUNING")  # methods for which PEFT has tables of target layers other than LoRA's
# What PEFT warns of a key that it overrides or does not use.
UNUSED = ".*(ignored|only supported|no parameter was matched|no tied modules|fan_in_fan_out is set to True but)"
MISFIT = (ValueError, TypeError)  # raised by a method if a value does not fit a model
WARNING_CATEGORIES = (UserWarning, RuntimeWarning)
# Methods of PEFT may raise anything else.
OTHER_MISFIT = (KeyError, AttributeError, IndexError, RuntimeError, AssertionError, ImportError, ArithmeticError)
ANY_MISFIT = (*MISFIT, *OTHER_MISFIT, *WARNING_CATEGORIES)


@dataclass(frozen=True)
class Plan:
    """The plan of an adapter on a base model: all that its section and the model's entry determine."""

    section: MethodParams
    config: PeftConfig
    layers: tuple[str, ...]  # names of the layers that LSR adapts; other methods of PEFT find theirs themselves
    head: tuple[str, ...]  # the modules of the base model's head


@contextmanager
def wrap_method_errors(section: MethodParams) -> Iterator[None]:
    """Convert errors of a section's method about values, or values that do not fit a model, into one line.

    PEFT's warnings of keys without effect are converted, too.
    """
    misfit = ANY_MISFIT if isinstance(section, PeftParams) else MISFIT
    with as_user_error(*misfit, before=f"{PARAMS}: {section.key}: "), warnings.catch_warnings():
        for category in WARNING_CATEGORIES if isinstance(section, PeftParams) else ():
            warnings.filterwarnings("error", UNUSED, category)
        yield


def resolve(view: FactorizeInitView, base: PreTrainedModel) -> Plan:
    """Resolve a section for a base model, and check it by names and shapes of layers; no weights are needed.

    Raises:
        UserError: if the section does not fit the model.
    """
    section = view.section
    entry = view.base_model
    head = head_of(entry, base)
    if not head and isinstance(section, HeadOnlyParams | FullParams):
        raise UserError(f"{PARAMS}: adapter: {section.key}: a language model has no head; choose another")
    whole = head
    if isinstance(section, FullParams):
        whole = beside_head(base, head) + head
    task_type = tasks.of(view.dataset).head.peft_task
    targets = _targets(section, base, entry)
    config = build_config(section, view.seed, targets, whole, task_type)
    plan = Plan(section, config, (), tuple(head))
    if getattr(config, "target_modules", None) in (None, DUMMY_TARGET_MODULES):
        return plan
    with wrap_method_errors(section):
        names = check_names(config, base)
        if not isinstance(section, LsrParams):  # names and indices that match nothing, which PEFT skips
            opened = _maybe_include_all_linear_layers(copy.copy(config), base)
            adapted = [name for name in names if check_target_module_exists(opened, name)]
            check_indices(config, adapted)
            _check_start(config, base, adapted)
            return plan
        lsr = cast("LsrConfig", config)
        layers = select_layers(base, lsr, names)
        if section.total_directions != "none":  # it chooses the ranks later, from 1 on
            lsr = replace(lsr, rank_shape=(1,))
        check_forms(base, layers, lsr)
        return replace(plan, layers=tuple(layers))


def _check_start(config: PeftConfig, base: PreTrainedModel, adapted: Sequence[str]) -> None:
    """Check that PEFT can initialize the adapted layers.

    OLoRA decomposes a weight as if its rows were outputs. Those of GPT-2's Conv1D are inputs: it then fails, or, if the
    weight is square, changes what the model computes.

    Raises:
        ValueError: if it cannot; names the layer.
    """
    if str(getattr(config, START, None)).lower() != OLORA:
        return
    for name in adapted:
        if isinstance(base.get_submodule(name), Conv1D):
            raise ValueError(f"{START}: {OLORA} cannot initialize {name}, a Conv1D; choose another initialization")


def check(view: FactorizeInitView) -> None:
    """Check that a section fits the names and shapes of its base model's layers, without reading weights.

    Raises:
        UserError: if it does not fit, or the model is missing.
    """
    resolve(view, outline(view.base_model, tasks.of(view.dataset)))


def check_options(section: MethodParams) -> None:
    """Check the values of a section that do not depend on the base model.

    Raises:
        UserError: if a value is not allowed, one line each.
    """
    build_config(section, seed=0, targets=_read_targets(section) or ["query"], trained_whole=[])


def build_config(
    section: MethodParams,
    seed: int,
    targets: Any,
    trained_whole: list[str],
    task_type: str = Head.peft_task,
) -> PeftConfig:
    """Build the PEFT configuration of a section, given the adapted layers and the fully trained modules.

    Raises:
        UserError: if a value is not allowed, one line each.
    """
    chosen = {
        "task_type": TaskType(task_type),
        "target_modules": targets,
        "modules_to_save": trained_whole or None,
    }
    with wrap_method_errors(section):
        match section:
            case LsrParams():  # the initialization comes later
                fields = {name: value for name, value in section if name in LsrConfig.__dataclass_fields__}
                automatic = {"separation_rank": None} if section.separation_rank == "auto" else {}
                return LsrConfig(**fields | automatic | _layers(section) | {"seed": seed} | chosen)
            case PeftParams():
                return _of_peft(section, seed, chosen)
        # PEFT has no method for everything or for the head alone: an adapter without layers saves whole modules.
        return LoraConfig(**chosen)


def _layers(section: LsrParams | PeftParams) -> dict[str, Any]:
    return {} if section.layers == "all" else {"layers_to_transform": list(section.layers)}


def _of_peft(section: PeftParams, seed: int, chosen: dict[str, Any]) -> PeftConfig:
    # Returns PEFT's configuration, with what else is chosen, and the seed for all that PEFT draws by one.
    types = list_types()
    config_class = types.get(section.type)
    if config_class is None:
        raise ValueError(
            f"type: PEFT {version('peft')} has no method {section.type!r} that adapts layers and can be loaded again"
            f"{nearest(section.type, types)}; there are {', '.join(types)}"
        )
    known = config_class.__dataclass_fields__
    for name in section.options:
        if name not in known:
            raise ValueError(f"{name}: no such key{nearest(name, known)}")
    if section.layers != "all" and "layers_to_transform" not in known:
        raise ValueError(f"layers: {section.type} cannot choose layers by index; name them by target_modules")
    start = section.options.get(START)
    if start in FROM_EXAMPLES:
        raise ValueError(f"{START}: {start} needs examples, which this pipeline does not pass to it")
    seeds = {name: seed for name in known if name.endswith("seed") or name == "projection_prng_key"}
    for name in SIZES:
        size = section.options.get(name)
        if size is None or known[name].default == 0:
            continue
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}: must be a whole number of at least 1, got {size}")
    in_silence = {"progressbar": False} if "progressbar" in known else {}  # FRoD would draw its own progress bar
    fields = in_silence | seeds | section.options | _layers(section) | chosen
    check_patterns(fields)  # readers of the adapter make the same check
    # The stages that follow make the same check.
    filter_fields({"peft_type": section.type, **fields}, widest=sys.maxsize)
    return config_class(**fields)


def list_types() -> dict[str, type[PeftConfig]]:
    """Return the PEFT configurations by name of all methods that adapt layers, need no own loop, and can be loaded."""
    types = {}
    for method, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if method.value in OWN_LOOP or issubclass(config, PromptLearningConfig):
            continue
        if method.value != LSR and method.value not in methods():  # the stages that follow can load only these
            continue
        names = {field.name for field in fields(config) if field.init}
        if {"target_modules", "modules_to_save"} <= names:
            types[str(method.value)] = config
    return types


def _targets(section: MethodParams, base: PreTrainedModel, entry: ModelEntry) -> Any:
    """Return the target layers of a section; by default the usual ones of its method or of the model."""
    if not isinstance(section, LsrParams | PeftParams) or section.target_modules == "none":
        return DUMMY_TARGET_MODULES
    named = _read_targets(section)
    if named is None and section.type not in OWN_TABLES:
        return _as_list(targets_of(entry, base))
    return named


def _read_targets(section: MethodParams) -> str | list[str] | None:
    """Return the target layers that a section names itself; None if its method or the model determines them."""
    named = getattr(section, "target_modules", "default")
    return None if named in ("default", "none") else _as_list(named)


def _as_list(targets: Sequence[str] | str) -> str | list[str]:
    return targets if isinstance(targets, str) else list(targets)


def targets_of(entry: ModelEntry, model: PreTrainedModel) -> Sequence[str] | str:
    """Return the target layers as name suffixes or a regular expression: from the model's entry, or PEFT's table.

    Raises:
        UserError: if the entry names a layer that the model does not have, or names none and PEFT has no
            defaults for the architecture; lists the linear layers.
    """
    if entry.target_modules is not None:
        with as_user_error(ValueError, before=f"{entry.where}: "):
            check_names(LoraConfig(target_modules=list(entry.target_modules)), model)
        return entry.target_modules
    architecture = model.config.model_type
    if architecture not in LsrModel.target_module_mapping:
        linear = ", ".join(linear_layers(model.base_model))
        raise UserError(
            f"{entry.where}: {public_name(entry)[0]}: it is not known which layers of the architecture {architecture} "
            f"are usually adapted; name them by target_modules of its entry; its linear layers: {linear}"
        )
    return LsrModel.target_module_mapping[architecture]


def beside_head(model: PreTrainedModel, head: Sequence[str]) -> list[str]:
    """Return the modules with parameters outside a head, by names with which no other module of PEFT's wrapper ends.

    PEFT matches each entry of `modules_to_save` to the end of a name, and both of its wrappers have a `model`, which is
    also the name of the backbone of Llama and ModernBERT.
    """
    beside = []
    for name, module in model.named_children():
        if name not in head and next(module.parameters(), None) is not None:
            beside.append(f"{PREFIX}{name}")
    return beside


def head_of(entry: ModelEntry, model: PreTrainedModel) -> list[str]:
    """Return the modules of the head: from the entry, or all modules with parameters outside the backbone.

    A language model has no head to train.

    Raises:
        UserError: if the entry names a module that the model does not have; lists the possible ones.
    """
    modules = dict(model.named_children())
    if model.can_generate():
        return []  # a language model's is pretrained, and often its embeddings
    if entry.head is None:
        return heads_of(model)
    for name in entry.head:
        if name not in modules:
            raise UserError(f"{entry.where}: head: the model has no module {name}; it has {', '.join(modules)}")
    return list(entry.head)
