"""`peft.helpers.rescale_adapter_scale` on LSR layers: it multiplies `scaling` of what it takes for a layer of LoRA."""

from peft import helpers
from peft.tuners.lora import LoraLayer

from lsr.tuner.layer import LsrLayer


def register_layers() -> None:
    """Have the helper find our layers too: the name that it asks `isinstance` for becomes a pair of classes.

    Only PEFT's helper is told: elsewhere a layer of LoRA is one with `lora_A` and `lora_B`, which ours has not.
    """
    helpers.LoraLayer = (LoraLayer, LsrLayer)  # type: ignore[attr-defined, assignment]
