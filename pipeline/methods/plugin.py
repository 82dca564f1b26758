"""Shared code of the methods that PEFT lacks and this package adds: registration, and removal from a model."""

from aenum import extend_enum
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper, register_peft_method
from torch import nn


class PluginTuner(BaseTuner):
    """A tuner that can be unloaded from a model whose head has several layers."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 declared as in PEFT; there are no default targets

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version reads the weight of the child, which a head of several layers (RoBERTa's) does not have.
        if isinstance(child, ModulesToSaveWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


def register(name: str, config: type[PeftConfig], tuner: type[PluginTuner]) -> None:
    """Register a method with PEFT under a name in capitals, for `get_peft_model` and for loading adapters."""
    if name not in PeftType.__members__:  # PEFT's list of methods is closed: a plugin must add its member first
        extend_enum(PeftType, name, name)
    register_peft_method(name=name.lower(), config_cls=config, model_cls=tuner, prefix=tuner.prefix)
