"""A tuner layer of PEFT: the adapters of one layer by name, their shapes and their initialization."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS
from lsr.init.initialization import Source, Start
from lsr.init.passes import widths
from lsr.init.random import frames as random_frames
from lsr.init.random import random_factors
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.base_weight import check_adaptable, dequantized, is_quantized
from lsr.tuner.config import LsrConfig
from lsr.tuner.factors import LsrFactors
from lsr.tuner.forms import form_of


class LsrLayer(BaseTunerLayer):
    """The adapters of a layer by name."""

    adapter_layer_names = ("lsr_adapters",)

    def __init__(self, base_layer: nn.Module, layer_name: str) -> None:
        base = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        check_adaptable(base, layer_name)
        self.base_layer = base_layer
        self.layer_name = layer_name
        self.is_transposed = isinstance(base, Conv1D)
        self.in_features, self.out_features = widths(base)
        self.lsr_adapters = nn.ModuleDict({})
        self.lsr_frames = nn.ModuleDict({})  # by hash: frames of another adapter, which adapters of any layer may share
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def adapter(self, name: str) -> LsrAdapter:
        """Return an adapter by name."""
        return cast("LsrAdapter", self.lsr_adapters[name])

    def update_layer(self, adapter_name: str, config: LsrConfig, frames: LsrFactors | None = None) -> None:
        """Add an adapter with random factors, or with shared frames; `initialize` applies other initializations.

        Raises:
            ValueError: if the shapes do not fit the layer; names it.
        """
        form = form_of(config, self.layer_name, self.in_features, self.out_features)
        scaling = config.scaling(self.layer_name, form)
        adapter = LsrAdapter(form, scaling, train=config.train, dropout=config.dropout, frames=frames)
        if frames is None:
            adapter.set_factors(self._random_start(config, form), self.base_parameter())
        if adapter.has_core:
            adapter.set_core(self._random_core(config, form), self.base_parameter())
        self.lsr_adapters[adapter_name] = adapter
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _random_start(self, config: LsrConfig, form: Form) -> Start:
        if config.has_core:
            return random_frames([self._source(config, form)])
        return Start(*random_factors(form, config.init_weights is not False, self._generator(config)))

    def _first_core(self, config: LsrConfig, source: Source, frames: LsrAdapter) -> Tensor:
        core = INITIALIZATIONS[config.start].core
        if core is None:
            return self._random_core(config, source.form)
        a, b = (side.detach().to("cpu", torch.float64) for side in frames.matrices(*frames.factors()))
        return core(source, b, a)

    def _random_core(self, config: LsrConfig, form: Form) -> Tensor:
        shape = (form.rank, form.rank) if config.core == "full" else (form.rank,)
        with torch.device("cpu"):
            if config.init_weights is not False:
                return torch.zeros(shape)
            return torch.randn(shape, generator=self._generator(config, "core")) / form.rank**0.5

    def initialize(
        self,
        adapter_name: str,
        config: LsrConfig,
        statistics: Mapping[str, Matrix],
        sharing: Sequence["LsrLayer"] = (),
    ) -> None:
        """Initialize the factors as configured, and reset the cores.

        `statistics` holds what is read of examples, (m, n) by layer name; `sharing` the other layers that share the
        factors.

        Raises:
            ValueError: if a base weight or gradient is not suitable; names the layer.
        """
        adapter, initialization = self.adapter(adapter_name), INITIALIZATIONS[config.start]
        layers = (self, *sharing)
        sources = [layer._source(config, adapter.form, statistics.get(layer.layer_name)) for layer in layers]
        try:
            start = initialization.frames(sources) if adapter.has_core else initialization.start(sources[0])
        except ValueError as error:
            raise ValueError(f"layer {self.layer_name!r}: {error}") from None
        adapter.set_factors(start, self.base_parameter())
        for layer, source in zip(layers, sources, strict=True) if adapter.has_core else ():
            layer.adapter(adapter_name).set_core(layer._first_core(config, source, adapter), layer.base_parameter())

    def _source(self, config: LsrConfig, form: Form, statistic: Matrix | None = None) -> Source:
        return Source(
            form,
            self.base_matrix,
            scaling=config.scaling(self.layer_name, form),
            seed=config.seed or 0,
            generator=self._generator(config),
            statistic=statistic,
            zero=config.init_weights is not False,
            paired=config.core == "diagonal",
        )

    def _generator(self, config: LsrConfig, part: str = "") -> torch.Generator | None:
        """Mix the seed with the layer's name: initial values do not depend on which other layers are adapted."""
        if config.seed is None:
            return None
        digest = hashlib.sha256(f"{config.seed}:{self.layer_name}{part}".encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))

    def base_parameter(self) -> nn.Parameter:
        """Return the base layer's weight, in the base layer's layout."""
        return cast("nn.Parameter", self.get_base_layer().weight)

    def base_matrix(self) -> Tensor:  # (out_features, in_features)
        """Return the pretrained weight in the layout of y = W x."""
        return self.in_layout(self.pretrained_weight())

    def in_layout(self, matrix: Tensor) -> Tensor:
        """Convert a matrix between the layout of y = W x and that of the base layer, in either direction."""
        return matrix.T if self.is_transposed else matrix

    def pretrained_weight(self) -> Tensor:
        """Return the pretrained weight in the base layer's layout, also while adapters are merged into it."""
        base = self.get_base_layer()
        return dequantized(base, self.layer_name) if is_quantized(base) else self.base_parameter().detach()

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the update in the base weight's layout, in at least float32; called by PEFT."""
        return self.in_layout(self.adapter(adapter_name).update())

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move the adapter, but keep its dtype: rounding the factors would change the initialization."""
        target = device if device is not None else self.base_parameter().device
        if adapter_name in self.lsr_adapters and target.type != "meta" and not self.adapter(adapter_name).is_meta:
            self.lsr_adapters[adapter_name].to(target)
            self.lsr_frames.to(target)

    def use_base_dtype(self, adapter_name: str) -> None:
        """Round the adapter to the dtype of the base weight, unless that is quantized."""
        if adapter_name in self.lsr_adapters and not is_quantized(self.get_base_layer()):
            self.adapter(adapter_name).to(self.base_parameter().dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: PEFT may convert any LSR adapter."""
        return True
