"""AdapterBank: a base model with thousands of adapters, where each row of a batch names its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lsr.algebra.rounding import PRECISIONS
from lsr.convert.composed import write_contents
from lsr.loading.contents import Contents, Frames, read_contents
from lsr.loading.files import InputError
from lsr.serve import file
from lsr.serve.answer import Answer, labels_in
from lsr.serve.checks import check_base, check_nesting, check_note
from lsr.serve.head import BankHead
from lsr.serve.layer import BankLayer
from lsr.serve.side_by_side import SideBySide
from lsr.serve.stack import NOBODY, Rows
from lsr.tuner.base_weight import check_adaptable
from lsr.tuner.mixed_batch import BASE, copies_of_a_row
from lsr.tuner.saved import first_line


class AdapterBank(nn.Module):
    """A base model with many adapters, of LSR and of LoRA, of any rank and on any layers.

    An adapter takes the memory of its own directions and of its head, which may have any number of labels. Where it has
    a core between frames that the bank holds, those of the first such adapter on the layer, it takes that of the core.
    `precision` is one of float32, bfloat16, 8bit, 4bit, 3bit, 2bit and sign, rounded as by `lsr.round_adapter`.

    The base model is modified in place: its adapted layers and heads are wrapped, its parameters frozen, and it is put
    into evaluation mode. Rows without an adapter, named "__base__", give the same results as without a bank.

    Threads may share a bank, also to add and remove adapters: they wait for each other. Tensors without room for one
    are doubled, and a compiled model is then compiled once more.

    Raises:
        InputError: if there is no such precision.
    """

    def __init__(self, base: nn.Module, *, precision: str = "float32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model = base.requires_grad_(False).eval()
        self.precision = precision
        self.notes: dict[str, Any] = {}  # by adapter: what its task.json says, or any JSON value
        self._labels = int(getattr(getattr(base, "config", None), "num_labels", 0))
        self._base_fields: dict[str, Any] = {}  # the base model according to the adapters' configurations
        self._modules_of_base = dict(base.named_modules())
        self._rows = Rows()
        self._places: dict[str, int] = {}
        self._ranks: dict[str, int] = {}  # by adapter: the largest number of directions in a layer
        self._layers: dict[str, BankLayer] = {}  # by the names of the modules that they wrap
        self._heads: dict[str, BankHead] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order they were added."""
        return list(self._places)

    @property
    def _stacked(self) -> dict[str, BankLayer | BankHead]:
        return {**self._layers, **self._heads}

    @property
    def nbytes(self) -> int:
        """The bytes in addition to the base model, with room for more adapters; frames count once."""
        modules = {child for one in self._stacked.values() for child in one.children() if child is not one.base}
        return sum(tensor.nbytes for module in modules for tensor in module.buffers())

    def add(self, name: str, adapter: str | Path | Contents, *, note: Any = None, replace: bool = False) -> None:
        """Load an adapter from its folder; with `replace` it replaces any adapter of the same name.

        On an error the bank is unchanged. `Contents` may be added under several names. `note` stands in for what the
        folder's task.json says, whose `labels` are the names of the labels.

        Raises:
            InputError: if the name is taken, the folder holds no adapter of LSR or plain LoRA, or it does not fit the
                base model or the adapters in the bank.
        """
        if not name or name == BASE:
            raise InputError(f"an adapter's name must not be empty or {BASE!r}, got {name!r}")
        contents = adapter if isinstance(adapter, Contents) else read_contents(adapter)
        note = contents.task if note is None else note
        with self._rows.one_thread:
            if name in self._places and not replace:
                raise InputError(
                    f"{contents.source}: an adapter named {name!r} is in the bank; replace=True replaces it"
                )
            places = 1 + max(self._places.values(), default=NOBODY)
            try:
                states = self._check(contents)
                layers = {one: self._new_layer(one, places) for one in contents.updates if one not in self._layers}
                heads = {one: self._new_head(one, places) for one in states if one not in self._heads}
                counts = [(self._heads | heads)[one].labels_of(state) for one, state in states.items()]
                check_note(note, next(filter(None, counts), self._labels))
            except (TypeError, ValueError) as error:
                raise InputError(f"{contents.source}: {first_line(error)}") from None
            self._insert(layers, heads)
            place = self._places.get(name) or min({*range(1, places + 1)} - {*self._places.values()})
            self._put(place, {**contents.updates, **states})
            self._base_fields |= {field: value for field, value in contents.base.items() if value is not None}
            self._places[name], self.notes[name], self._ranks[name] = place, note, self._rank(place)

    def _check(self, contents: Contents) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of an adapter's heads, if it fits the base model and the bank."""
        check_base(contents.base, self._base_fields)
        contents.check_layers(self._modules_of_base)
        whole = contents.whole(self._modules_of_base)
        check_nesting({*self._layers, *contents.updates}, {*self._heads, *whole})
        return contents.heads_on(self._modules_of_base)

    def _put(self, place: int, values: Mapping[str, Any]) -> None:
        for name, module in self._stacked.items():
            module.put(place, values.get(name))

    def _rank(self, place: int) -> int:
        return max(len(layer.stacks["directions"].own(place)) for layer in self._layers.values())

    def remove(self, name: str) -> None:
        """Remove an adapter; the next ones take its memory.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        with self._rows.one_thread:
            self._put(self.place(name), {})
            del self._places[name], self._ranks[name], self.notes[name]

    def place(self, name: str) -> int:
        """Return the place of an adapter, or of "__base__", in the stacks.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        if name == BASE:
            return NOBODY
        if name not in self._places:
            near = "".join(f"; did you mean {one}?" for one in get_close_matches(name, self._places, 1))
            raise InputError(f"adapter_names: no adapter is named {name!r}, of {len(self)} in the bank{near}")
        return self._places[name]

    @contextmanager
    def _passing(self, names: Sequence[str], copies: int = 1) -> Iterator[None]:
        # Rows i * copies to (i + 1) * copies of a batch go through adapter names[i]; other threads wait.
        rows = self._rows
        with rows.one_thread:
            places = [self.place(name) for name in names]
            rank = max((self._ranks.get(name, 0) for name in names), default=0)
            rows.rank = 1 << (rank - 1).bit_length() if rank else 0  # few values: a compiled model is made for each
            device = next((next(layer.buffers()).device for layer in self._layers.values()), None)
            rows.places, rows.copies = torch.tensor(places, dtype=torch.int64, device=device), copies
            try:
                yield
            finally:
                rows.places, rows.copies = None, 1

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the model, each row with the adapter it names; "__base__" stands for none.

        The logits have as many columns as the largest head; `answers` gives each row its own.

        Raises:
            InputError: if there are no names, or one is unknown; ValueError if there is not one for each row.
        """
        if adapter_names is None:
            raise InputError(f"adapter_names: name the adapter of each row of the batch, or {BASE!r} for none")
        with self._passing(adapter_names):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str], **kwargs: Any) -> Any:
        """Call the model's `generate`, each prompt with the adapter it names."""
        model: Any = self.model
        with self._passing(adapter_names, copies_of_a_row(kwargs)):
            return model.generate(*args, **kwargs)

    def answers(self, logits: Tensor, adapter_names: Sequence[str]) -> list[Answer]:
        """Return for each row of the logits its adapter, the names of its labels, and the logits of these alone.

        The names are those in the adapter's note, or LABEL_0 and so on; None if it says a number.
        """
        heads = dict[str, tuple[tuple[str, ...] | None, int]]()
        with self._rows.one_thread:
            for name in {*adapter_names}:
                count = self.outputs(name)
                labels = labels_in(self.notes.get(name)) or [f"LABEL_{at}" for at in range(count)]
                heads[name] = None if count == 1 else tuple(labels), count
        rows = zip(adapter_names, logits, strict=True)
        return [Answer(name, heads[name][0], row[: heads[name][1]]) for name, row in rows]

    def outputs(self, name: str) -> int:
        """Return the number of outputs that the head of an adapter has, or that of "__base__"."""
        labelled = (head for head in self._heads.values() if head.labelled)
        return next((head.outputs(self.place(name)) for head in labelled), self._labels)

    def side_by_side(self, names: Iterable[str] | None = None, **options: Any) -> SideBySide:
        """Return a training of these adapters, or of all, with the options and errors of `SideBySide`."""
        return SideBySide(self, self.names if names is None else names, **options)

    def write(self, name: str, folder: str | Path, *, method: str = "LORA", force: bool = False) -> None:
        """Write an adapter as a folder of LORA or LSR, with its head and its task.json.

        As LSR it has cores and the frames around them, if the bank holds cores for all of its layers.
        """
        with self._rows.one_thread:
            place = self.place(name)
            updates = {one: self._layers[one].update(place) for one in self._modules_of_base if one in self._layers}
            states = {one: head.state(place) for one, head in self._heads.items()}
            contents = Contents(
                source=name,
                base=dict(self._base_fields),
                updates={layer: update for layer, update in updates.items() if update is not None},
                heads={f"{head}.{key}": value for head, state in states.items() for key, value in state.items()},
                endings=tuple(head for head, state in states.items() if state),
                task=self.notes[name],
            )
        write_contents(contents, Path(folder), method, force=force)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write the whole bank to a single file in a folder, for `load`.

        Raises:
            InputError: if the bank is empty, the folder exists and `force` is not set, or it cannot be written.
        """
        if not self._places:
            raise InputError(f"{folder}: the bank is empty: add an adapter first")
        owners: dict[int, str] = {}  # the first layer of each set of frames
        frames, tensors = dict[str, tuple[str, int]](), dict[str, Tensor]()
        with self._rows.one_thread:
            places = [NOBODY, *self._places.values()]
            for kind, modules in ((file.LAYERS, self._layers), (file.HEADS, self._heads)):
                for name, module in modules.items():
                    parts = module.tensors(places).items()
                    tensors |= {f"{kind}/{name}/{key}": value for key, value in parts}
            for name, layer in self._layers.items():
                if layer.frames is not None:
                    owner = owners.setdefault(id(layer.frames), name)
                    frames[name] = owner, layer.stacks["cores"].width
                    tensors |= {f"{file.FRAMES}/{owner}/{side}": value for side, value in layer.frames.named_buffers()}
            notes = {name: self.notes[name] for name in self._places}
            index = file.Index(dict(self._base_fields), self._labels, self.precision, notes, frames)
        file.write(Path(folder), index, tensors, force=force)

    @classmethod
    def load(cls, base: nn.Module, folder: str | Path) -> Self:
        """Return the bank that `save` wrote, on its base model; the file is memory-mapped, not copied.

        Raises:
            InputError: if there is no bank, its file is broken, or it does not fit the base model.
        """
        index, kinds = file.read(Path(folder))
        try:
            bank, places = cls(base, precision=index.precision), len(index.notes) + 1
            if index.labels != bank._labels:
                raise InputError(f"made for a base model with {index.labels} labels, this one has {bank._labels}")
            layers = {name: bank._new_layer(name, places) for name in kinds[file.LAYERS]}
            heads = {name: bank._new_head(name, places) for name in kinds.get(file.HEADS, {})}
            frames = {name: Frames(**sides) for name, sides in kinds.get(file.FRAMES, {}).items()}
            for name, (owner, width) in index.frames.items():
                layers[name].set_frames(frames[owner], width)
            for kind, modules in ((file.LAYERS, layers), (file.HEADS, heads)):
                for name, module in modules.items():
                    module.restore(kinds[kind][name])
            bank._insert(layers, heads)
        except KeyError as error:
            raise InputError(f"{folder}: {error.args[0]!r} is missing in the base model or in the file") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}: {first_line(error)}") from None
        bank._base_fields, bank.notes = dict(index.base), dict(index.notes)
        bank._places = {name: place for place, name in enumerate(index.notes, start=1)}
        bank._ranks = {name: bank._rank(place) for name, place in bank._places.items()}
        return bank

    def _new_layer(self, name: str, places: int) -> BankLayer:
        check_adaptable(self._modules_of_base[name], name)
        return BankLayer(self._modules_of_base[name], self._rows, places, self.precision)

    def _new_head(self, name: str, places: int) -> BankHead:
        return BankHead(self._modules_of_base[name], self._labels, self._rows, places, self.precision)

    def _insert(self, layers: Mapping[str, BankLayer], heads: Mapping[str, BankHead]) -> None:
        self._layers |= layers
        self._heads |= heads
        for name, module in {**layers, **heads}.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, module.eval())
