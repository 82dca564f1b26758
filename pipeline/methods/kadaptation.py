"""KAdaptation as a PEFT method: ΔW = Σ_k S_k ⊗ U_k V_k, with n x n factors S_k shared by all layers.

Reference: He et al. 2022, "Parameter-efficient Model Adaptation for Vision Transformers" (arXiv 2203.16329).

Axes: n is the number of terms and the width of S_k; m = n p and d = n q are the widths of a layer; r is the rank of
U_k V_k.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from aenum import extend_enum
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import register_peft_method
from torch import Tensor, nn

from lsr.loading.fields import allow
from lsr.tuner.model import MultiLayerHeadTuner

NAME = "KADAPTATION"


@dataclass
class KAdaptationConfig(PeftConfig):
    """Configuration of a KAdaptation adapter."""

    n: int = 8  # terms, and height and width of the shared factors
    r: int = 1  # rank of each layer's own factors
    target_modules: list[str] | str | None = None  # names of the layers to adapt, or an expression
    modules_to_save: list[str] | None = None  # modules that are trained and saved in full
    layers_to_transform: list[int] | int | None = None  # indices of the layers to adapt

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType[NAME]


class KAdaptationLinear(nn.Module, BaseTunerLayer):
    """nn.Linear with KAdaptation adapters: y = W x + b + Σ_k (S_k ⊗ U_k V_k) x for each active adapter."""

    adapter_layer_names = ("kadaptation_u", "kadaptation_v")

    def __init__(
        self,
        base_layer: nn.Module,
        shared: nn.ParameterDict,
        name: str,
        config: KAdaptationConfig,
    ) -> None:
        if not isinstance(base_layer, nn.Linear):
            raise TypeError(f"KAdaptation adapts nn.Linear, but this is of {type(base_layer).__name__}")
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self.in_features = base_layer.in_features
        self.out_features = base_layer.out_features
        self._shared = (shared,)  # a tuple, which nn.Module does not register: the model owns and saves these
        self._active_adapter = name
        n = config.n
        for width in (self.in_features, self.out_features):
            if width % n:
                raise ValueError(f"n: {n} does not divide {width}, a width of the layer")
        bound = math.sqrt(n / self.in_features)  # kaiming_uniform with a = sqrt(5), as for LoRA's A
        v = torch.empty(n, config.r, self.in_features // n)
        v.uniform_(-bound, bound)
        u = torch.zeros(n, self.out_features // n, config.r)  # a zero U leaves the layer unchanged, but gets a gradient
        self.kadaptation_u = nn.ParameterDict({name: nn.Parameter(u)})
        self.kadaptation_v = nn.ParameterDict({name: nn.Parameter(v)})
        self._move_adapter_to_device_of_base_layer(name)

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return S (n, n, n), U (n, p, r) and V (n, r, q) of an adapter; the first axis is the term."""
        (shared,) = self._shared
        return (
            shared[adapter_name],
            self.kadaptation_u[adapter_name],
            self.kadaptation_v[adapter_name],
        )

    def get_delta_weight(self, adapter_name: str) -> Tensor:  # (out_features, in_features)
        """Return Σ_k S_k ⊗ U_k V_k."""
        s, u, v = self.factors(adapter_name)
        delta = torch.einsum("kab,kpr,krq->apbq", s, u, v)
        return delta.reshape(self.out_features, self.in_features)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output with the updates of the active adapters."""
        result = cast("Tensor", self.base_layer(x, *args, **kwargs))
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            s, u, v = self.factors(name)
            inputs = x.to(v.dtype)
            slices = inputs.unflatten(-1, (len(s), -1))  # (..., n, q), term by term
            inner = torch.einsum("...bq,krq->...bkr", slices, v)
            outer = torch.einsum("...bkr,kab,kpr->...ap", inner, s, u)
            update = outer.flatten(-2)
            result = result + update.to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the named, or active, adapters to the weight."""
        for name in check_adapters_to_merge(self, adapter_names):
            weight = self.base_layer.weight
            delta = self.get_delta_weight(name).detach()
            weight.data = weight.data + delta.to(weight.dtype)
            self.merged_adapters.append(name)


class KAdaptationModel(MultiLayerHeadTuner):
    """A base model with KAdaptation adapters; it owns the shared factors, so they are saved once."""

    prefix = "kadaptation_"
    tuner_layer_cls = KAdaptationLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 declared as in PEFT; there are no default targets

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.kadaptation_s = nn.ParameterDict()

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        *_: Any,
        **__: Any,
    ) -> None:
        n = peft_config.n
        if adapter_name not in self.kadaptation_s:  # the first layer creates the shared factors
            s = torch.randn(n, n, n) / n  # n terms of n products: unit gain
            self.kadaptation_s[adapter_name] = nn.Parameter(s)
        layer = KAdaptationLinear(target, self.kadaptation_s, adapter_name, peft_config)
        self._replace_module(parent, target_name, layer, target)


if NAME not in PeftType.__members__:  # PEFT's list of methods is closed: a plugin must add its member first
    extend_enum(PeftType, NAME, NAME)
register_peft_method(
    name=NAME.lower(), config_cls=KAdaptationConfig, model_cls=KAdaptationModel, prefix=KAdaptationModel.prefix
)
allow(NAME, "n")
