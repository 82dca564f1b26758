"""AdapterBank: a base model with thousands of adapters, where each row of a batch names its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace as changed
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lsr.algebra.rounding import PRECISIONS
from lsr.convert.writing import check_output, write
from lsr.loading.base_models import load_base
from lsr.loading.contents import Contents, check_labels, check_layers, make_label_names, read_on
from lsr.loading.task import check_stop_tokens, validate_task_info
from lsr.loading.updates import Update
from lsr.serve.admission import BaseModel, admit, check_modules
from lsr.serve.file import HEADS, LAYERS, BankFile, FramesOfLayers, Notes
from lsr.serve.file import read as read_file
from lsr.serve.file import write as write_file
from lsr.serve.modules import DIRECTIONS, BankHead, BankLayer, Shared, Version
from lsr.serve.shared_adapter import base_with, on_plain_base, split
from lsr.serve.stack import NOBODY, Stack, StoredStack, largest, round_up
from lsr.tuner.files import Files
from lsr.tuner.mistakes import InputError, wrap_errors
from lsr.tuner.model import BASE, copies_of_a_row


class Answer(NamedTuple):
    """The result of a row: as many logits as its adapter has labels; a number if `labels` is None."""

    adapter: str
    labels: tuple[str, ...] | None
    logits: Tensor  # (labels,), or (1,)
    thresholds: tuple[float, ...] | None = None  # multi-label tasks: the probability from which each label applies

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label, all of which add up to 1 unless several may apply; none of a number."""
        logits = self.logits.double()
        shares = logits.softmax(dim=0) if self.thresholds is None else logits.sigmoid()
        return dict(zip(self.labels or (), shares.tolist(), strict=False))

    @property
    def applying(self) -> list[str]:
        """The labels whose probabilities reach their thresholds, if several may apply."""
        reached = zip(self.probabilities.items(), self.thresholds or (), strict=False)
        return [label for (label, share), threshold in reached if share >= threshold]


def make_answer(name: str, note: Mapping[str, Any], logits: Tensor) -> Answer:
    """Return the answer of an adapter, which has this note about its task and computed the logits (labels,)."""
    count = len(logits)
    labels = tuple(note.get("labels") or make_label_names(count)) if count != 1 else None
    thresholds = tuple(note.get("thresholds") or ()) or None
    return Answer(name, labels, logits, thresholds)


class AdapterBank(nn.Module):
    """A base model with many adapters, of LSR and of LoRA, of any rank and on any layers.

    An adapter takes the memory of its own directions and of its head, which may have any number of labels. Where it has
    a core between frames that the bank holds, those of the first such adapter on the layer, it takes that of the core.
    `precision` is one of float32, bfloat16, 8bit, 4bit, 3bit and 2bit, rounded as by `lsr.quantize_adapter`.

    Tenants may share one adapter, `shared_adapter`, which is merged into the base model; what they have of their own
    comes on top: see `of_tenants`.

    The base model is modified in place: its adapted layers and heads are wrapped, its parameters frozen, and it is put
    into evaluation mode. Rows without an adapter, named "__base__", give the same results as without a bank; with a
    shared adapter those of the base model with it, and zeros as logits.

    Threads may share a bank, also to add and remove adapters: they wait for each other. The memory is that of the
    adapters that are in it, and at most 5 % more, whatever it held before.

    Raises:
        InputError: if there is no such precision.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model: Any = base.requires_grad_(False).eval()
        self._base = BaseModel.of(base)
        self.shared = Shared(precision, self._base.labels)
        self.shared_adapter: Files | None = None  # the adapter that tenants share, merged into the base model
        self.base_fields: dict[str, Any] = {}  # the base model according to the adapters' configurations
        self.versions: dict[str, Version] = {}  # current version by adapter
        self.layers: dict[str, BankLayer] = {}  # layers by the name of the module that each wraps
        self.heads: dict[str, BankHead] = {}
        self._base_bytes = sum(tensor.nbytes for tensor in base.buffers())
        self.places: dict[str, int] = {}  # index of each adapter in the stacks: 1, 2, ..., without a gap

    @classmethod
    def of_tenants(
        cls,
        folder: str | Path,
        base: nn.Module | str | None = None,
        *,
        precision: str = "float32",
    ) -> Self:
        """Return a bank of the tenants of an adapter, of any method of PEFT that can be merged into its base model.

        The task.json in its folder has `tenants`: by name the names of their labels, or null for a number, in the order
        of the rows of the head's last layer. `base` is the base model, or a folder or hub repository of it; None stands
        for what the adapter names.

        Raises:
            InputError: if there is no such adapter, the rows are not the tenants', it cannot be merged, or the base
                model is missing or does not fit.
        """
        shared_adapter, tenants = split(folder)
        bank = cls(base_with(shared_adapter, base), precision=precision)
        bank.shared_adapter = shared_adapter
        bank.add_all(tenants)
        return bank

    @property
    def of_base(self) -> Mapping[str, nn.Module]:
        """The modules of the base model by name, without what wraps them."""
        return self._base.modules

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order they were added."""
        return list(self.places)

    @property
    def notes(self) -> Notes:
        """The contents of the task.json of each adapter."""
        return {name: version.note for name, version in self.versions.items()}

    @property
    def nbytes(self) -> int:
        """The bytes in addition to the base model."""
        tensors = list(self.model.buffers())  # includes the frames
        for stack in self.stacks().values():
            tensors += stack.tensors()
        return sum(tensor.nbytes for tensor in tensors) - self._base_bytes

    def stacks(self) -> dict[str, Stack]:
        """Return the stacks of layers and heads by their names in a file."""
        stacks = dict[str, Stack]()
        for name, module in self._wrappers().items():
            kind = LAYERS if name in self.layers else HEADS
            for part, stack in module.stacks.items():
                stacks[f"{kind}/{name}/{part}"] = stack
        return stacks

    def _wrappers(self) -> dict[str, BankLayer | BankHead]:
        """Return layers and heads by the names of the modules that they wrap."""
        return {**self.layers, **self.heads}

    def add(
        self,
        name: str,
        adapter: str | Path | Contents,
        *,
        note: Any = None,
        replace: bool = False,
    ) -> None:
        """Load an adapter from its folder; with `replace` it replaces any adapter of the same name.

        On an error the bank is unchanged. `Contents` may be added under several names. `note` stands in for what the
        folder's task.json says, whose `labels` are the names of the labels.

        Raises:
            InputError: if the name is taken, the folder holds no adapter of LSR or plain LoRA, or it does not fit the
                base model or the adapters in the bank; if it trains more than heads and linear layers, or its answers
                are not finite.
        """
        contents = adapter if isinstance(adapter, Contents) else read_on(self.of_base, adapter)
        if note is not None:
            contents = changed(contents, task=validate_task_info(note, contents.source))
        self.add_all({name: contents}, replace=replace)

    def add_all(
        self,
        adapters: Mapping[str, Contents],
        *,
        replace: bool = False,
    ) -> None:
        """Add adapters by name, all or, on an error, none; with the errors of `add`."""
        with self.shared.one_thread:
            heads = admit(
                self._base,
                adapters,
                taken=() if replace else self.places,
                fields=self.base_fields,
                adapted=self.layers,
                whole=self.heads,
            )
            for name, contents in adapters.items():
                self.wrap(contents.updates, heads[name])
                place = self.places.get(name, self.shared.size)
                self._set_size(max(self.shared.size, place + 1))
                self._put(place, {**contents.updates, **heads[name]})
                self.places[name] = place
            sizes = self.sizes()
            for name, contents in adapters.items():
                base = {key: value for key, value in contents.base.items() if value is not None}
                self.versions[name] = Version(dict(contents.task or {}), base, sizes[self.places[name]])
            self._unwrap_unused()

    def wrap(self, layers: Iterable[str], heads: Iterable[str]) -> None:
        """Make room for adapters of these layers and heads of the base model, which are wrapped."""
        new_layers = {name: BankLayer(self.of_base[name], self.shared) for name in layers if name not in self.layers}
        new_heads = {name: BankHead(self.of_base[name], self.shared) for name in heads if name not in self.heads}
        self.layers = self.layers | new_layers
        self.heads = self.heads | new_heads
        for name in (*new_layers, *new_heads):
            self.model.set_submodule(name, self._wrappers()[name].eval())

    def _put(self, place: int, values: Mapping[str, Any]) -> None:
        for name, module in self._wrappers().items():
            module.put(place, values.get(name))

    def _set_size(self, places: int) -> None:
        self.shared.size = places
        for stack in self.stacks().values():
            stack.set_places(places)

    def remove(self, name: str) -> None:
        """Remove an adapter and free its memory, with the errors of `contents`."""
        with self.shared.one_thread:
            place = self._place(name, own=True)
            self._put(place, {})
            del self.places[name]
            del self.versions[name]
            self._fill_gap(place)
            self._unwrap_unused()

    def _fill_gap(self, place: int) -> None:
        # Move the adapter at the last place to one that has become free.
        last = self.shared.size - 1
        if place != last:
            for stack in self.stacks().values():
                stack.move(last, place)
            moved = next(name for name, own in self.places.items() if own == last)
            self.places[moved] = place
        self._set_size(last)

    def _unwrap_unused(self) -> None:
        # Leave nothing of adapters that have left: no wrapper of a module that no other has, and no base model.
        for name, module in self._wrappers().items():
            if module.is_unused:
                self.model.set_submodule(name, module.base)
        self.layers = {name: layer for name, layer in self.layers.items() if not layer.is_unused}
        self.heads = {name: head for name, head in self.heads.items() if not head.is_unused}
        fields = dict[str, Any]()
        for version in self.versions.values():
            fields |= version.base
        self.base_fields = fields

    def _place(
        self,
        name: str,
        *,
        own: bool = False,
    ) -> int:  # index in the stacks
        if name == BASE and not own:
            return NOBODY
        if name not in self.places:
            near = get_close_matches(name, self.places, 1)
            guess = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"adapter_names: no adapter is named {name!r}, of {len(self.names)} in the bank{guess}")
        return self.places[name]

    @contextmanager
    def _pass_batch(
        self,
        names: Sequence[str],
        given: Iterable[Any],
        copies: int = 1,
    ) -> Iterator[None]:
        # While a batch passes, other threads wait.
        rows = len(next(filter(torch.is_tensor, given)))
        if len(names) != rows:
            raise InputError(f"adapter_names: needed: one name per row, {rows}, {BASE!r} for none, got {len(names)}")
        shared = self.shared
        with shared.one_thread:
            of_rows = torch.tensor([self._place(name) for name in names], dtype=torch.int64)
            places = of_rows.repeat_interleave(copies).to(next(self.model.parameters()).device)
            shared.rank = largest(self._direction_stacks(), places)
            shared.outputs = largest(self._label_stacks(), places)
            shared.places = places
            try:
                yield
            finally:
                shared.places = None

    def forward(
        self,
        *args: Any,
        adapter_names: Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Call the model, each row with the adapter it names; "__base__" stands for none.

        The logits have as many columns as the largest head; `answers` gives each row its own.

        Raises:
            InputError: if there is not one name for each row, or one is unknown.
        """
        with self._pass_batch(adapter_names, (*args, *kwargs.values())):
            return self.model(*args, **kwargs)

    def generate(
        self,
        *args: Any,
        adapter_names: Sequence[str],
        **kwargs: Any,
    ) -> Any:
        """Call the model's `generate`, each prompt with the adapter it names, and so its beams or several answers."""
        with self._pass_batch(adapter_names, (*args, *kwargs.values()), copies_of_a_row(kwargs)):
            return self.model.generate(*args, **kwargs)

    def answers(self, logits: Tensor, adapter_names: Sequence[str]) -> list[Answer]:
        """Return for each row of the logits its adapter, the names of its labels, and the logits of these alone.

        The names are those of the adapter's task, or LABEL_0 and so on; None if it predicts a number.
        """
        answers = []
        for name, row in zip(adapter_names, logits, strict=True):
            count = self.outputs(name)
            note = self.versions[name].note if name in self.versions else {}
            answers.append(make_answer(name, note, row[:count]))
        return answers

    def _direction_stacks(self) -> list[Stack]:
        return [layer.stacks[DIRECTIONS] for layer in self.layers.values()]

    def _label_stacks(self) -> list[Stack]:
        return [head.stacks[head.labelled[0]] for head in self.heads.values() if head.labelled]

    def sizes(self) -> list[int]:
        """Return for each place the size of the adapter there, as in its version."""
        size = self.shared.size
        counts = [stack.counts[:size] for stack in self._direction_stacks() + self._label_stacks()]
        most = torch.stack(counts).amax(dim=0).tolist() if counts else [0] * size
        return list(map(round_up, most))

    def outputs(self, name: str) -> int:
        """Return the number of outputs that the head of an adapter has, or that of "__base__"."""
        place = self._place(name)
        own = next((stack.count(place) for stack in self._label_stacks()), 0)
        return own or self.shared.labels

    def write(
        self,
        name: str,
        folder: str | Path,
        *,
        method: str = "LORA",
        force: bool = False,
    ) -> None:
        """Write an adapter as a folder of LORA or LSR, with its head and its task.json, for the plain base model.

        As LSR it has cores and the frames around them, if the bank holds cores for all of its layers. A shared adapter
        is added to it exactly, by concatenating their ranks.

        Raises:
            InputError: if the bank has no such adapter, or a shared one that is neither LSR nor plain LoRA; or as
                `lsr.convert.writing` raises it.
        """
        check_output(Path(folder), (), replace=force)
        write(on_plain_base(self.shared_adapter, self.contents(name)), Path(folder), method)

    def contents(self, name: str) -> Contents:
        """Return a copy of what the bank has of an adapter, for `add`: on top of the shared one, if there is any.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        with self.shared.one_thread:
            place = self._place(name, own=True)
            updates = dict[str, Update]()
            for module in self.of_base:  # keeps the model's order of modules
                update = self.layers[module].update(place) if module in self.layers else None
                if update is not None:
                    updates[module] = update
            tensors = dict[str, Tensor]()
            endings = list[str]()
            for module, head in self.heads.items():
                state = head.state(place)
                tensors |= {f"{module}.{key}": value for key, value in state.items()}
                if state:
                    endings.append(f".{module}")
            return Contents(name, self.base_fields, updates, tensors, tuple(endings), self.versions[name].note or None)

    def save(
        self,
        folder: str | Path,
        *,
        force: bool = False,
    ) -> None:
        """Write the whole bank to a single file in a folder, and a shared adapter to a folder beside it, for `load`.

        The errors are those of `lsr.convert.writing`.
        """
        check_output(Path(folder), (), replace=force)
        with self.shared.one_thread:
            contents = self._file(folder)
        write_file(contents, Path(folder))

    def _file(self, folder: str | Path) -> BankFile:
        # Copies of all that a file has, which another thread may change afterwards.
        places = [NOBODY, *self.places.values()]
        stacks = {}
        for name, stack in self.stacks().items():
            stacks[name] = stack.copy_rows(places)
            if not stack.form.are_bounded(stacks[name].values):
                raise InputError(f"{folder}: {name} overflows in {self.shared.precision}")
        frames = FramesOfLayers()
        for name, layer in self.layers.items():
            if layer.frames is not None:
                frames[name] = layer.frames, layer.core_size
        return BankFile(
            base=self.base_fields,
            precision=self.shared.precision,
            notes=self.notes,
            layers=[*self.layers],
            heads=[*self.heads],
            frames=frames,
            stacks=stacks,
            shared_adapter=self.shared_adapter,
        )

    @classmethod
    def load(cls, base: nn.Module | str | None, folder: str | Path) -> Self:
        """Return the bank that `save` wrote; the file is memory-mapped, not copied, after its checksums are compared.

        `base` is its base model, or a folder or hub repository of it; None stands for what the adapters name.

        Raises:
            InputError: if there is no bank, a file is damaged or does not fit, or the base model is missing or does not
                fit.
        """
        contents = read_file(Path(folder))
        with wrap_errors(folder, ValueError, TypeError):
            bank = cls(_base_of(contents, base), precision=contents.precision)
            bank._fill(contents)
        return bank

    def _fill(self, contents: BankFile) -> None:
        # Take what a file holds, which anybody may have made, into a bank without adapters.
        check_modules(self._base, contents.layers, contents.heads)
        check_layers({name: frames.shape for name, (frames, _) in contents.frames.items()}, self.of_base)
        self.shared_adapter = contents.shared_adapter
        self.base_fields = contents.base
        self.places = {name: place for place, name in enumerate(contents.notes, start=NOBODY + 1)}
        self.shared.size += len(self.places)
        self.wrap(contents.layers, contents.heads)
        for name, (frames, core_size) in contents.frames.items():
            if not self.layers[name].may_share(frames):
                raise InputError(f"{name}: its frames hold values that are too large for the rows of all adapters")
            self.layers[name].set_frames(frames, core_size)
        self._restore(contents.stacks)
        sizes = self.sizes()
        for name, note in contents.notes.items():
            with wrap_errors(name, ValueError):
                check_stop_tokens(note, self._base.vocabulary)
                check_labels(note.get("labels"), self.outputs(name))
            self.versions[name] = Version(note, contents.base, sizes[self.places[name]])

    def _restore(self, stored: Mapping[str, StoredStack]) -> None:
        stacks = self.stacks()
        for name in sorted(stored.keys() ^ stacks.keys()):
            raise InputError(f"{name} is {'missing' if name in stacks else 'no part of its layers and heads'}")
        for name, stack in stacks.items():
            with wrap_errors(name, ValueError):
                stack.restore(stored[name])
        for name, module in self._wrappers().items():
            with wrap_errors(name, ValueError):
                module.check_counts()


def _base_of(contents: BankFile, base: nn.Module | str | None) -> nn.Module:
    """Return the base model of a bank in a file, with what tenants share; `base` is as in `AdapterBank.load`."""
    if contents.shared_adapter is not None:
        return base_with(contents.shared_adapter, base)
    if isinstance(base, nn.Module):
        return base
    names = (name.partition("/")[2].replace("/", ".") for name in contents.stacks)
    return load_base(contents.base, dict.fromkeys(names, torch.empty(0)), base)  # it may lack heads that the bank has
