"""KAdaptation as a PEFT method: ΔW = Σ_k S_k ⊗ U_k V_k, with n x n factors S_k shared by all layers.

Reference: He et al. 2022, "Parameter-efficient Model Adaptation for Vision Transformers" (arXiv 2203.16329).

Axes: n is the number of terms and the width of S_k; m = n p and d = n q are the widths of a layer; r is the rank of
U_k V_k.
"""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig, PeftType
from torch import Tensor, nn

from pipeline.methods.plugin import PluginLayer, PluginTuner, register

Names = list[str] | str | None


@dataclass
class KadaptationConfig(PeftConfig):
    """Configuration of a KAdaptation adapter."""

    n: int = field(default=8, metadata={"help": "Number of terms, and height and width of the shared factors."})
    r: int = field(default=1, metadata={"help": "Rank of each layer's own factors."})
    target_modules: Names = field(default=None, metadata={"help": "Names of the layers to adapt, or an expression."})
    exclude_modules: Names = field(default=None, metadata={"help": "Names of layers to leave as they are."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved in full."}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indices of layers to adapt."})
    layers_pattern: Names = field(default=None, metadata={"help": "The part before the index in a layer's name."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType["KADAPTATION"]
        if isinstance(self.target_modules, list):
            self.target_modules = cast("Names", set(self.target_modules))


class KadaptationLinear(PluginLayer):
    """nn.Linear with KAdaptation adapters: y = W x + b + Σ_k (S_k ⊗ U_k V_k) x for each active adapter."""

    adapter_layer_names = ("kadaptation_u", "kadaptation_v")
    updated = "weight"

    def __init__(self, base_layer: nn.Module, shared: nn.ParameterDict) -> None:
        if not isinstance(base_layer, nn.Linear):
            raise TypeError(f"KAdaptation adapts nn.Linear, but this is of {type(base_layer).__name__}")
        super().__init__(base_layer)
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.kadaptation_u, self.kadaptation_v = nn.ParameterDict(), nn.ParameterDict()
        self._shared = (shared,)  # a tuple, which nn.Module does not register: the model owns and saves these

    def update_layer(self, adapter_name: str, config: KadaptationConfig) -> None:
        """Add an adapter; U is initialized to zero and V is not, so the layer is unchanged but U gets a gradient.

        Raises:
            ValueError: if n does not divide both widths.
        """
        n, r = config.n, config.r
        for width in (self.in_features, self.out_features):
            if width % n:
                raise ValueError(f"n: {n} does not divide {width}, a width of the layer")
        bound = math.sqrt(n / self.in_features)  # kaiming_uniform with a = sqrt(5), as for LoRA's A
        v = torch.empty(n, r, self.in_features // n).uniform_(-bound, bound)
        self.kadaptation_u[adapter_name] = nn.Parameter(torch.zeros(n, self.out_features // n, r))
        self.kadaptation_v[adapter_name] = nn.Parameter(v)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return S (n, n, n), U (n, p, r) and V (n, r, q) of an adapter; the first axis is the term."""
        return (
            self._shared[0][adapter_name],
            self.kadaptation_u[adapter_name],
            self.kadaptation_v[adapter_name],
        )

    def update(self, adapter_name: str) -> Tensor:  # (out_features, in_features)
        """Return Σ_k S_k ⊗ U_k V_k."""
        s, u, v = self.factors(adapter_name)
        return torch.einsum("kab,kpr,krq->apbq", s, u, v).reshape(self.out_features, self.in_features)

    def added(self, x: Tensor, adapter_name: str) -> Tensor:  # (..., in_features) -> (..., out_features)
        """Return Σ_k (S_k ⊗ U_k V_k) x, term by term on (n, q) slices of x."""
        s, u, v = self.factors(adapter_name)
        inner = torch.einsum("...bq,krq->...bkr", x.to(v.dtype).unflatten(-1, (s.shape[0], -1)), v)
        return torch.einsum("...bkr,kab,kpr->...ap", inner, s, u).flatten(-2)


class KadaptationModel(PluginTuner):
    """A base model with KAdaptation adapters; it owns the shared factors, so they are saved once."""

    prefix = "kadaptation_"
    tuner_layer_cls = KadaptationLinear

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.kadaptation_s = nn.ParameterDict()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters and make only their factors trainable, or none in `inference_mode`."""
        super().set_adapter(adapter_name, inference_mode)
        for name, shared in self.kadaptation_s.items():
            shared.requires_grad_(name in self.active_adapters and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and the factors that its layers share.

        Raises:
            ValueError: if there is no adapter of this name.
        """
        super().delete_adapter(adapter_name)
        del self.kadaptation_s[adapter_name]

    def _create_and_replace(self, peft_config: PeftConfig, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = cast("KadaptationConfig", peft_config)
        if adapter_name not in self.kadaptation_s:  # by the first of its layers
            s = torch.randn(config.n, config.n, config.n) / config.n  # n terms of n products: unit gain
            is_trained = not config.inference_mode and adapter_name in self.active_adapters
            self.kadaptation_s[adapter_name] = nn.Parameter(s, requires_grad=is_trained)
        super()._create_and_replace(peft_config, adapter_name, *args, **kwargs)

    def _new_layer(self, target: nn.Module) -> PluginLayer:
        return KadaptationLinear(target, self.kadaptation_s)


register("KADAPTATION", KadaptationConfig, KadaptationModel)
