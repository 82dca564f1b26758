"""What a bank admits: only heads and adapted linear layers, with finite answers; untrusted adapters can hold more."""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.loading.adapters import outputs
from lsr.loading.contents import TENANTS, Contents, check_layers
from lsr.loading.updates import Update
from lsr.tuner.mistakes import CONTROL, InputError, explained
from lsr.tuner.model import BASE
from lsr.tuner.targets import heads_of

Heads = Mapping[str, Mapping[str, Tensor]]  # the tensors of each, by name
NO_NAME = re.compile(rf"{CONTROL.pattern}|[/\\]")  # control characters, halves, parts of a path


def check_name(name: str, taken: Container[str] = ()) -> None:
    """Refuse a name that no adapter of a bank may have: it may become that of a folder, and is shown on terminals.

    Raises:
        ValueError: if it is taken, or says which are allowed.
    """
    if name in taken:
        raise ValueError(f"an adapter named {name!r} is in the bank; replace=True replaces it")
    if name in ("", ".", "..", BASE) or NO_NAME.search(name):
        allowed = f"must not be empty, {BASE!r} or a path, nor hold control or half characters"
        raise ValueError(f"an adapter's name {allowed}, got {name!r}")


def heads_in(model: nn.Module) -> list[str]:
    """Return the modules that adapters of a bank may train in full: the heads, and at last their last linear layer.

    That has a row for each label. A head has weights, and stands beside the model's backbone. In any other module a row
    of a batch could reach those of others, or the module would be called with more than the rows.
    """
    has_backbone = getattr(model, "base_model_prefix", "") in dict(model.named_children())
    heads, named = heads_of(model) if has_backbone else [], model.named_modules()
    linear = [name for name, its in named if isinstance(its, nn.Linear) and name.partition(".")[0] in heads]
    return [*(name for name in heads if name != linear[-1]), linear[-1]] if linear else []


def check_heads(heads: Sequence[str], names: Iterable[str]) -> None:
    """Refuse modules trained in full that are none of these heads.

    Raises:
        ValueError: names the module, and the heads that there are.
    """
    for name in names:
        if name not in heads:
            taken = "a bank takes heads and adapted linear layers alone"
            there_are = f"the heads of this model: {', '.join(heads)}" if heads else "this model has no head"
            raise ValueError(f"trains {name!r} in full; {taken}; {there_are}")


def admit(bank: Any, adapters: Mapping[str, Contents], *, replace: bool) -> dict[str, Heads]:
    """Return the heads of each adapter, of an AdapterBank that is not changed.

    Raises:
        InputError: as `AdapterBank.add`.
    """
    heads, fields = dict[str, Heads](), dict(bank.base_fields)
    adapted, whole = {*bank.layers}, {*bank.heads}
    for name, contents in adapters.items():
        with explained(contents.source, TypeError, ValueError):
            check_name(name, () if replace else bank.places)
            if TENANTS in (contents.task or {}):
                raise InputError("its head is that of many tenants; AdapterBank.of_tenants adds each of them")
            for field, value in contents.base.items():
                if value is not None and value != fields.setdefault(field, value):
                    raise InputError(f"{field} is {value!r}, but {fields[field]!r} for the adapters in the bank")
            check_layers(contents.shapes, bank.of_base)
            check_heads(bank.may_train, own := contents.whole(bank.of_base))
            adapted, whole = adapted | contents.updates.keys(), {*whole, *own}
            _check_apart(adapted, whole)
            heads[name] = contents.heads_on(bank.of_base, bank.shared.labels)
    rows = {name: its for name, its in heads.items() if [*its] == bank.may_train[-1:] and not adapters[name].updates}
    if rows:
        last, states = bank.may_train[-1], [its[bank.may_train[-1]] for its in rows.values()]
        together = {key: torch.cat([state[key] for state in states]) for key in states[0]}
        with suppress(ValueError):  # one pass for who has rows of the last layer alone, and there may be thousands
            _check_answers(bank, {}, {last: together})
            adapters = {name: contents for name, contents in adapters.items() if name not in rows}
    for name, contents in adapters.items():
        with explained(contents.source, TypeError, ValueError):
            _check_answers(bank, contents.updates, heads[name])
    return heads


def _check_apart(adapted: set[str], whole: set[str]) -> None:
    for outer, inner in product(sorted(whole), sorted(adapted | whole)):
        if f"{inner}.".startswith(f"{outer}.") and (inner != outer or inner in adapted):
            both = f"{inner!r} is adapted or trained, and {outer!r} trained in full"
            raise ValueError(f"{both}, by this adapter or one in the bank; a bank can hold only one of both")


@torch.no_grad()
def _check_answers(bank: Any, updates: Mapping[str, Update], heads: Heads) -> None:
    # Pass one short text through the base model of a bank, which is not changed, with an adapter's updates and heads.
    states = dict[str, Tensor]()
    named = {module: name for name, module in bank.model.named_modules()}
    with torch.compiler.set_stance("force_eager"), ExitStack() as hooks:  # a compiled model would be compiled for hooks
        for name, update in updates.items():
            hooks.enter_context(bank.of_base[name].register_forward_hook(partial(_add, name, update.plain())))
        for name, its in heads.items():
            module = bank.of_base[name]
            hooks.enter_context(module.register_forward_pre_hook(partial(_check_call, name), with_kwargs=True))
            like = module.state_dict()
            states |= {f"{named[module]}.{key}": value.to(like[key]) for key, value in its.items()}
        found = outputs(bank.model, 1, states)
    if found is not None and not found.isfinite().all():
        raise ValueError("its answers are not finite: its weights overflow in this base model")


def _add(name: str, plain: Update, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    _check_rows(name, inputs[0])
    x, frames = inputs[0], plain.frames
    return output + F.linear(plain.scaling * F.linear(x, frames.a.to(x)), frames.b.to(x)).to(output.dtype)


def _check_call(name: str, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    if len(inputs) != 1 or named or not isinstance(inputs[0], Tensor):
        raise ValueError(f"trains {name!r} in full, which is no head: the model calls it with more than one tensor")
    _check_rows(name, inputs[0])


def _check_rows(name: str, x: Tensor) -> None:
    # In XLNet and Longformer the first axis is that of tokens, and experts are called with tokens of all rows.
    if len(x) != 1:  # the number of rows in the batch
        reason = "a bank cannot tell the rows of a batch apart"
        raise ValueError(f"{name!r} is called with {len(x)} entries for one text, so {reason}")
