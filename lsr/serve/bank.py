"""AdapterBank: a base model with thousands of adapters, where each row of a batch names its own."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace as changed
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lsr.algebra.rounding import PRECISIONS
from lsr.convert.writing import check_output, write, writing
from lsr.loading.base_models import load_base
from lsr.loading.contents import Contents, read_contents
from lsr.loading.update import Frames
from lsr.serve.admission import check_answers, check_heads
from lsr.serve.file import FILE, FRAMES, HEADER, HEADS, LAYERS, read
from lsr.serve.head import BankHead
from lsr.serve.layer import DIRECTIONS, BankLayer
from lsr.serve.side_by_side import SideBySide
from lsr.serve.stack import NOBODY, ZERO, Shared, Stack
from lsr.tuner.files import PREFIX
from lsr.tuner.mistakes import InputError, first_line
from lsr.tuner.mixed_batch import BASE, copies_of_a_row


class Answer(NamedTuple):
    """The result of a row: as many logits as its adapter has labels; a number if `labels` is None."""

    adapter: str
    labels: tuple[str, ...] | None
    logits: Tensor  # (labels,), or (1,)

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label; none of a number."""
        return dict(zip(self.labels or (), self.logits.double().softmax(dim=0).tolist(), strict=False))


class AdapterBank(nn.Module):
    """A base model with many adapters, of LSR and of LoRA, of any rank and on any layers.

    An adapter takes the memory of its own directions and of its head, which may have any number of labels. Where it has
    a core between frames that the bank holds, those of the first such adapter on the layer, it takes that of the core.
    `precision` is one of float32, bfloat16, 8bit, 4bit, 3bit and 2bit, rounded as by `lsr.round_adapter`.

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
        self.model: Any = base.requires_grad_(False).eval()
        self.shared = Shared(precision, int(getattr(getattr(base, "config", None), "num_labels", 0)))
        self.base_fields: dict[str, Any] = {}  # the base model according to the adapters' configurations
        self.notes: dict[str, dict[str, Any]] = {}  # by adapter: what its task.json says
        self.layers: dict[str, BankLayer] = {}  # by the names of the modules that they wrap
        self.heads: dict[str, BankHead] = {}
        self._of_base, self._base_bytes = dict(base.named_modules()), sum(tensor.nbytes for tensor in base.buffers())
        self._places: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order they were added."""
        return list(self._places)

    @property
    def nbytes(self) -> int:
        """The bytes in addition to the base model, with room for more adapters."""
        return sum(tensor.nbytes for tensor in self.model.buffers()) - self._base_bytes

    def stacks(self) -> dict[str, Stack]:
        """Return the stacks of layers and heads by their names in a file."""
        named = [(f"{LAYERS}/{name}", layer.stacks) for name, layer in self.layers.items()]
        named += [(f"{HEADS}/{name}", head.stacks) for name, head in self.heads.items()]
        return {f"{name}/{part}": stack for name, stacks in named for part, stack in stacks.items()}

    def add(self, name: str, adapter: str | Path | Contents, *, note: Any = None, replace: bool = False) -> None:
        """Load an adapter from its folder; with `replace` it replaces any adapter of the same name.

        On an error the bank is unchanged. `Contents` may be added under several names. `note` stands in for what the
        folder's task.json says, whose `labels` are the names of the labels.

        Raises:
            InputError: if the name is taken, the folder holds no adapter of LSR or plain LoRA, or it does not fit the
                base model or the adapters in the bank; if it trains more than heads and linear layers, or its answers
                are not finite.
        """
        contents = adapter if isinstance(adapter, Contents) else read_contents(adapter)
        contents = contents if note is None else changed(contents, task=note)
        with self.shared.one_thread:
            try:
                heads = self._check(name, contents, replace)
                check_answers(self.model, self._of_base, contents.updates, heads)
            except (TypeError, ValueError) as error:
                raise InputError(f"{contents.source}: {first_line(error)}") from None
            free = {*range(self.shared.size)} - {NOBODY, *self._places.values()}
            place = self._places.get(name) or min(free, default=self.shared.size)
            self.shared.size = max(self.shared.size, place + 1)
            self._wrap(contents.updates, heads)
            self._put(place, {**contents.updates, **heads})
            self.base_fields |= {field: value for field, value in contents.base.items() if value is not None}
            self._places[name], self.notes[name] = place, dict(contents.task or {})

    def _check(self, name: str, contents: Contents, replace: bool) -> dict[str, dict[str, Tensor]]:
        if not name or name == BASE:
            raise ValueError(f"an adapter's name must not be empty or {BASE!r}, got {name!r}")
        if name in self._places and not replace:
            raise ValueError(f"an adapter named {name!r} is in the bank; replace=True replaces it")
        for field, value in contents.base.items():
            held = self.base_fields.get(field, value)
            if value is not None and value != held:
                raise ValueError(f"{field} is {value!r}, but {held!r} for the adapters in the bank")
        contents.check_layers(self._of_base)
        check_heads(self.model, own := contents.whole(self._of_base))
        adapted, whole = {*self.layers, *contents.updates}, {*self.heads, *own}
        for outer, inner in product(sorted(whole), sorted(adapted | whole)):
            if f"{inner}.".startswith(f"{outer}.") and (inner != outer or inner in adapted):
                both = f"{inner!r} is adapted or trained, and {outer!r} trained in full"
                raise ValueError(f"{both}, by this adapter or one in the bank; a bank can hold only one of both")
        return contents.heads_on(self._of_base, self.shared.labels)

    def _wrap(self, layers: Iterable[str], heads: Iterable[str]) -> None:
        new_layers = {name: BankLayer(self._of_base[name], self.shared) for name in layers if name not in self.layers}
        new_heads = {name: BankHead(self._of_base[name], self.shared) for name in heads if name not in self.heads}
        self.layers, self.heads = self.layers | new_layers, self.heads | new_heads
        for name, module in {**new_layers, **new_heads}.items():
            self.model.set_submodule(name, module.eval())

    def _put(self, place: int, values: Mapping[str, Any]) -> None:
        modules: dict[str, BankLayer | BankHead] = {**self.layers, **self.heads}
        for name, module in modules.items():
            module.put(place, values.get(name))

    def remove(self, name: str) -> None:
        """Remove an adapter, with the errors of `place`; the next ones take its memory."""
        with self.shared.one_thread:
            self._put(self.place(name), {})
            del self._places[name], self.notes[name]

    def place(self, name: str) -> int:
        """Return the place of an adapter, or of "__base__", in the stacks.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        if name == BASE:
            return NOBODY
        if name not in self._places:
            near = "".join(f"; did you mean {one}?" for one in get_close_matches(name, self._places, 1))
            raise InputError(f"adapter_names: no adapter is named {name!r}, of {len(self.names)} in the bank{near}")
        return self._places[name]

    @contextmanager
    def _passing(self, names: Sequence[str], given: Iterable[Any], copies: int = 1) -> Iterator[None]:
        # While a batch passes, other threads wait.
        shared, rows = self.shared, len(next(filter(torch.is_tensor, given)))
        if len(names) != rows:
            raise InputError(f"adapter_names: needed: one name per row, {rows}, {BASE!r} for none, got {len(names)}")
        with shared.one_thread:
            places = [self.place(name) for name in names for _ in range(copies)]
            shared.places = torch.tensor(places, dtype=torch.int64, device=next(self.model.parameters()).device)
            used = [layer.stacks[DIRECTIONS].slots[shared.places] > ZERO for layer in self.layers.values()]
            rank = int(torch.stack([one.sum(dim=1).max() for one in used]).max()) if used else 0
            shared.rank = 1 << (rank - 1).bit_length() if rank else 0  # few values: a compiled model is made for each
            try:
                yield
            finally:
                shared.places = None

    def forward(self, *args: Any, adapter_names: Sequence[str] = (), **kwargs: Any) -> Any:
        """Call the model, each row with the adapter it names; "__base__" stands for none.

        The logits have as many columns as the largest head; `answers` gives each row its own.

        Raises:
            InputError: if there is not one name for each row, or one is unknown.
        """
        with self._passing(adapter_names, (*args, *kwargs.values())):
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str], **kwargs: Any) -> Any:
        """Call the model's `generate`, each prompt with the adapter it names, and so its beams or several answers."""
        with self._passing(adapter_names, (*args, *kwargs.values()), copies_of_a_row(kwargs)):
            return self.model.generate(*args, **kwargs)

    def answers(self, logits: Tensor, adapter_names: Sequence[str]) -> list[Answer]:
        """Return for each row of the logits its adapter, the names of its labels, and the logits of these alone.

        The names are those of the adapter's task, or LABEL_0 and so on; None if it says a number.
        """
        answers = []
        for name, row in zip(adapter_names, logits, strict=True):
            count = self.outputs(name)
            labels = self.notes.get(name, {}).get("labels") or [f"LABEL_{at}" for at in range(count)]
            answers.append(Answer(name, None if count == 1 else tuple(labels), row[:count]))
        return answers

    def outputs(self, name: str) -> int:
        """Return the number of outputs that the head of an adapter has, or that of "__base__"."""
        place, labelled = self.place(name), (head for head in self.heads.values() if head.labelled)
        return next((len(head.stacks[head.labelled[0]].own(place)) for head in labelled), 0) or self.shared.labels

    def side_by_side(self, names: Iterable[str] | None = None, **options: Any) -> SideBySide:
        """Return a training of these adapters, or of all, with the options and errors of `SideBySide`."""
        return SideBySide(self, self.names if names is None else names, **options)

    def write(self, name: str, folder: str | Path, *, method: str = "LORA", force: bool = False) -> None:
        """Write an adapter as a folder of LORA or LSR, with its head and its task.json.

        As LSR it has cores and the frames around them, if the bank holds cores for all of its layers.
        """
        check_output(Path(folder), (), replace=force)
        with self.shared.one_thread:
            place = self.place(name)
            layers = [one for one in self._of_base if one in self.layers]  # in the order of the model
            updates = {one: update for one in layers if (update := self.layers[one].update(place))}
            states = {one: state for one, head in self.heads.items() if (state := head.state(place))}
            heads = {f"{one}.{key}": value for one, state in states.items() for key, value in state.items()}
            contents = Contents(name, self.base_fields, updates, heads, tuple(states), self.notes[name] or None)
        write(contents, Path(folder), method)

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write the whole bank to a single file in a folder, for `load`, with the errors of `lsr.convert.writing`."""
        check_output(Path(folder), (), replace=force)
        with self.shared.one_thread:
            places = [NOBODY, *self._places.values()]
            parts = {name: stack.stored(places).items() for name, stack in self.stacks().items()}
            tensors = {f"{name}/{part}": value for name, its in parts.items() for part, value in its}
            held = {name: layer.frames for name, layer in self.layers.items() if layer.frames is not None}
            owners = {frames: name for name, frames in reversed(held.items())}  # the first layer of each
            for frames, owner in owners.items():
                tensors |= {f"{FRAMES}/{owner}/{side}": its.contiguous() for side, its in frames.named_buffers()}
            header: dict[str, Any] = {"base": self.base_fields, "precision": self.shared.precision, "notes": self.notes}
            header |= {"layers": [*self.layers], "heads": [*self.heads]}
            header["frames"] = {name: (owners[its], self.layers[name].core_size) for name, its in held.items()}
        with writing(Path(folder)) as new:
            save_file(tensors, new / FILE, metadata={HEADER: json.dumps(header)})

    @classmethod
    def load(cls, base: nn.Module | str | None, folder: str | Path) -> Self:
        """Return the bank that `save` wrote; the file is memory-mapped, not copied.

        `base` is its base model, or a folder or hub repository of it; None stands for what the adapters name.

        Raises:
            InputError: if there is no bank, its file is broken, or the base model is missing or does not fit.
        """
        header, tensors = read(Path(folder))
        try:
            if not isinstance(base, nn.Module):
                names = (key.partition("/")[2].rpartition("/")[0].replace("/", ".") for key in tensors)
                own = {f"{PREFIX}{name}": torch.empty(0) for name in names}  # the base model may lack heads
                base = load_base(header["base"], own, base)
            bank = cls(base, precision=header["precision"])
            bank.base_fields, bank.notes = header["base"], {name: dict(its) for name, its in header["notes"].items()}
            bank._places = {name: place for place, name in enumerate(bank.notes, start=NOBODY + 1)}
            bank.shared.size += len(bank._places)
            check_heads(bank.model, header["heads"])
            bank._wrap(header["layers"], header["heads"])
            frames = dict[str, Frames]()
            for name, (owner, core_size) in header["frames"].items():
                a, b = (tensors[f"{FRAMES}/{owner}/{side}"] for side in "ab")
                bank.layers[name].set_frames(frames.setdefault(owner, Frames(a=a, b=b)), core_size)
            for name, stack in bank.stacks().items():
                values, slots = tensors[f"{name}/values"], tensors[f"{name}/slots"]
                fits = values.dtype is stack.values.dtype and values.shape[1:] == stack.values.shape[1:]
                if not fits or len(slots) != len(stack.slots) or ((slots < 0) | (slots >= len(values))).any():
                    raise InputError("its values do not fit the base model or the names of its adapters")
                stack.values, stack.slots = values, slots.int()
        except KeyError as error:
            raise InputError(f"{folder}: {error.args[0]!r} is missing in the base model or in the file") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{folder}: {first_line(error)}") from None
        return bank
