"""AdapterBank: one base model with thousands of adapters; each row of a batch names its adapter."""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace as changed
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from lsr.algebra.rounding import PRECISIONS
from lsr.convert.writing import check_output, write
from lsr.errors import InputError, wrap_errors
from lsr.loading.base_models import load_base
from lsr.loading.contents import Contents, check_layers, read_on
from lsr.loading.updates import Update
from lsr.serve.admission import BaseModel, add_task, admit, check_modules
from lsr.serve.file import HEADS, LAYERS, BankFile, BasesOfLayers, TaskInfos
from lsr.serve.file import read as read_file
from lsr.serve.file import write as write_file
from lsr.serve.modules import DIRECTIONS, BankHead, BankLayer, BatchState, Packed, Version
from lsr.serve.row_pool import BASE_SLOT, RowPool, StoredPool, largest, round_up
from lsr.serve.shared_adapter import base_with, last_layer, on_plain_base, split
from lsr.tuner.files import Files
from lsr.tuner.model import copies_of_a_row
from lsr.tuner.packing import dtype_name
from lsr_onnx.answers import Answer, make_answer
from lsr_onnx.names import BASE, check_labels, is_reserved
from lsr_onnx.task import check_stop_tokens, validate_task_info


class AdapterBank(nn.Module):
    """A base model with many LSR and LoRA adapters, of any rank and on any layers.

    An adapter stores its own directions and its head, which may have any number of labels. If its bases equal those of
    the first core adapter on a layer, it stores only its core there. `precision` is one of float32, bfloat16, 8bit,
    4bit, 3bit and 2bit; values are quantized as by `lsr.quantize_adapter`.

    Tenants may share one adapter, `shared_adapter`, which is merged into the base model; each tenant's own parameters
    are added to it: see `of_tenants`.

    The base model is modified in place: its adapted layers and heads are wrapped, its parameters frozen, and it is put
    into evaluation mode. Rows without an adapter, named "__base__", give the same results as without a bank; with a
    shared adapter, they give the results of the base model with it, and zeros as logits.

    Threads may share a bank, also to add and remove adapters: they take turns. It uses at most 5 % more memory than its
    present adapters need, whatever it held before.

    Raises:
        InputError: if the precision is unknown.
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
        self.shared = BatchState(precision, self._base.labels)
        self.shared_adapter: Files | None = None  # the adapter that tenants share, merged into the base model
        self.base_fields: dict[str, Any] = {}  # the base model according to the adapters' configurations
        self.versions: dict[str, Version] = {}  # current version by adapter
        self.groups: dict[str, Version] = {}  # entries for groups of tenants, by the names of group_names
        self.layers: dict[str, BankLayer] = {}  # layers by the name of the module that each wraps
        self.heads: dict[str, BankHead] = {}
        self.slots: dict[str, int] = {}  # index of each adapter in the row pools: 1, 2, ..., without a gap

    @classmethod
    def of_tenants(
        cls,
        folder: str | Path,
        base: nn.Module | str | None = None,
        *,
        precision: str = "float32",
    ) -> Self:
        """Build a bank with one entry per tenant from a multi-tenant adapter of any PEFT method that can be merged.

        The task.json in its folder has `tenants`: for each tenant the names of its labels, or null for regression, in
        the order of the rows of the head's last layer. `base` is the base model, or its folder or hub repository; by
        default the one that the adapter names.

        Raises:
            InputError: if the adapter is missing, its rows do not match the tenants, it cannot be merged, or the base
                model is missing or does not fit.
        """
        shared_adapter, tenants = split(folder)
        bank = cls(base_with(shared_adapter, base), precision=precision)
        bank.shared_adapter = shared_adapter
        bank.add_all(tenants)
        return bank

    @property
    def of_base(self) -> Mapping[str, nn.Module]:
        """The modules of the base model by name, without the wrappers for adapters."""
        return self._base.modules

    @property
    def names(self) -> list[str]:
        """The names of the adapters, in the order in which they were added."""
        return list(self.versions)

    @property
    def task_infos(self) -> TaskInfos:
        """The contents of task.json by adapter."""
        return {name: version.task_info for name, version in self.versions.items()}

    @property
    def nbytes(self) -> int:
        """The bytes of all adapters, without the base model."""
        tensors = list[Tensor]()
        for pool in self.pools().values():
            tensors += pool.tensors()
        for bases in {layer.bases for layer in self.layers.values() if layer.bases is not None}:
            tensors += [bases.a, bases.b]
        return sum(tensor.nbytes for tensor in tensors)

    def pools(self) -> dict[str, RowPool]:
        """Return the row pools of layers and heads by their names in a file."""
        pools = dict[str, RowPool]()
        for name, module in self._wrappers().items():
            prefix = LAYERS if name in self.layers else HEADS
            for part, pool in module.pools.items():
                pools[f"{prefix}/{name}/{part}"] = pool
        return pools

    def _wrappers(self) -> dict[str, BankLayer | BankHead]:
        """Return layers and heads by the names of the modules that they wrap."""
        return {**self.layers, **self.heads}

    def add(
        self,
        name: str,
        adapter: str | Path | Contents,
        *,
        task_info: Any = None,
        replace: bool = False,
    ) -> None:
        """Load an adapter from its folder; `replace` allows to replace an adapter of the same name.

        On an error the bank is unchanged. `Contents` may be added under several names. `task_info` replaces the
        contents of the folder's task.json; its `labels` are the names of the labels.

        Raises:
            InputError: if the name is taken, the folder is not an LSR or plain LoRA adapter, or it does not fit the
                base model or the adapters in the bank; if it trains more than heads and linear layers, or its outputs
                are not finite.
        """
        contents = adapter if isinstance(adapter, Contents) else read_on(self.of_base, adapter)
        if task_info is not None:
            contents = changed(contents, task=validate_task_info(task_info, contents.source))
        self.add_all({name: contents}, replace=replace)

    def add_all(
        self,
        adapters: Mapping[str, Contents],
        *,
        replace: bool = False,
    ) -> None:
        """Add adapters by name: all of them or, on an error, none. The errors are those of `add`."""
        with_tasks = {name: add_task(self._base, contents) for name, contents in adapters.items()}
        with self.shared.one_thread:
            taken = () if replace else self.slots
            self.versions |= self._store(with_tasks, taken, are_groups=False)
            self._free_unused()

    def add_groups(self, groups: Mapping[str, Contents]) -> None:
        """Add or replace the entries of groups of tenants; see `lsr.serve.group_names`.

        Raises:
            InputError: as `add`, and if a name is not the one that follows from the labels.
        """
        with self.shared.one_thread:
            self.groups |= self._store(groups, (), are_groups=True)
            self._free_unused()

    def _store(
        self, adapters: Mapping[str, Contents], taken: Container[str], *, are_groups: bool
    ) -> dict[str, Version]:
        heads = admit(
            self._base,
            adapters,
            taken=taken,
            fields=self.base_fields,
            adapted=self.layers,
            whole=self.heads,
            are_groups=are_groups,
        )
        slots = self._choose_slots(adapters)
        with self._add_slots(slots):
            packed = dict[str, Packed]()
            for name, contents in adapters.items():
                self.wrap(contents.updates, heads[name])
                packed[name] = self._pack({**contents.updates, **heads[name]})
            self._reserve(slots, packed)
        # From here on no memory is allocated that could be lacking, so that all or none are added.
        for name, rows in packed.items():
            self._put(slots[name], rows)
        self.slots |= slots
        sizes = self.sizes()
        versions = dict[str, Version]()
        for name, contents in adapters.items():
            base = {key: value for key, value in contents.base.items() if value is not None}
            versions[name] = Version(dict(contents.task or {}), base, sizes[self.slots[name]])
        return versions

    def wrap(self, layers: Iterable[str], heads: Iterable[str]) -> None:
        """Wrap these layers and heads of the base model, so that adapters can be stored for them."""
        new_layers = {name: BankLayer(self.of_base[name], self.shared) for name in layers if name not in self.layers}
        new_heads = {name: BankHead(self.of_base[name], self.shared) for name in heads if name not in self.heads}
        self.layers = self.layers | new_layers
        self.heads = self.heads | new_heads
        for name in (*new_layers, *new_heads):
            self.model.set_submodule(name, self._wrappers()[name].eval())

    def _choose_slots(self, names: Iterable[str]) -> dict[str, int]:
        """Return the present slots of adapters by name, or the next free ones."""
        slots = dict[str, int]()
        free = count(self.shared.size)
        for name in names:
            slots[name] = self.slots[name] if name in self.slots else next(free)
        return slots

    @contextmanager
    def _add_slots(self, slots: Mapping[str, int]) -> Iterator[None]:
        """Add slots for what is prepared in the context; on an error, they are removed again."""
        before = self.shared.size
        self.shared.size = max(before, 1 + max(slots.values(), default=BASE_SLOT))
        try:
            for pool in self.pools().values():
                pool.set_slots(self.shared.size)
            yield
        except BaseException:
            self.shared.size = before
            self._free_unused()
            raise

    def _pack(self, values: Mapping[str, Any]) -> Packed:
        """Return the rows of an adapter from its updates and states, given by the module's name."""
        packed = Packed()
        wrappers = self._wrappers()
        for name, value in values.items():
            module = wrappers[name]
            packed |= module.pack(module.rows_of(value))
        return packed

    def _reserve(self, slots: Mapping[str, int], packed: Mapping[str, Packed]) -> None:
        """Allocate memory for the rows of adapters that have another number of rows than their slots."""
        counts = defaultdict[RowPool, list[int]](list)
        for name, rows in packed.items():
            for pool, own in rows.items():
                if len(own) != pool.count(slots[name]):
                    counts[pool].append(len(own))
        for pool, needed in counts.items():
            pool.reserve(needed)

    def _put(self, slot: int, packed: Packed) -> None:
        for pool in self.pools().values():
            pool.put(slot, packed.get(pool))

    def remove(self, name: str) -> None:
        """Remove an adapter and free its memory. The errors are those of `contents`."""
        with self.shared.one_thread:
            if name not in self.versions:  # the entry of a group of tenants is not an adapter
                raise self._make_unknown_error(name)
            slot = self.slots[name]
            self._put(slot, {})
            del self.slots[name]
            del self.versions[name]
            self._fill_gap(slot)
            self._free_unused()

    def _fill_gap(self, slot: int) -> None:
        # Move the adapter at the last slot to one that has become free.
        last = self.shared.size - 1
        if slot != last:
            for pool in self.pools().values():
                pool.move(last, slot)
            moved = next(name for name, own in self.slots.items() if own == last)
            self.slots[moved] = slot
        self.shared.size = last

    def _free_unused(self) -> None:
        # Leave nothing of adapters that have left: no memory, no wrapper of a module that no other has, no base model.
        for module in self._wrappers().values():
            module.drop_unused()
        for pool in self.pools().values():
            pool.trim(self.shared.size)
        for name, module in self._wrappers().items():
            if module.is_unused:
                self.model.set_submodule(name, module.base)
        self.layers = {name: layer for name, layer in self.layers.items() if not layer.is_unused}
        self.heads = {name: head for name, head in self.heads.items() if not head.is_unused}
        fields = dict[str, Any]()
        for version in (*self.versions.values(), *self.groups.values()):
            fields |= version.base
        self.base_fields = fields

    def find_version(self, name: str) -> Version | None:
        """Return the present version of an adapter, or of the entry of a group; None if there is neither."""
        return self.groups.get(name, self.versions.get(name))

    def version_of(self, name: str) -> Version:
        """Return the present version of an adapter, or of the entry of a group.

        Raises:
            InputError: if the bank has neither.
        """
        version = self.find_version(name)
        if version is None:
            raise self._make_unknown_error(name)
        return version

    def _make_unknown_error(self, name: str) -> InputError:
        near = get_close_matches(name, self.versions, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        return InputError(f"adapter_names: no adapter is named {name!r}, of {len(self.names)} in the bank{guess}")

    def _slot(self, name: str) -> int:  # index in the row pools
        if name == BASE:
            return BASE_SLOT
        self.version_of(name)  # refuses a name that is unknown
        return self.slots[name]

    @contextmanager
    def _pass_batch(
        self,
        names: Sequence[str],
        given: Iterable[Any],
        copies: int = 1,
    ) -> Iterator[None]:
        # While a batch passes, other threads wait.
        batch = next(filter(torch.is_tensor, given), None)
        if batch is None or batch.dim() == 0:
            raise InputError("needed: inputs of the model as tensors with one row per text, such as input_ids")
        rows = len(batch)
        if len(names) != rows:
            raise InputError(f"adapter_names: needed: one name per row, {rows}, {BASE!r} for none, got {len(names)}")
        shared = self.shared
        with shared.one_thread:
            of_rows = torch.tensor([self._slot(name) for name in names], dtype=torch.int64)
            slots = of_rows.to(next(self.model.parameters()).device)
            shared.rank = largest(self._direction_pools(), slots)
            shared.outputs = largest(self._label_pools(), slots)
            shared.slots = slots
            shared.copied_slots = slots.repeat_interleave(copies)
            try:
                yield
            finally:
                shared.slots = None
                shared.copied_slots = None

    def forward(
        self,
        *args: Any,
        adapter_names: Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Call the model with one adapter name per row; "__base__" stands for no adapter.

        The logits have as many columns as the largest head; `answers` selects the columns of each row.

        Raises:
            InputError: if there is no tensor or not one name per row, or a name is unknown.
        """
        with self._pass_batch(adapter_names, (*args, *kwargs.values())):
            return self.model(*args, **kwargs)

    def generate(
        self,
        *args: Any,
        adapter_names: Sequence[str],
        **kwargs: Any,
    ) -> Any:
        """Call the model's `generate` with one adapter name per prompt, which holds for all its beams or answers.

        The errors are those of `forward`.
        """
        given = (*args, *kwargs.values())
        with self._pass_batch(adapter_names, given, copies_of_a_row(self.model, given, kwargs)):
            return self.model.generate(*args, **kwargs)

    def head_inputs(self, **inputs: Any) -> Tensor:  # (rows, width)
        """Return the inputs of the head's last layer, which all tenants of a shared adapter have in common."""
        assert self.shared_adapter is not None
        name = last_layer(self.shared_adapter)
        names = [BASE] * len(inputs["input_ids"])
        with self.shared.one_thread:
            layer = self.model.get_submodule(name)
            self.model.set_submodule(name, nn.Identity())
            try:
                features: Tensor = self(**inputs, adapter_names=names).logits
            finally:
                self.model.set_submodule(name, layer)
        return features

    def answers(self, logits: Tensor, adapter_names: Sequence[str]) -> list[Answer]:
        """Return for each row its adapter, the names of its labels, and its own logits.

        The names come from the adapter's task, or are LABEL_0 and so on; None for regression.
        """
        answers = []
        for name, row in zip(adapter_names, logits, strict=True):
            count = self.outputs(name)
            version = self.find_version(name)
            task_info = {} if version is None else version.task_info
            answers.append(make_answer(name, task_info, row[:count]))
        return answers

    def _direction_pools(self) -> list[RowPool]:
        return [layer.pools[DIRECTIONS] for layer in self.layers.values()]

    def _label_pools(self) -> list[RowPool]:
        return [head.pools[head.labelled[0]] for head in self.heads.values() if head.labelled]

    def sizes(self) -> list[int]:
        """Return the size (see `Version`) of the adapter at each slot."""
        size = self.shared.size
        counts = [pool.counts[:size] for pool in self._direction_pools() + self._label_pools()]
        most = torch.stack(counts).amax(dim=0).tolist() if counts else [0] * size
        return list(map(round_up, most))

    def outputs(self, name: str) -> int:
        """Return the number of outputs of an adapter's head, or of the base model's for "__base__"."""
        return self._outputs_at(self._slot(name))

    def _outputs_at(self, slot: int) -> int:
        own = next((pool.count(slot) for pool in self._label_pools()), 0)
        return own or self.shared.labels

    def write(
        self,
        name: str,
        folder: str | Path,
        *,
        method: str = "LORA",
        force: bool = False,
    ) -> None:
        """Write an adapter as a LoRA or LSR folder with its head and task.json, for the plain base model.

        As LSR it has cores and their bases if the bank holds cores for all of its layers. A shared adapter is added
        exactly, by concatenating ranks.

        Raises:
            InputError: if the bank has no such adapter, or its shared adapter is neither LSR nor plain LoRA; and as in
                `lsr.convert.writing`.
        """
        check_output(Path(folder), (), replace=force)
        write(on_plain_base(self.shared_adapter, self.contents(name)), Path(folder), method)

    def contents(self, name: str) -> Contents:
        """Return a copy of an adapter that `add` accepts; it is relative to the shared adapter, if there is one.

        Or of the entry of a group, which `add_groups` accepts. All copies have the bases of the bank itself: changing
        their entries in place would change the bank.

        Raises:
            InputError: if the bank has no adapter of this name.
        """
        with self.shared.one_thread:
            version = self.version_of(name)
            slot = self.slots[name]
            updates = dict[str, Update]()
            for module in self.of_base:  # keeps the model's order of modules
                update = self.layers[module].update(slot) if module in self.layers else None
                if update is not None:
                    updates[module] = update
            tensors = dict[str, Tensor]()
            endings = list[str]()
            for module, head in self.heads.items():
                state = head.state(slot)
                tensors |= {f"{module}.{key}": value for key, value in state.items()}
                if state:
                    endings.append(f".{module}")
            task_info = version.task_info or None
            return Contents(name, self.base_fields, updates, tensors, tuple(endings), task_info)

    def save(
        self,
        folder: str | Path,
        *,
        force: bool = False,
    ) -> None:
        """Write the whole bank to one file in a folder, and a shared adapter to a subfolder, for `load`.

        The errors are those of `lsr.convert.writing`.
        """
        check_output(Path(folder), (), replace=force)
        with self.shared.one_thread:
            contents = self._file(folder)
        write_file(contents, Path(folder))

    def _file(self, folder: str | Path) -> BankFile:
        # Copies of all that a file has, which another thread may change afterwards.
        slots = [BASE_SLOT, *self.slots.values()]
        pools = {}
        for name, pool in self.pools().items():
            pools[name] = pool.copy_rows(slots)
            if not pool.form.are_bounded(pools[name].values):
                raise InputError(f"{folder}: {name} overflows in {self.shared.precision}")
        task_infos = {name: self.version_of(name).task_info for name in self.slots}
        bases = BasesOfLayers()
        for name, layer in self.layers.items():
            if layer.bases is not None:
                bases[name] = layer.bases, layer.core_size
        return BankFile(
            base=self.base_fields,
            precision=self.shared.precision,
            task_infos=task_infos,
            layers=[*self.layers],
            heads=[*self.heads],
            bases=bases,
            pools=pools,
            shared_adapter=self.shared_adapter,
        )

    @classmethod
    def load(cls, base: nn.Module | str | None, folder: str | Path) -> Self:
        """Return the bank that `save` wrote: its file is memory-mapped, not copied, after its checksums are verified.

        `base` is the base model, or its folder or hub repository; by default the one that the adapters name.

        Raises:
            InputError: if the bank is missing, a file is damaged or does not fit, or the base model is missing or does
                not fit.
        """
        contents = read_file(Path(folder))
        with wrap_errors(folder, ValueError, TypeError):
            bank = cls(_base_of(contents, base), precision=contents.precision)
            bank._fill(contents)
        return bank

    def _fill(self, contents: BankFile) -> None:
        # Take what a file holds, which anybody may have made, into a bank without adapters.
        check_modules(self._base, contents.layers, contents.heads)
        check_layers({name: bases.shape for name, (bases, _) in contents.bases.items()}, self.of_base)
        self.shared_adapter = contents.shared_adapter
        self.base_fields = contents.base
        self.slots = {name: slot for slot, name in enumerate(contents.task_infos, start=BASE_SLOT + 1)}
        self.shared.size += len(self.slots)
        self.wrap(contents.layers, contents.heads)
        for name, (bases, core_size) in contents.bases.items():
            layer = self.layers[name]
            if not layer.may_share(bases):
                raise InputError(f"{name}: its bases must be finite in {dtype_name(layer.dtype)}, as the base model is")
            layer.set_bases(bases, core_size)
        self._restore(contents.pools)
        sizes = self.sizes()
        for name, task_info in contents.task_infos.items():
            with wrap_errors(name, ValueError):
                check_stop_tokens(task_info, self._base.vocabulary)
                check_labels(task_info.get("labels"), self._outputs_at(self.slots[name]))
            versions = self.groups if is_reserved(name) else self.versions
            versions[name] = Version(task_info, contents.base, sizes[self.slots[name]])

    def _restore(self, stored: Mapping[str, StoredPool]) -> None:
        pools = self.pools()
        for name in sorted(stored.keys() ^ pools.keys()):
            raise InputError(f"{name} is {'missing' if name in pools else 'not part of its layers and heads'}")
        for name, pool in pools.items():
            with wrap_errors(name, ValueError):
                pool.restore(stored[name])
        for name, module in self._wrappers().items():
            with wrap_errors(name, ValueError):
                module.check_counts()


def _base_of(contents: BankFile, base: nn.Module | str | None) -> nn.Module:
    """Return the base model of a bank file with the shared adapter; `base` is as in `AdapterBank.load`."""
    if contents.shared_adapter is not None:
        return base_with(contents.shared_adapter, base)
    if isinstance(base, nn.Module):
        return base
    names = (name.partition("/")[2].replace("/", ".") for name in contents.pools)
    return load_base(contents.base, dict.fromkeys(names, torch.empty(0)), base)  # it may lack heads that the bank has
