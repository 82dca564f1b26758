"""What a bank admits: only heads and adapted linear layers, with finite answers; untrusted adapters can hold more."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lsr.convert.parity import outputs, probe_ids
from lsr.loading.contents import HALVES, Contents
from lsr.loading.update import Update
from lsr.tuner.mistakes import CONTROL, InputError, first_line
from lsr.tuner.mixed_batch import BASE
from lsr.tuner.targets import heads_of, last_linear

State = Mapping[str, Tensor]  # of a head: its tensors by name
NO_NAME = re.compile(rf"{CONTROL.pattern}|{HALVES.pattern}|[/\\]")  # control characters, halves, parts of a path


def check_name(name: str, taken: Container[str] = ()) -> None:
    """Refuse a name that no adapter of a bank may have: it may become that of a folder, and is shown on terminals.

    Raises:
        ValueError: if it is taken, or says which names are allowed.
    """
    if name in taken:
        raise ValueError(f"an adapter named {name!r} is in the bank; replace=True replaces it")
    if name in ("", ".", "..", BASE) or NO_NAME.search(name):
        allowed = f"must not be empty, {BASE!r} or a path, nor hold control or half characters"
        raise ValueError(f"an adapter's name {allowed}, got {name!r}")


class Admission:
    """What an adapter must be for a bank of a base model to take it, and its answers with it."""

    def __init__(self, model: Any, labels: int) -> None:
        self.model, self.labels = model, labels
        self.modules = dict(model.named_modules())  # of the base model, which a bank will have wrapped
        has_backbone = getattr(model, "base_model_prefix", "") in dict(model.named_children())
        self.heads, self.last = (heads_of(model), last_linear(model)) if has_backbone else ([], None)

    def check(
        self,
        adapters: Mapping[str, Contents],
        taken: Container[str],  # names
        fields: dict[str, Any],  # the base model according to the adapters in the bank; is completed
        adapted: set[str],  # layers in the bank, and modules that adapters in it trained in full; are completed
        whole: set[str],
    ) -> dict[str, Mapping[str, State]]:
        """Return the state of each head of each adapter.

        Raises:
            InputError: if one has a name that is taken or not allowed, or does not fit the base model or the others; if
                it trains more than heads and linear layers, or its answers are not finite.
        """
        found = dict[str, Mapping[str, State]]()
        for name, contents in adapters.items():
            with _naming(contents):
                check_name(name, taken)
                self._check_base(contents, fields)
                self._check_modules(contents, adapted, whole)
                found[name] = contents.heads_on(self.modules, self.labels)
        passed = self._passed_at_once({name: its for name, its in found.items() if not adapters[name].updates})
        for name, contents in adapters.items():
            if name not in passed:
                with _naming(contents):
                    check_answers(self.model, self.modules, contents.updates, found[name])
        return found

    def check_heads(self, names: Iterable[str]) -> None:
        """Refuse modules trained in full that are no heads: a head has weights, and stands beside the backbone.

        In any other module a row of a batch could reach those of others, or the module would be called with more than
        the rows. The last linear layer in a head is taken, too.

        Raises:
            ValueError: names the module, and the heads that there are.
        """
        for name in names:
            if name not in (*self.heads, self.last):
                there_are = f"the heads of this model: {', '.join(self.heads)}" if self.heads else "it has no head"
                raise ValueError(
                    f"trains {name!r} in full; a bank takes heads and adapted linear layers alone; {there_are}"
                )

    def _check_base(self, contents: Contents, fields: dict[str, Any]) -> None:
        for field, value in contents.base.items():
            if value is not None and value != fields.setdefault(field, value):
                raise ValueError(f"{field} is {value!r}, but {fields[field]!r} for the adapters in the bank")

    def _check_modules(self, contents: Contents, adapted: set[str], whole: set[str]) -> None:
        contents.check_layers(self.modules)
        self.check_heads(own := contents.whole(self.modules))
        adapted |= contents.updates.keys()
        whole |= {*own}
        for outer, inner in product(sorted(whole), sorted(adapted | whole)):
            if f"{inner}.".startswith(f"{outer}.") and (inner != outer or inner in adapted):
                both = f"{inner!r} is adapted or trained, and {outer!r} trained in full"
                raise ValueError(f"{both}, by this adapter or one in the bank; a bank can hold only one of both")

    def _passed_at_once(self, heads: Mapping[str, Mapping[str, State]]) -> Container[str]:
        """Return those with nothing but rows of the last layer, if the answers of all of them, in one pass, are finite.

        No row depends on another. If one is not, each is to be checked on its own, to name it.
        """
        rows = {name: its[self.last] for name, its in heads.items() if self.last and [*its] == [self.last]}
        if rows:
            keys = next(iter(rows.values()))
            together = {key: torch.cat([state[key] for state in rows.values()]) for key in keys}
            with suppress(ValueError):
                check_answers(self.model, self.modules, {}, {str(self.last): together})
                return rows
        return ()


@torch.no_grad()
def check_answers(
    model: Any,
    modules: Mapping[str, nn.Module],  # of the base model, which a bank may have wrapped
    updates: Mapping[str, Update],
    heads: Mapping[str, State],
) -> None:
    """Pass one short text through a model with an adapter's updates and heads; it is not changed.

    Raises:
        ValueError: if the output is not finite, or a head is called with more than one tensor.
    """
    ids = probe_ids(model)
    if ids is None:
        return
    with torch.compiler.set_stance("force_eager"), ExitStack() as hooks:  # a compiled model would be compiled for hooks
        for name, update in updates.items():
            hooks.callback(modules[name].register_forward_hook(_adding(update)).remove)
        for name, state in heads.items():
            hooks.callback(modules[name].register_forward_hook(_replacing(name, state), with_kwargs=True).remove)
        found = outputs(model, ids[:1])
    if not torch.isfinite(found).all():
        raise ValueError("its answers are not finite: its weights overflow in this base model")


@contextmanager
def _naming(contents: Contents) -> Iterator[None]:
    """Say where an adapter comes from that does not fit.

    Raises:
        InputError: in place of another error.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InputError(f"{contents.source}: {first_line(error)}") from None


def _adding(update: Update) -> Callable[..., Tensor]:
    plain = update.plain()
    frames, scaling = plain.frames, plain.scaling

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        hidden = scaling * F.linear(x, frames.a.to(x))
        return output + F.linear(hidden, frames.b.to(x)).to(output.dtype)

    return add


def _replacing(name: str, state: Mapping[str, Tensor]) -> Callable[..., Any]:
    is_replaced = False

    def replace(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        nonlocal is_replaced
        if is_replaced:  # the call below comes here, too
            return output
        if len(inputs) != 1 or named or not isinstance(inputs[0], Tensor):
            raise ValueError(f"trains {name!r} in full, which is no head: the model calls it with more than one tensor")
        is_replaced = True
        try:
            return functional_call(module, {key: value.to(inputs[0]) for key, value in state.items()}, inputs)
        finally:
            is_replaced = False

    return replace
