"""The section `peft`: the configuration of any method of the installed PEFT that adapts layers."""

from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PromptLearningConfig

from pipeline.core.errors import nearest
from pipeline.params import PeftParams

SET_HERE = ("peft_type", "task_type", "target_modules", "modules_to_save", "inference_mode", "base_model_name_or_path")
# Methods of PEFT that depend on their own training loop: here they would be different methods of the same name.
OWN_LOOP = {
    "ADALORA": "calls that move ranks between layers",
    "POLY": "the number of a task with each example",
    "XLORA": "previously trained adapters",
}


def kinds() -> dict[str, type[PeftConfig]]:
    """Return the configurations of PEFT's methods that adapt layers and work in any training loop, by name."""
    known = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {name: config for name, config in known.items() if name not in OWN_LOOP and _adapts_layers(config)}


def config_of(section: PeftParams, chosen: Mapping[str, Any]) -> PeftConfig:
    """Return the configuration of a method of PEFT by PEFT's name.

    Raises:
        ValueError: if there is no such method or option, or the method adapts no layers of a model.
    """
    name, known = section.type, kinds()
    if name in OWN_LOOP:
        raise ValueError(f"type: {name} needs {OWN_LOOP[name]}, which this training does not have")
    if name not in known:
        raise ValueError(f"type: {_problem(name)}{nearest(name, known)}; allowed are {', '.join(known)}")
    options = _options(known[name])
    for option in section.options:
        if option in SET_HERE:
            raise ValueError(f"options.{option}: is set by the pipeline")
        if option not in options:
            raise ValueError(f"options.{option}: {name} has no such option{nearest(option, options)}")
    return known[name](**{**section.options, **chosen})


def _problem(name: str) -> str:
    config = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}.get(name)
    if config is None:
        return f"PEFT {version('peft')} has no method {name!r}"
    return f"{name} adapts no layers of a model" if _is_theirs(config) else f"{name} is not one of PEFT's own methods"


def _is_theirs(config: type[PeftConfig]) -> bool:
    return config.__module__.startswith("peft.")


def _adapts_layers(config: type[PeftConfig]) -> bool:
    has_targets = {"target_modules", "modules_to_save"} <= _options(config)
    return _is_theirs(config) and has_targets and not issubclass(config, PromptLearningConfig)


def _options(config: type[PeftConfig]) -> set[str]:
    return {field.name for field in fields(config) if field.init}
