"""The modules of a bank that replace linear layers and heads, so that each row of a batch has its own adapter.

The parameters of all adapters are in row pools. A batch gathers them by row and applies them in batched products.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, NamedTuple, Self, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lsr.init.passes import widths
from lsr.loading.contents import by_label
from lsr.loading.updates import Bases, Change, Update, find_device
from lsr.serve.row_pool import RowPool
from lsr.tuner.forms import SMALL
from lsr_onnx.task import MAX_LABELS

# Row pools of a layer:
DIRECTIONS = "directions"
CORES = "cores"
SCALING = "scaling"

State = Mapping[str, Tensor]  # tensors of a module, or rows of its row pools, by name
Packed = dict[RowPool, Tensor]  # rows in the form in which row pools store them; without those that have none


class Version(NamedTuple):
    """The metadata of an adapter in a bank; replacing the adapter makes a new version."""

    task_info: dict[str, Any]  # the contents of its task.json
    base: Mapping[str, Any]  # the base model according to its configuration
    size: int  # upper bound of its ranks and labels; the cost of its rows in a batch grows with it


@dataclass
class BatchState:
    """State shared by a bank's modules: precision, and the adapter of each row of a batch. Threads take turns."""

    precision: str
    labels: int  # number of labels of the base model
    size: int = 1  # number of slots, including the slot BASE_SLOT
    slots: Tensor | None = None  # (rows,), while a batch passes through the bank
    copied_slots: Tensor | None = None  # (rows,), in generation for each beam or answer
    rank: int = 0  # upper bound of the ranks in this batch, which a layer computes for each row
    outputs: int = 0  # likewise of the labels in their heads
    one_thread: Any = field(default_factory=RLock)
    all_bases: WeakSet[Bases] = field(default_factory=WeakSet)  # those of all layers

    def own(self, bases: Bases) -> Bases:
        """Return equal bases of a layer of the bank or, if there are none, a copy that only the bank has."""
        for own in self.all_bases:
            if own.equals(bases):
                return own
        return Bases(a=bases.a.detach().clone(), b=bases.b.detach().clone())

    def slots_of(self, rows: int) -> Tensor | None:  # (rows,)
        """Return the slots of as many rows as a module is called with; None while no batch passes.

        In generation, an encoder is called with the rows of the batch, and a decoder with consecutive copies of each.
        """
        if self.slots is None or rows == len(self.slots):
            return self.slots
        return self.copied_slots


class PooledModule(nn.Module):
    """A wrapped module of the base model with row pools by name; each adapter has one slot in them."""

    def __init__(self, base: nn.Module, shared: BatchState) -> None:
        super().__init__()
        self.base = base
        self.shared = shared
        self.pools: dict[str, RowPool] = {}

    def add_pool(
        self,
        name: str,
        *parts: int,
        precision: str | None = None,
        is_single: bool = False,
    ) -> None:
        """Add a row pool, on the device of the base module."""
        pool = RowPool(
            parts,
            self.shared.size,
            precision or self.shared.precision,
            is_single=is_single,
        )
        first = next(iter(self.base.state_dict().values()))
        pool.move_to(first.device)
        self.pools[name] = pool

    def _apply(self, fn: Change, recurse: bool = True) -> Self:
        # Row pools move with the module, but keep their dtypes, which a bank's file has, whatever the base model's is.
        # They are not its buffers, as torch compiles anew for each size of a buffer.
        super()._apply(fn, recurse)
        for pool in self.pools.values():
            pool.move_to(find_device(fn, pool.values))
        return self

    @property
    def is_unused(self) -> bool:
        """Whether no adapter has rows in this module."""
        return all(pool.is_unused for pool in self.pools.values())

    def pack(self, rows: State) -> Packed:
        """Return rows, given by name of the row pool, as they are stored."""
        return {self.pools[name]: self.pools[name].pack(own) for name, own in rows.items()}


class BankLayer(PooledModule):
    """A layer with low-rank updates of any rank, and cores between one pair of bases.

    The row pool `directions` has a row of A and a column of B per direction of an adapter. An adapter with a core
    between the layer's bases, which are those of the first adapter with a core, has one row of `cores` instead: the
    core, or its diagonal. Neither includes the scaling.
    """

    def __init__(self, base: nn.Module, shared: BatchState) -> None:
        super().__init__(base, shared)
        self.n, self.m = widths(base)
        self.bases: Bases | None = None
        self.core_size = 0  # entries of a core between the bases
        self.add_pool(DIRECTIONS, self.n, self.m)
        self.add_pool(SCALING, 1, precision="float32", is_single=True)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base layer."""
        return next(self.base.parameters()).dtype

    @property
    def weight(self) -> Tensor:
        """The weight of the base layer, whose dtype T5 reads, and with which Mamba computes itself."""
        return self.base.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base layer, which Mamba adds itself."""
        return cast("Tensor | None", self.base.bias)

    def rows_of(self, update: Update) -> State:
        """Return the rows of an adapter with this update."""
        core = update.core
        if core is not None and self._takes(update.bases, core.numel()):
            rows = {CORES: core.reshape(1, -1)}
        else:
            update = update.plain()
            bases = update.bases
            directions = torch.cat([bases.a, bases.b.T], dim=1)
            rows = {DIRECTIONS: directions}
        return {**rows, SCALING: torch.tensor([[update.scaling]])}

    def drop_unused(self) -> None:
        """Drop the bases when the last adapter with a core has left."""
        if self.bases is not None and self.pools[CORES].is_unused:
            self.bases = None
            del self.pools[CORES]

    def _takes(self, bases: Bases, core_size: int) -> bool:
        """Return whether cores between these bases can be stored here; the first suitable bases are adopted."""
        if self.bases is None and self.may_share(bases):
            self.set_bases(self.shared.own(bases), core_size)
        if self.bases is None or core_size != self.core_size:
            return False
        return bases.equals(self.bases)

    def may_share(self, bases: Bases) -> bool:
        """Return whether bases are finite in the dtype of the base layer: other adapters' rows multiply B by zeros."""
        return all(bool(side.to(self.dtype).isfinite().all()) for side in (bases.a, bases.b))

    def set_bases(self, bases: Bases, core_size: int) -> None:
        """Set the bases, and add a row pool for cores with this many entries."""
        device = self.pools[SCALING].values.device
        moved = bases.to(device)
        self.add_pool(CORES, core_size, is_single=True)
        self.bases = moved
        self.core_size = core_size
        self.shared.all_bases.add(moved)

    def check_counts(self) -> None:
        """Check that each slot has a scaling and either directions or a core, or nothing.

        Raises:
            ValueError: if not, or if there are more directions than allowed.
        """
        directions = self.pools[DIRECTIONS].counts
        updates = (directions > 0).int()
        if self.bases is not None:
            updates += self.pools[CORES].counts
        if not updates.equal(self.pools[SCALING].counts):
            raise ValueError("needed of each adapter: a scaling, and either directions or a core, or nothing")
        most = max(SMALL, min(self.n, self.m))
        if (directions > most).any():
            raise ValueError(f"the rank of an adapter is {int(directions.max())}; at most {most} is allowed")

    def update(self, slot: int) -> Update | None:
        """Return a copy of the update of the adapter at a slot; None if it does not adapt the layer."""
        scaling = self.pools[SCALING].rows(slot)
        if not len(scaling):
            return None
        update = self._core_at(slot)
        if update is None:
            directions = self.pools[DIRECTIONS].rows(slot)
            a, b = directions.split((self.n, self.m), dim=1)
            bases = Bases(a=a.contiguous(), b=b.T.contiguous())
            update = Update(bases, 1)
        return update._replace(alpha=float(scaling) * update.divisor)

    def _core_at(self, slot: int) -> Update | None:
        if self.bases is None:
            return None
        core = self.pools[CORES].rows(slot)
        if len(core) == 0:
            return None
        rank = len(self.bases.a)
        shape = (rank,) if self.core_size == rank else (rank, rank)
        return Update(self.bases, 1, core.view(shape))

    def forward(
        self,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:  # (rows, ..., n) -> (rows, ..., m)
        """Return the base layer's output plus, for each row, the update of its adapter."""
        result: Tensor = self.base(x, *args, **kwargs)
        slots = self.shared.slots_of(len(x))
        if slots is None:
            return result
        total = result.reshape(len(x), -1, self.m)
        inputs = x.reshape(len(x), -1, self.n)
        scaling = self.pools[SCALING].take(slots)  # (rows, 1, 1)
        if self.shared.rank:
            directions = self.pools[DIRECTIONS].take(slots, self.shared.rank)
            a, b = directions.split((self.n, self.m), dim=2)  # (rows, rank, n or m)
            hidden = torch.bmm(inputs, a.to(x.dtype).mT)  # (rows, tokens, rank)
            hidden = hidden * scaling
            total = torch.baddbmm(
                total,
                hidden.to(total.dtype),
                b.to(total.dtype),
            )
        if self.bases is not None:
            a = self.bases.a.to(x.dtype)
            hidden = F.linear(inputs, a)
            hidden = self._clear_without_core(hidden, slots)
            hidden = self._times_cores(hidden, slots) * scaling
            hidden = hidden.flatten(0, 1).to(total.dtype)
            b = self.bases.b.to(total.dtype)
            summed = torch.addmm(total.flatten(0, 1), hidden, b.T)
            total = summed.view(total.shape)
        return total.view(result.shape)

    def _clear_without_core(self, hidden: Tensor, slots: Tensor) -> Tensor:  # (rows, tokens, rank), (rows,)
        # In rows without a core A x may overflow, whatever A is, and infinity times a core of zeros is not a number.
        counts = self.pools[CORES].counts.index_select(0, slots)
        return torch.where(counts[:, None, None] > 0, hidden, 0)

    def _times_cores(self, hidden: Tensor, slots: Tensor) -> Tensor:  # (rows, tokens, rank), (rows,)
        cores = self.pools[CORES].take(slots)  # (rows, 1, entries)
        cores = cores.to(hidden.dtype)
        rank = hidden.shape[2]
        if self.core_size == rank:
            return hidden * cores
        return torch.bmm(hidden, cores.view(-1, rank, rank).mT)


class BankHead(PooledModule):
    """Any module, with one row pool per tensor of its state dict; the tensor's first axis becomes rows.

    Rows of a batch whose adapter has no such state, or that have no adapter, have the base model's output. An adapter
    may have another number of labels than the base model: each row has as many outputs as the largest head, padded with
    -inf.
    """

    def __init__(self, base: nn.Module, shared: BatchState) -> None:
        super().__init__(base, shared)
        self.like = _outline(base)
        for name, value in self.like.items():
            self.add_pool(name, _as_rows(value).shape[1])
        self.labelled = by_label(self.like, shared.labels)

    def _apply(self, fn: Change, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.like = _outline(self.base)  # all heads compute in the dtype of the base model
        return self

    @property
    def _counted(self) -> RowPool:
        """The row pool whose counts are the labels of each slot's head."""
        names = self.labelled or list(self.like)
        return self.pools[names[0]]

    def check_counts(self) -> None:
        """Check the number of rows of each slot and tensor: the module's, one per label, or none at all.

        Raises:
            ValueError: if a number is wrong, or there are more labels than allowed; names the tensor.
        """
        counts = self._counted.counts
        for name, pool in self.pools.items():
            needed = counts
            if name not in self.labelled:
                rows = len(_as_rows(self.like[name]))
                needed = (counts > 0).int() * rows
            if not pool.counts.equal(needed):
                raise ValueError(f"{name} does not have the rows of a head for each adapter")
        most = int(counts.max())
        if self.labelled and most > MAX_LABELS:
            raise ValueError(f"a head has {most:,} outputs; at most {MAX_LABELS:,} are allowed")

    def rows_of(self, state: State) -> State:
        """Return the rows of an adapter with this state."""
        rows = dict[str, Tensor]()
        for name, value in state.items():
            rows[name] = _as_rows(value)
        return rows

    def drop_unused(self) -> None:
        """Drop nothing: a head has the same row pools for all adapters."""

    def state(self, slot: int) -> dict[str, Tensor]:
        """Return a copy of the state of the adapter at a slot; empty if it uses the base model's."""
        if not self._counted.count(slot):
            return {}
        state = dict[str, Tensor]()
        for name, pool in self.pools.items():
            state[name] = self._reshape(name, pool.rows(slot))
        return state

    def _reshape(self, name: str, rows: Tensor) -> Tensor:  # (..., most, width)
        like = self.like[name]
        shape = [*rows.shape[:-2]]
        if like.dim():
            shape += [-1, *like.shape[1:]]
        return rows.reshape(shape).to(like.dtype)

    def forward(
        self,
        x: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Apply each row's own module, all rows in one batched call."""
        of_base = self.base(x, *args, **kwargs)
        slots = self.shared.slots_of(len(x))
        if slots is None:
            return of_base

        def of_adapter(state: dict[str, Tensor], row: Tensor) -> Tensor:
            outputs = functional_call(self.base, state, (row[None], *args), kwargs)
            return outputs[0]

        of_adapters = vmap(of_adapter, randomness="different")
        outputs: Tensor = of_adapters(self._states(slots), x)
        pool = self._counted
        counts = pool.counts.index_select(0, slots)  # labels per row
        counts = counts.reshape(-1, *[1] * (outputs.dim() - 1))
        if self.labelled:
            most = max(len(pool.steps), self.shared.labels)
            of_base = _pad(of_base, most)
            outputs = _pad(outputs, most)
            steps = torch.arange(most, device=outputs.device)
            outputs = outputs.masked_fill(steps >= counts, -torch.inf)
        return torch.where(counts > 0, outputs, of_base)

    def _states(self, slots: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the module with an additional first axis for the rows of the batch."""
        states: dict[str, Tensor] = {}  # an annotated literal, which torch can compile
        for name, pool in self.pools.items():
            most = max(1, self.shared.outputs) if name in self.labelled else None
            rows = pool.take(slots, most)
            states[name] = self._reshape(name, rows)
        return states


def _outline(module: nn.Module) -> dict[str, Tensor]:
    """Return tensors with the names, shapes and dtypes of a module's, on the device "meta": without values."""
    return {name: value.detach().to("meta") for name, value in module.state_dict().items()}


def _as_rows(value: Tensor) -> Tensor:
    if value.dim() == 0:
        return value.reshape(1, 1)
    return value.reshape(len(value), -1)


def _pad(outputs: Tensor, most: int) -> Tensor:
    missing = most - outputs.shape[-1]
    return F.pad(outputs, (0, missing), value=-torch.inf)
