"""LSR adapters: fine-tuning through sums of Kronecker products, as a PEFT method.

Importing this package registers the method `LSR` with PEFT, for `get_peft_model` and for loading saved adapters.

Reference: Li & Sarwate 2025, "LSR-Adapt" (arXiv 2502.13568).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from aenum import extend_enum
from peft import PeftType
from peft.utils import register_peft_method

if "LSR" not in PeftType.__members__:  # PEFT's list of methods is closed: a plugin must add its member first
    extend_enum(PeftType, "LSR", "LSR")

from lsr.tuner.config import LsrConfig
from lsr.tuner.initialize import initialize_from_data
from lsr.tuner.model import LsrModel
from lsr.tuner.rates import parameter_groups

if TYPE_CHECKING:  # for type checkers only; at run time, `__getattr__` imports these names on first use
    from lsr.convert.compress import compress_adapter
    from lsr.convert.export import export_lora, export_merged, from_lora
    from lsr.convert.quantize import quantize_adapter
    from lsr.serve.bank import AdapterBank

ON_FIRST_USE = {
    "AdapterBank": "serve.bank",
    "export_lora": "convert.export",
    "export_merged": "convert.export",
    "from_lora": "convert.export",
    "quantize_adapter": "convert.quantize",
    "compress_adapter": "convert.compress",
}

register_peft_method(name="lsr", config_cls=LsrConfig, model_cls=LsrModel, prefix="lsr_")

__all__ = [
    "AdapterBank",
    "LsrConfig",
    "LsrModel",
    "compress_adapter",
    "export_lora",
    "export_merged",
    "from_lora",
    "initialize_from_data",
    "parameter_groups",
    "quantize_adapter",
]


def __getattr__(name: str) -> Any:
    """Return `__version__` of the installed package, or a public name, whose module is imported now.

    Raises:
        AttributeError: for any other name, and for `__version__` if the package is not installed.
    """
    if name in ON_FIRST_USE:
        return getattr(import_module(f"lsr.{ON_FIRST_USE[name]}"), name)
    if name == "__version__":
        return version("lsr-adapt")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the module, including those imported on first use."""
    return sorted({*globals(), *__all__})
