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
from lsr.serve.answer import Answer, mean_of_means
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
        self._stacked: dict[str, BankLayer | BankHead] = {}  # by the names of the modules that they wrap

    def __len__(self) -> int:
        return len(self._places)

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order they were added."""
        return list(self._places)

    @property
    def nbytes(self) -> int:
        """The bytes in addition to the base model, with room for more adapters; frames count once."""
        layers = [module for module in self._stacked.values() if isinstance(module, BankLayer)]
        frames = {id(layer.frames): layer.frames for layer in layers if layer.frames is not None}
        held = [*frames.values(), *(stack for module in self._stacked.values() for stack in module.stacks.values())]
        return sum(tensor.nbytes for module in held for tensor in module.buffers())

    def outputs(self, name: str) -> int:
        """Return the number of outputs that the head of an adapter has, or that of "__base__"."""
        place = NOBODY if name == BASE else self.place(name)
        heads = (module for module in self._stacked.values() if isinstance(module, BankHead) and module.labelled)
        return next((head.outputs(place) for head in heads), self._labels)

    def labels(self, name: str) -> tuple[str, ...] | None:
        """Return the label names of an adapter: those of its note, or LABEL_0 and so on; None if it says a number."""
        note, count = self.notes.get(name), self.outputs(name)
        named = note.get("labels") if isinstance(note, dict) else None
        return None if count == 1 else tuple(named or (f"LABEL_{at}" for at in range(count)))

    def place(self, name: str) -> int:
        """Return the place of an adapter in the stacks.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        if name not in self._places:
            near = "".join(f"; did you mean {one}?" for one in get_close_matches(name, self._places, 1))
            raise InputError(f"adapter_names: no adapter is named {name!r}, of {len(self)} in the bank{near}")
        return self._places[name]

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
        with self._rows.one_thread:
            if name in self._places and not replace:
                raise InputError(f"{name}: an adapter of this name is in the bank; pass replace=True to replace it")
            try:
                self._take(name, contents, contents.task if note is None else note)
            except (TypeError, ValueError) as error:
                raise InputError(f"{contents.source}: {first_line(error)}") from None

    def _take(self, name: str, contents: Contents, note: Any) -> None:
        check_base(contents.base, self._base_fields)
        contents.check_layers(self._modules_of_base)
        whole = contents.whole(self._modules_of_base)
        heads = {held for held, module in self._stacked.items() if isinstance(module, BankHead)}
        check_nesting({*self._stacked, *contents.updates} - heads, heads | {*whole})
        states = contents.heads_on(self._modules_of_base)
        room = 1 + max(self._places.values(), default=NOBODY)
        fresh = {
            one: self._new(one, room, one in states) for one in (*contents.updates, *states) if one not in self._stacked
        }
        both = (self._stacked | fresh).items()
        counts = [head.labels_of(states[one]) for one, head in both if one in states and isinstance(head, BankHead)]
        check_note(note, next((count for count in counts if count), self._labels))
        # Nothing below can fail.
        for one, module in fresh.items():
            self._insert(one, module)
        place = self._places.get(name) or min({*range(1, room + 1)} - {*self._places.values()})
        self._put(place, {**contents.updates, **states})
        self._base_fields |= {field: value for field, value in contents.base.items() if value is not None}
        self._places[name], self.notes[name], self._ranks[name] = place, note, self._rank(place)

    def _put(self, place: int, values: Mapping[str, Any]) -> None:
        for name, module in self._stacked.items():
            module.put(place, values.get(name))

    def _rank(self, place: int) -> int:
        stacks = [module.stacks["directions"] for module in self._stacked.values() if isinstance(module, BankLayer)]
        return max(int((stack.slots[place] > 0).sum()) for stack in stacks)

    def remove(self, name: str) -> None:
        """Remove an adapter; the next ones take its memory.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        with self._rows.one_thread:
            self._put(self.place(name), {})
            del self._places[name], self._ranks[name], self.notes[name]

    @contextmanager
    def _passing(self, names: Sequence[str], copies: int = 1) -> Iterator[None]:
        # Rows i * copies to (i + 1) * copies of a batch go through adapter names[i]; other threads wait.
        rows = self._rows
        with rows.one_thread:
            places = [NOBODY if name == BASE else self.place(name) for name in names]
            rank = max((self._ranks.get(name, 0) for name in names), default=0)
            rows.rank = 1 << (rank - 1).bit_length() if rank else 0  # few values: a compiled model is made for each
            device = next((next(module.buffers()).device for module in self._stacked.values()), None)
            rows.places, rows.copies = torch.tensor(places, dtype=torch.int64, device=device), copies
            try:
                yield
            finally:
                rows.places, rows.copies = None, 1

    def forward(
        self, *args: Any, adapter_names: Sequence[str] | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Call the model, each row with the adapter it names; "__base__" stands for none.

        The logits have as many columns as the largest head; `answers` gives each row its own. With `labels` the loss is
        the mean over adapters of the mean over their rows, as `lsr.serve.answer` says.

        Raises:
            InputError: if there are no names, or one is unknown; ValueError if there is not one for each row.
        """
        if adapter_names is None:
            raise InputError(f"adapter_names: name the adapter of each row of the batch, or {BASE!r} for none")
        with self._passing(adapter_names):
            output = self.model(*args, **kwargs)
            if labels is not None:
                counts = {name: self.outputs(name) for name in adapter_names}
                output["loss"] = mean_of_means(output.logits, labels, adapter_names, counts)
        return output

    def answers(self, logits: Tensor, adapter_names: Sequence[str]) -> list[Answer]:
        """Return for each row of the logits its adapter, the names of its labels, and the logits of these alone."""
        with self._rows.one_thread:
            heads = {name: (self.labels(name), self.outputs(name)) for name in {*adapter_names}}
        rows = zip(adapter_names, logits, strict=True)
        return [Answer(name, heads[name][0], row[: heads[name][1]]) for name, row in rows]

    def generate(self, *args: Any, adapter_names: Sequence[str], **kwargs: Any) -> Any:
        """Call the model's `generate`, each prompt with the adapter it names."""
        model: Any = self.model
        with self._passing(adapter_names, copies_of_a_row(kwargs)):
            return model.generate(*args, **kwargs)

    def side_by_side(self, names: Iterable[str] | None = None, **options: Any) -> SideBySide:
        """Return a training of these adapters, or of all, with the options and errors of `SideBySide`."""
        return SideBySide(self, self.names if names is None else names, **options)

    def write(self, name: str, folder: str | Path, *, method: str = "LORA", force: bool = False) -> None:
        """Write an adapter as a folder of LORA or LSR, with its head and its task.json.

        As LSR it has cores and the frames around them, if the bank holds cores for all of its layers.
        """
        with self._rows.one_thread:
            place = self.place(name)
            held = {one: self._stacked[one] for one in self._modules_of_base if one in self._stacked}
            updates = {one: layer.update(place) for one, layer in held.items() if isinstance(layer, BankLayer)}
            states = {one: head.state(place) for one, head in held.items() if isinstance(head, BankHead)}
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
        frames, tensors = dict[str, list[Any]](), dict[str, Tensor]()
        with self._rows.one_thread:
            places = [NOBODY, *self._places.values()]
            for name, module in self._stacked.items():
                kind = file.HEADS if isinstance(module, BankHead) else file.LAYERS
                tensors |= {f"{kind}/{name}/{key}": value for key, value in module.tensors(places).items()}
                if isinstance(module, BankLayer) and module.frames is not None:
                    frames[name] = [owners.setdefault(id(module.frames), name), module.stacks["cores"].width]
                    own = module.frames.named_buffers()
                    tensors |= {f"{file.FRAMES}/{frames[name][0]}/{side}": value for side, value in own}
            notes = {name: self.notes[name] for name in self._places}
            index = file.Index(dict(self._base_fields), self.precision, notes, frames)
        file.write(Path(folder), index, tensors, force=force)

    @classmethod
    def load(cls, base: nn.Module, folder: str | Path) -> Self:
        """Return the bank that `save` wrote, on its base model; the file is memory-mapped, not copied.

        Raises:
            InputError: if there is no bank, its file is broken, or it does not fit the base model.
        """
        index, modules = file.read(Path(folder))
        try:
            bank, places = cls(base, precision=index.precision), len(index.notes) + 1
            frames = {name: Frames(**sides) for name, sides in modules.get(file.FRAMES, {}).items()}
            heads = modules.get(file.HEADS, {})
            for name, tensors in (modules[file.LAYERS] | heads).items():
                module = bank._new(name, places, name in heads)
                if isinstance(module, BankLayer) and name in index.frames:
                    owner, width = index.frames[name]
                    module.set_frames(frames[owner], width)
                module.restore(tensors, places)
                bank._insert(name, module)
        except KeyError as error:
            raise InputError(f"{folder}: {error.args[0]!r} is missing in the base model or in the file") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}: {first_line(error)}") from None
        bank._base_fields, bank.notes = dict(index.base), dict(index.notes)
        bank._places = {name: place for place, name in enumerate(index.notes, start=1)}
        bank._ranks = {name: bank._rank(place) for name, place in bank._places.items()}
        return bank

    def _new(self, name: str, places: int, is_head: bool) -> BankLayer | BankHead:
        base = self._modules_of_base[name]
        if is_head:
            return BankHead(base, self._labels, self._rows, places, self.precision)
        check_adaptable(base, name)
        return BankLayer(base, self._rows, places, self.precision)

    def _insert(self, name: str, module: BankLayer | BankHead) -> None:
        self._stacked[name] = module.eval()
        parent_name, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent_name), child, module)
