"""What the methods of ours that PEFT does not have share: how they are registered, and how they come off a model."""

from aenum import extend_enum
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper, register_peft_method
from torch import nn


class PluginTuner(BaseTuner):
    """A tuner whose layers can be taken off under a head of several layers."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 as PEFT has it: none are known by default

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version reads the weight of the child, which a head of several layers (RoBERTa's) does not have.
        if isinstance(child, ModulesToSaveWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


def register(name: str, config: type[PeftConfig], tuner: type[PluginTuner]) -> None:
    """Make a method known to PEFT by a name in capitals, for `get_peft_model` and for loading what is saved."""
    if name not in PeftType.__members__:  # PEFT's list of methods is closed: a plugin must add its member first
        extend_enum(PeftType, name, name)
    register_peft_method(name=name.lower(), config_cls=config, model_cls=tuner, prefix=tuner.prefix)
