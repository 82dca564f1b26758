"""AdapterBank: a base model with thousands of adapters, where each row of a batch names its own."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lsr.init.examples import widths
from lsr.loading.base_models import by
from lsr.loading.files import InputError
from lsr.serve import stored
from lsr.serve.head import BankHead
from lsr.serve.layer import (
    BankLayer,
    CoreLayer,
    Frames,
    contents,
    core_layer,
    factor_layer,
    frames_of,
    stored_layer,
)
from lsr.serve.reading import Reading, heads_of, names_of_heads, read_adapter
from lsr.serve.rows import NOBODY, Rows
from lsr.tuner.base_weight import check_adaptable, dequantized, is_quantized
from lsr.tuner.fingerprint import are_alike, check_weight
from lsr.tuner.mixed_batch import BASE, copies_of_a_row
from lsr.tuner.same_base import base_sketch
from lsr.tuner.saved import first_line

FIRST_PLACES = 8  # initial capacity in adapters; it doubles when exhausted


class AdapterBank(nn.Module):
    """A base model with many adapters, each a slot in a few stacked tensors.

    The first adapter determines what is stored. If it has trained cores between frozen frames, all adapters must use
    the same frames, and the bank stores only their scaled cores: a few hundred values each. Otherwise, or with
    `collapse`, the bank stores the A and B of each adapter as matrices, whatever its form, zero-padded to the largest
    rank. Modules that the adapters trained in full, such as heads, are stored too.

    The base model is modified in place: its adapted layers and heads are wrapped, its parameters frozen, and it is put
    into evaluation mode. Rows without an adapter, named "__base__", give the same results as without a bank.

    Adding and removing adapters changes no shapes while they fit into `capacity`, so a compiled model stays compiled;
    beyond that the capacity doubles, and the model is recompiled once.
    """

    def __init__(self, base: nn.Module, *, collapse: bool = False, capacity: int = FIRST_PLACES) -> None:
        super().__init__()
        self.model = base.requires_grad_(False).eval()
        self.collapse = collapse
        self.base_fields: Mapping[str, Any] | None = None  # the base model according to the adapters' configurations
        self.base_sketch: Mapping[str, Sequence[float]] = {}  # of one of its weights, by layer
        self.notes: dict[str, Any] = {}  # by adapter, any JSON value
        self._modules_of_base = dict(base.named_modules())
        self._rows = Rows()
        self._places: dict[str, int] = {}
        self._room = 1 + capacity  # the first slot is for rows without an adapter
        self._layers: dict[str, BankLayer] = {}
        self._heads: dict[str, BankHead] = {}
        self._own_sketches: dict[str, Sequence[float]] = {}
        self._trains = False

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order they were added."""
        return list(self._places)

    @property
    def nbytes(self) -> int:
        """The bytes in addition to the base model: stacks, including free slots, and frames, each counted once."""
        frames = [layer.frames for layer in self._layers.values() if isinstance(layer, CoreLayer)]
        buffers = [buffer for one in (*self._stacked(), *frames) for buffer in one.buffers(recurse=False)]
        return sum({buffer.data_ptr(): buffer.nbytes for buffer in buffers}.values())

    def add(self, name: str, folder: str | Path | Reading, *, note: Any = None, replace: bool = False) -> None:
        """Load an adapter from its folder; with `replace` it replaces any adapter of the same name.

        On an error the bank is unchanged. A `Reading` may be added under several names.

        Raises:
            InputError: if the name is taken, the folder holds no LSR adapter, or it does not fit the base model or the
                adapters in the bank.
        """
        if not name or name == BASE:
            raise InputError(f"an adapter's name must be a non-empty string other than {BASE!r}, got {name!r}")
        self._check_idle(f"add {name!r}")
        if name in self._places and not replace:
            raise InputError(f"{name}: an adapter of this name is in the bank; pass replace=True to replace it")
        _check_note(name, note)
        reading = folder if isinstance(folder, Reading) else read_adapter(folder)
        with self._rows.one_thread:
            self._take(name, reading)
            self.notes[name] = note

    def _take(self, name: str, reading: Reading) -> None:
        self._check_base(reading)
        self._check_nesting(reading)
        heads = heads_of(reading, self._modules_of_base)
        shared: dict[int, Frames] = {}
        layers = {layer: self._layer_for(reading, layer, shared) for layer in reading.adapters}
        parts = {layer: self._parts(reading, layer, layers[layer]) for layer in layers}
        self._check_sketch(reading.source, reading.base_sketch)
        # Nothing below can fail.
        self.base_fields = self.base_fields or dict(reading.base)
        self.base_sketch = self.base_sketch or dict(reading.base_sketch)
        for layer, module in layers.items():
            self._insert_layer(layer, module)
        for head in heads:
            self._insert_head(head, self._room)
        place = self._places.get(name) or self._free_place()
        for layer, module in self._layers.items():
            module.put(place, parts.get(layer, {}))
        for head, wrapped in self._heads.items():
            wrapped.put(place, heads.get(head) or self._modules_of_base[head].state_dict())
        self._places[name] = place

    def remove(self, name: str) -> None:
        """Remove an adapter; the next one added reuses its slot.

        Raises:
            InputError: if the bank has no adapter of this name, or its adapters are training.
        """
        self._check_idle(f"remove {name!r}")
        with self._rows.one_thread:
            self._check_names([name])
            del self._places[name], self.notes[name]

    @contextmanager
    def rows(self, names: Sequence[str], copies: int = 1) -> Iterator[None]:
        """Pass row i of each batch through adapter `names[i]`; "__base__" stands for no adapter.

        Another thread that calls the bank waits until the context ends.

        Raises:
            InputError: if a name is unknown. Inside the context a batch raises ValueError unless it has as many rows as
                there are names, or `copies` times as many.
        """
        with self._rows.one_thread:
            self._check_names(names)
            places = torch.tensor([self._places.get(name, NOBODY) for name in names], dtype=torch.int64)
            with self._rows.being(places.to(self._device()), copies):
                yield

    @contextmanager
    def side_by_side(self) -> Iterator[list[Tensor]]:
        """Train all adapters side by side; yields the stacks, to be passed to an optimizer.

        Each row contributes gradients only to its own adapter, and none to the base model. An adapter without rows in a
        batch has zero gradient, but an optimizer with momentum or weight decay still changes it. A stack holds cores
        multiplied by their scaling c, so an Adam step on it amounts to a step 1 / c times as large on the core.

        Raises:
            InputError: if they are training already.
        """
        self._check_idle("train")
        stacks = [stack for one in self._stacked() for stack in one.stacked() if stack.is_floating_point()]
        hooks = [stack.requires_grad_().register_hook(_nothing_for_nobody) for stack in stacks]
        self._trains = True
        try:
            yield stacks
        finally:
            self._trains = False
            for stack, hook in zip(stacks, hooks, strict=True):
                hook.remove()
                stack.requires_grad_(False).grad = None

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the model, each row with the adapter it names; without names, as `rows` says, or with the base model."""
        with self.rows(adapter_names) if adapter_names is not None else self._rows.one_thread:
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str], **kwargs: Any) -> Any:
        """Call the model's `generate`, each prompt with the adapter it names."""
        model: Any = self.model
        with self.rows(adapter_names, copies_of_a_row(kwargs)):
            return model.generate(*args, **kwargs)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write the whole bank to a single file in a folder, for `load`.

        Raises:
            InputError: if the bank is empty, the folder exists and `force` is not set, or it cannot be written.
        """
        if not self._places:
            raise InputError(f"{folder}: the bank is empty: add an adapter first")
        order = torch.tensor([NOBODY, *self._places.values()])
        stored.write(
            Path(folder),
            stored.Index(dict(self.base_fields or {}), self.collapse, self.notes, dict(self.base_sketch)),
            {name: contents(layer, order) for name, layer in self._layers.items()},
            {name: {key: stack[order] for key, stack in h.by_name().items()} for name, h in self._heads.items()},
            force=force,
        )

    @classmethod
    def load(cls, base: nn.Module, folder: str | Path) -> Self:
        """Return the bank that `save` wrote, on its base model; the file is memory-mapped, not copied.

        Raises:
            InputError: if there is no bank, its file is broken, or it does not fit the base model.
        """
        index, layers, heads = stored.read(Path(folder))
        bank = cls(base, collapse=index.collapse, capacity=len(index.notes))
        bank.base_fields, bank.base_sketch = index.base, index.base_sketch
        shared: dict[tuple[int, int], Frames] = {}
        for name, tensors in layers.items():
            layer = bank._base_layer(str(folder), name)
            try:
                bank._insert_layer(name, stored_layer(layer, bank._rows, tensors, shared).to(layer.weight.device))
            except ValueError as error:
                raise InputError(f"{folder}: layer {name!r}: {first_line(error)}") from None
        bank._check_sketch(str(folder), index.base_sketch)
        for name, stacks in heads.items():
            bank._check_stored_head(str(folder), name, stacks)
            bank._insert_head(name, places=1)
            bank._heads[name].take_stacks(stacks)
        bank._places = {name: place for place, name in enumerate(index.notes, start=1)}
        bank.notes = dict(index.notes)
        return bank

    def _check_idle(self, action: str) -> None:
        if self._trains:
            raise InputError(f"cannot {action} while the bank's adapters are training side by side")

    def _check_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._places and name != BASE:
                if not self._places:
                    raise InputError(f"adapter_names: no adapter is named {name!r}: the bank is empty")
                near = get_close_matches(name, self._places, 1) or self.names[:1]
                raise InputError(
                    f"adapter_names: no adapter is named {name!r}; there are {len(self)}, such as {near[0]!r}"
                )

    def _check_base(self, reading: Reading) -> None:
        expected = reading.base if self.base_fields is None else self.base_fields
        for field, value in reading.base.items():
            if value != expected.get(field):
                raise InputError(
                    f"{reading.source}: {field} is {value!r}, but {expected.get(field)!r} for the adapters in the bank"
                )

    def _check_sketch(self, source: str, sketch: Mapping[str, Sequence[float]]) -> None:
        for name, its in sketch.items():
            if name in self._modules_of_base:
                if name not in self._own_sketches:
                    self._own_sketches[name] = base_sketch(self._modules_of_base[name])
                if not are_alike(its, self._own_sketches[name]):
                    raise InputError(f"{source}: is for another base model: the weights of layer {name!r} differ")

    def _check_nesting(self, reading: Reading) -> None:
        """Refuse modules inside of one that an adapter trained in full: its copies hold no adapters.

        Raises:
            InputError: names both modules.
        """
        heads = {*self._heads, *names_of_heads(reading, self._modules_of_base)}
        adapted = dict.fromkeys((*reading.adapters, *self._layers))
        for name in (*adapted, *heads):
            outer = name if name in adapted and name in heads else None
            outer = next((head for head in heads if name.startswith(f"{head}.")), outer)
            if outer is not None:
                raise InputError(
                    f"{reading.source}: {name!r} is adapted or trained, and {outer!r} trained in full, by this "
                    "adapter or one in the bank; a bank can hold only one of both"
                )

    def _layer_for(self, reading: Reading, name: str, shared: dict[int, Frames]) -> BankLayer:
        """Return the layer of a name; a new one if no adapter in the bank adapts it yet.

        Raises:
            InputError: if the bank stores cores but the adapter trains factors, or there is no such layer.
        """
        first = next(iter(self._layers.values()), None)
        keeps_cores = reading.is_core and not self.collapse if first is None else isinstance(first, CoreLayer)
        if keeps_cores and not reading.is_core:
            raise InputError(f"{reading.source}: trains factors, but the bank stores only cores; see collapse")
        if name in self._layers:
            return self._layers[name]
        base, adapter = self._base_layer(reading.source, name), reading.adapters[name]
        if keeps_cores:
            key = id(adapter.frames)
            shared[key] = shared.get(key) or frames_of(adapter)
            return core_layer(base, self._rows, adapter, shared[key], self._room).to(base.weight.device)
        return factor_layer(base, self._rows, adapter, self._room).to(base.weight.device)

    def _base_layer(self, source: str, name: str) -> Any:
        if name not in self._modules_of_base:
            raise InputError(f"{source}: adapts a layer {name!r}, which the base model does not have")
        base = self._modules_of_base[name]
        try:
            check_adaptable(base, name)
        except TypeError as error:
            raise InputError(f"{source}: {first_line(error)}") from None
        return base

    def _parts(self, reading: Reading, name: str, layer: BankLayer) -> dict[str, Tensor]:
        adapter = reading.adapters[name]
        try:
            self._check_widths(name, adapter.form.out_features, adapter.form.in_features)
            if name in reading.base_hashes and adapter.has_start:
                base: Any = self._modules_of_base[name]
                weight = dequantized(base, name) if is_quantized(base) else base.weight.detach()
                check_weight(weight, reading.base_hashes[name], name)
            return layer.parts(adapter)
        except ValueError as error:
            line = first_line(error)
            where = "" if line.startswith("layer ") else f"layer {name!r}: "
            raise InputError(f"{reading.source}: {where}{line}") from None

    def _check_widths(self, name: str, out_features: int, in_features: int) -> None:
        columns, rows = widths(self._modules_of_base[name])
        if (rows, columns) != (out_features, in_features):
            raise ValueError(f"it is for a layer of {out_features} x {in_features}, but this one is {rows} x {columns}")

    def _check_stored_head(self, source: str, name: str, stacks: Mapping[str, Tensor]) -> None:
        module = self._modules_of_base.get(name) if name else None
        expected = {} if module is None else {key: by(value.shape) for key, value in module.state_dict().items()}
        found = {key: by(stack.shape[1:]) for key, stack in stacks.items()}
        for key in sorted(expected.keys() | found.keys()):
            if found.get(key) != expected.get(key):
                have, needed = found.get(key, "missing"), expected.get(key, "not there")
                raise InputError(f"{source}: {name}.{key} is {have}, but {needed} in the base model")

    def _insert_layer(self, name: str, layer: BankLayer) -> None:
        if name not in self._layers:
            self._layers[name] = layer
            self._replace(name, layer)

    def _insert_head(self, name: str, places: int) -> None:
        if name not in self._heads:
            self._heads[name] = BankHead(self._modules_of_base[name], self._rows, places)
            self._replace(name, self._heads[name])

    def _replace(self, name: str, module: nn.Module) -> None:
        parent_name, _, child = name.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        setattr(parent, child, module.eval())
        if isinstance(parent, nn.TransformerEncoderLayer):
            # The fast path in evaluation mode reads the base weights and bypasses the adapters; zero disables it.
            parent.activation_relu_or_gelu = 0

    def _free_place(self) -> int:
        taken = set(self._places.values())
        place = next(place for place in range(1, len(taken) + 2) if place not in taken)
        if place >= self._room:
            self._room = 2 * self._room - 1  # twice as many adapters
            for one in self._stacked():
                one.make_room(self._room)
        return place

    def _stacked(self) -> list[BankLayer | BankHead]:
        return [*self._layers.values(), *self._heads.values()]

    def _device(self) -> torch.device:
        return next((buffer.device for one in self._stacked() for buffer in one.buffers()), torch.device("cpu"))


def _check_note(name: str, note: Any) -> None:
    try:
        json.dumps(note)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: its note must be a JSON value: {first_line(error)}") from None


def _nothing_for_nobody(gradient: Tensor) -> Tensor:  # (places, ...)
    return gradient.index_fill(0, torch.tensor([NOBODY], device=gradient.device), 0)
