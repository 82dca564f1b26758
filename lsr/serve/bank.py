"""AdapterBank: a base model with thousands of adapters, where each row of a batch names its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lsr.loading.files import InputError
from lsr.serve import file
from lsr.serve.head import BankHead, new_head
from lsr.serve.layer import BankLayer, Frames, new_layer
from lsr.serve.saved import SavedAdapter, linear, read_adapter
from lsr.serve.slots import NOBODY, Rows
from lsr.tuner.mixed_batch import BASE, copies_of_a_row
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
        self.notes: dict[str, Any] = {}  # by adapter, any JSON value
        self._base_fields: Mapping[str, Any] = {}  # the base model according to the adapters' configurations
        self._modules_of_base = dict(base.named_modules())
        self._rows = Rows()
        self._places: dict[str, int] = {}
        self._room = 1 + capacity  # the first slot is for rows without an adapter
        self._layers: dict[str, BankLayer] = {}
        self._heads: dict[str, BankHead] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order they were added."""
        return list(self._places)

    @property
    def nbytes(self) -> int:
        """The bytes in addition to the base model: stacks, including free slots, and frames, each counted once."""
        frames = [layer.frames for layer in self._layers.values() if layer.frames is not None]
        buffers = [buffer for one in (*self._stacked(), *frames) for buffer in one.buffers(recurse=False)]
        return sum({buffer.data_ptr(): buffer.nbytes for buffer in buffers}.values())

    def add(self, name: str, adapter: str | Path | SavedAdapter, *, note: Any = None, replace: bool = False) -> None:
        """Load an adapter from its folder; with `replace` it replaces any adapter of the same name.

        On an error the bank is unchanged. A `SavedAdapter` may be added under several names.

        Raises:
            InputError: if the name is taken, the folder holds no LSR adapter, or it does not fit the base model or the
                adapters in the bank.
        """
        if not name or name == BASE:
            raise InputError(f"an adapter's name must be a non-empty string other than {BASE!r}, got {name!r}")
        if name in self._places and not replace:
            raise InputError(f"{name}: an adapter of this name is in the bank; pass replace=True to replace it")
        saved = adapter if isinstance(adapter, SavedAdapter) else read_adapter(adapter)
        with self._rows.one_thread:
            try:
                self._take(name, saved)
            except (TypeError, ValueError) as error:
                raise InputError(f"{saved.source}: {first_line(error)}") from None
            self.notes[name] = note

    def _take(self, name: str, saved: SavedAdapter) -> None:
        self._check_base(saved.base)
        saved.check_layers(self._modules_of_base)
        self._check_nesting(saved.layers, saved.whole(self._modules_of_base))
        heads = saved.heads_on(self._modules_of_base)
        layers = self._layers_for(saved)
        parts = {layer: layers[layer].parts_of(adapter) for layer, adapter in saved.layers.items()}
        # Nothing below can fail.
        self._base_fields = self._base_fields or saved.base
        for layer, wrapped in layers.items():
            self._insert(layer, wrapped)
        for head in heads.keys() - self._heads.keys():
            self._insert(head, new_head(self._modules_of_base[head], self._rows, self._room))
        place = self._places.get(name) or self._free_place()
        for layer, wrapped in self._layers.items():
            wrapped.put(place, parts.get(layer, {}))
        for head, its in self._heads.items():
            its.put(place, heads.get(head) or self._modules_of_base[head].state_dict())
        self._places[name] = place

    def remove(self, name: str) -> None:
        """Remove an adapter; the next one added reuses its slot.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        with self._rows.one_thread:
            self._check_names([name])
            del self._places[name], self.notes[name]

    @contextmanager
    def _passing(self, names: Sequence[str], copies: int = 1) -> Iterator[None]:
        # Rows i * copies to (i + 1) * copies of a batch go through adapter names[i]; other threads wait.
        rows = self._rows
        with rows.one_thread:
            self._check_names(names)
            places = torch.tensor([self._places.get(name, NOBODY) for name in names], dtype=torch.int64)
            rows.places, rows.copies = places.to(self._device()), copies
            try:
                yield
            finally:
                rows.places, rows.copies = None, 1

    @contextmanager
    def side_by_side(self) -> Iterator[list[Tensor]]:
        """Train all adapters side by side; yields the stacks, to be passed to an optimizer.

        Each row contributes gradients only to its own adapter, and none to the base model. An adapter without rows in a
        batch has zero gradient, but an optimizer with momentum or weight decay still changes it. A stack holds cores
        multiplied by their scaling c, so an Adam step on it amounts to a step 1 / c times as large on the core. Add no
        adapter meanwhile: an optimizer would go on with the stacks that it was given.
        """
        stacks = [stack for one in self._stacked() for stack in one.stacks().values() if stack.is_floating_point()]
        hooks = [stack.requires_grad_().register_hook(_nothing_for_nobody) for stack in stacks]
        try:
            yield stacks
        finally:
            for stack, hook in zip(stacks, hooks, strict=True):
                hook.remove()
                stack.requires_grad_(False).grad = None

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the model, each row with the adapter it names; "__base__" stands for none, as do no names at all.

        Raises:
            InputError: if a name is unknown; ValueError if there is not one for each row.
        """
        with self._passing(adapter_names) if adapter_names is not None else self._rows.one_thread:
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str], **kwargs: Any) -> Any:
        """Call the model's `generate`, each prompt with the adapter it names."""
        model: Any = self.model
        with self._passing(adapter_names, copies_of_a_row(kwargs)):
            return model.generate(*args, **kwargs)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write the whole bank to a single file in a folder, for `load`.

        Raises:
            InputError: if the bank is empty, the folder exists and `force` is not set, or it cannot be written.
        """
        if not self._places:
            raise InputError(f"{folder}: the bank is empty: add an adapter first")
        order = torch.tensor([NOBODY, *self._places.values()])
        owners: dict[int, str] = {}  # the first layer of each set of frames
        frames, contents = dict[str, str](), file.Contents({kind: {} for kind in file.KINDS})
        for kind, modules in (("layers", self._layers), ("heads", self._heads)):
            for name, module in modules.items():
                contents[kind][name] = {part: stack[order] for part, stack in module.stacks().items()}
        for name, layer in self._layers.items():
            if layer.frames is not None:
                frames[name] = owners.setdefault(id(layer.frames), name)
                contents["frames"][frames[name]] = dict(layer.frames.named_buffers())
        index = file.Index(dict(self._base_fields), self.notes, frames)
        file.write(Path(folder), index, contents, force=force)

    @classmethod
    def load(cls, base: nn.Module, folder: str | Path) -> Self:
        """Return the bank that `save` wrote, on its base model; the file is memory-mapped, not copied.

        Raises:
            InputError: if there is no bank, its file is broken, or it does not fit the base model.
        """
        index, contents = file.read(Path(folder))
        bank = cls(base, capacity=len(index.notes))
        modules = bank._modules_of_base
        try:
            frames = {name: Frames(**sides) for name, sides in contents["frames"].items()}
            for name, stacks in contents["layers"].items():
                its = frames[index.frames[name]] if name in index.frames else None
                bank._insert(name, BankLayer(linear(modules, name).base_layer, bank._rows, stacks, its))
            for name, stacks in contents["heads"].items():
                bank._insert(name, BankHead(modules[name], bank._rows, stacks))
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(f"{folder}: {first_line(error)}") from None
        bank._base_fields = index.base
        bank._places = {name: place for place, name in enumerate(index.notes, start=1)}
        bank.notes = dict(index.notes)
        return bank

    def _check_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._places and name != BASE:
                near = "".join(f"; did you mean {near}?" for near in get_close_matches(name, self._places, 1))
                raise InputError(f"adapter_names: no adapter is named {name!r}, of {len(self)} in the bank{near}")

    def _check_base(self, fields: Mapping[str, Any]) -> None:
        expected = self._base_fields or fields
        for field, value in fields.items():
            if value != expected.get(field):
                raise ValueError(f"{field} is {value!r}, but {expected.get(field)!r} for the adapters in the bank")

    def _check_nesting(self, layers: Iterable[str], heads: Iterable[str]) -> None:
        # Copies of a module that was trained in full hold no adapters.
        whole, adapted = {*self._heads, *heads}, {*self._layers, *layers}
        for name in sorted(adapted | whole):
            inside = [head for head in whole if name.startswith(f"{head}.") or (name == head and name in adapted)]
            if inside:
                raise ValueError(
                    f"{name!r} is adapted or trained, and {inside[0]!r} trained in full, by this adapter or one in the "
                    "bank; a bank can hold only one of both"
                )

    def _layers_for(self, saved: SavedAdapter) -> dict[str, BankLayer]:
        # New layers where no adapter in the bank has one yet.
        first = next(iter(self._layers.values()), None)
        keeps_cores = saved.is_core and not self.collapse if first is None else first.frames is not None
        if keeps_cores and not saved.is_core:
            raise ValueError("trains factors, but the bank stores only cores; see collapse")
        found, shared = {}, dict[int, Frames]()
        for name, adapter in saved.layers.items():
            base, key = self._modules_of_base[name], id(adapter.frames)
            if keeps_cores and key not in shared:
                shared[key] = Frames.of(adapter)
            found[name] = self._layers.get(name) or new_layer(base, self._rows, adapter, self._room, shared.get(key))
        return found

    def _insert(self, name: str, module: BankLayer | BankHead) -> None:
        held: dict[str, Any] = self._layers if isinstance(module, BankLayer) else self._heads
        if name in held:
            return
        held[name] = module.eval()
        parent_name, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent_name), child, module)

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


def _nothing_for_nobody(gradient: Tensor) -> Tensor:  # (places, ...)
    return gradient.index_fill(0, torch.tensor([NOBODY], device=gradient.device), 0)
