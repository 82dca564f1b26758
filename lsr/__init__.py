"""LSR adapters: fine-tuning through sums of Kronecker products, as a PEFT method.

Importing this package registers the method `LSR` with PEFT, for `get_peft_model` and for loading saved adapters.

Reference: Li & Sarwate 2025, "LSR-Adapt" (arXiv 2502.13568).
"""

from importlib.metadata import version
from typing import Any

from aenum import extend_enum
from peft import PeftType
from peft.utils import register_peft_method

if "LSR" not in PeftType.__members__:  # PEFT's list of methods is closed: a plugin must add its member first
    extend_enum(PeftType, "LSR", "LSR")

from lsr.compress import compress_lora
from lsr.config import LsrConfig
from lsr.export import export_lora, export_merged
from lsr.inspect import inspect_adapter
from lsr.model import LsrModel, start_from_examples
from lsr.prune import prune_adapter

register_peft_method(name="lsr", config_cls=LsrConfig, model_cls=LsrModel, prefix="lsr_")

__all__ = [
    "LsrConfig",
    "LsrModel",
    "compress_lora",
    "export_lora",
    "export_merged",
    "inspect_adapter",
    "prune_adapter",
    "start_from_examples",
]


def __getattr__(name: str) -> Any:
    """Return `__version__`, that of the installed package: a source tree that is not installed has none.

    Raises:
        AttributeError: for any other name.
    """
    if name == "__version__":
        return version("lsr-adapt")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
