"""Fields of PEFT's configurations that are missing or named differently in params.yaml, from a section and the seed."""

from collections.abc import Callable
from typing import Any

from peft import EvaConfig

ANY_FACTOR = 2**20  # a rank at which LoKr's factors are full at any width; a power of two, so scaling is exact


def lsr_names(section: Any, seed: int) -> dict[str, Any]:
    """Return the fields of LsrConfig that differ from params.yaml; initialization comes later."""
    automatic = {
        name: None for name in ("separation_rank", "in_shape", "out_shape") if getattr(section, name) == "auto"
    }
    return {"seed": seed, **chosen_layers(section, seed), **automatic}


def chosen_layers(section: Any, seed: int) -> dict[str, Any]:
    """Return PEFT's field for the indices of the adapted layers."""
    return {"layers_to_transform": None if section.layers == "all" else list(section.layers)}


def lora_names(section: Any, seed: int) -> dict[str, Any]:
    """Return the fields of LoraConfig that differ from params.yaml."""
    usual = EvaConfig() if section.init == "eva" else None
    init = True if section.init == "random" else section.init
    return {"init_lora_weights": init, "eva_config": usual, **chosen_layers(section, seed)}


def lokr_names(section: Any, seed: int) -> dict[str, Any]:
    """Return the fields of LoKrConfig that differ from params.yaml."""
    factor = -1 if section.decompose_factor == "auto" else section.decompose_factor
    return {"decompose_factor": factor, **chosen_layers(section, seed)}


def krona_names(section: Any, seed: int) -> dict[str, Any]:
    """Return the fields that make LoKr a product of two full factors; its scale is alpha / r."""
    factor = -1 if section.factor == "auto" else section.factor
    sizes = {"r": ANY_FACTOR, "alpha": section.scale * ANY_FACTOR, "decompose_factor": factor}
    return {**sizes, **chosen_layers(section, seed)}


def c3a_names(section: Any, seed: int) -> dict[str, Any]:
    """Return the fields of C3AConfig that differ from params.yaml."""
    return {"init_weights": section.init_weights == "zeros" or section.init_weights, **chosen_layers(section, seed)}


def seeded(field: str) -> Callable[[Any, int], dict[str, Any]]:
    """Return a function for `Method.fields` that sets a field of the configuration to the seed."""
    return lambda section, seed: {field: seed, **chosen_layers(section, seed)}
