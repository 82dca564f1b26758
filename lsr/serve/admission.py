"""Check the adapters that a bank admits: heads and adapted linear layers only, with finite outputs."""

from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.errors import InputError, wrap_errors
from lsr.loading.adapters import outputs
from lsr.loading.contents import Contents, check_layer, check_layers
from lsr.loading.updates import Update
from lsr.serve.group_names import name_group
from lsr.tuner.targets import heads_of
from lsr_onnx.names import check_name, make_label_names
from lsr_onnx.task import MULTI_LABEL, TENANTS, check_stop_tokens, validate_task_info

TEXTS = 2  # of the batch that checks an adapter; a layer that is called once for all texts would pass with a single one
EVEN = 0.5  # threshold of each label of a multi-label task before any is chosen on examples

Heads = Mapping[str, Mapping[str, Tensor]]  # the tensors of each, by name


def check_group(name: str, task_info: Mapping[str, Any] | None) -> None:
    """Check that an entry for a group of tenants has the name that follows from its labels.

    Raises:
        ValueError: if it has another name.
    """
    expected = name_group((task_info or {}).get("labels"))
    if name != expected:
        raise ValueError(f"the entry of a group of tenants with these labels must be named {expected}, got {name!r}")


def heads_in(model: nn.Module) -> list[str]:
    """Return the modules that a bank's adapters may train in full: the heads and, last, their last linear layer.

    The last linear layer has a row per label. A head has weights and is outside the model's backbone. Other modules
    could mix the rows of a batch, or are called with more than these rows.
    """
    has_backbone = getattr(model, "base_model_prefix", "") in dict(model.named_children())
    heads = heads_of(model) if has_backbone else []
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in linear if name.partition(".")[0] in heads]
    if not inside:
        return []
    last = inside[-1]
    return [name for name in heads if name != last] + [last]


def check_heads(heads: Sequence[str], names: Iterable[str]) -> None:
    """Reject fully trained modules other than these heads.

    Raises:
        ValueError: if there are any; names the module and the model's heads.
    """
    for name in names:
        if name not in heads:
            allowed = f"the heads of this model: {', '.join(heads)}" if heads else "this model has no head"
            reason = "a bank supports only heads and adapted linear layers"
            raise ValueError(f"trains {name!r} in full; {reason}; {allowed}")


@dataclass(frozen=True)
class BaseModel:
    """The base model of a bank, with its modules as they were before the bank wrapped some of them."""

    model: Any
    modules: Mapping[str, nn.Module]  # modules by name
    heads: Sequence[str]  # the modules that adapters may train in full
    labels: int
    vocabulary: int | None  # tokens; None if it is not a language model of transformers

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Wrap a model that is not yet in a bank."""
        labels = int(getattr(getattr(model, "config", None), "num_labels", 0))
        return cls(model, dict(model.named_modules()), heads_in(model), labels, vocabulary_of(model))


def add_task(base: BaseModel, contents: Contents) -> Contents:
    """Return an adapter with task info: without a file of it, that of the base model's configuration if multi-label.

    Raises:
        InputError: if it has too many labels.
    """
    problem_type = getattr(getattr(base.model, "config", None), "problem_type", None)
    if contents.task is not None or problem_type != MULTI_LABEL or not base.heads:
        return contents
    labels = contents.labels
    if labels is None:
        labels = make_label_names(base.labels)
    names = list(labels) or make_label_names(1)
    task_info = {"labels": names, "thresholds": [EVEN] * len(names)}
    return replace(contents, task=validate_task_info(task_info, contents.source))


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the size of a model's vocabulary; None if it is not a language model of transformers."""
    return getattr(_text_config(model), "vocab_size", None)


def _text_config(model: nn.Module) -> Any:
    """Return the configuration of a model; of its text model, if it takes texts and images; None if it has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def admit(
    base: BaseModel,
    adapters: Mapping[str, Contents],
    *,
    taken: Container[str],
    fields: Mapping[str, Any],
    adapted: Iterable[str],
    whole: Iterable[str],
    are_groups: bool = False,
) -> dict[str, Heads]:
    """Check that adapters may be added to a bank, and return their heads by adapter and fully trained module.

    `fields` describe the base model as the bank's adapters do. Names that are taken are rejected, and so are reserved
    ones unless they `are_groups`.

    Raises:
        InputError: as `AdapterBank.add`.
    """
    known = dict(fields)
    all_adapted = {*adapted}
    all_whole = {*whole}
    heads = dict[str, Heads]()
    for name, contents in adapters.items():
        with wrap_errors(contents.source, TypeError, ValueError):
            if are_groups:
                check_group(name, contents.task)
            else:
                check_name(name, taken)
            if TENANTS in (contents.task or {}):
                raise InputError("its head is for several tenants; use AdapterBank.of_tenants")
            _check_base(contents.base, known)
            check_stop_tokens(contents.task, base.vocabulary)
            check_layers(contents.shapes, base.modules)
            own = contents.fully_trained_modules(base.modules)
            check_heads(base.heads, own)
            all_adapted |= contents.updates.keys()
            all_whole |= {*own}
            _check_apart(all_adapted, all_whole)
            heads[name] = contents.head_tensors(base.modules, base.labels)
    answering = _with_finite_last_rows(base, adapters, heads)
    for name, contents in adapters.items():
        if name not in answering:
            with wrap_errors(contents.source, TypeError, ValueError):
                _check_answers(base, contents.updates, heads[name])
    return heads


def check_modules(
    base: BaseModel,
    layers: Sequence[str],
    heads: Sequence[str],
) -> None:
    """Check that a bank can adapt these layers of its base model and store these heads.

    Raises:
        ValueError: names a module that is missing, is not a head, or is inside another one; TypeError if a layer is not
            linear.
    """
    for name in layers:
        check_layer(name, base.modules)
    check_heads(base.heads, heads)
    _check_apart({*layers}, {*heads})


def _check_base(fields: Mapping[str, Any], known: dict[str, Any]) -> None:
    # All adapters of a bank describe the same base model; what one of them adds to the description is noted in `known`.
    for field, value in fields.items():
        if value is not None and value != known.setdefault(field, value):
            raise InputError(f"{field} is {value!r}, but {known[field]!r} for the adapters in the bank")


def _with_finite_last_rows(
    base: BaseModel, adapters: Mapping[str, Contents], heads: Mapping[str, Heads]
) -> Container[str]:
    """Return the adapters that only have rows of the last layer, if all their outputs are finite; otherwise none.

    One batch checks all of them, and there may be thousands.
    """
    last = base.heads[-1:]
    rows = list[str]()
    for name, own in heads.items():
        if [*own] == last and not adapters[name].updates:
            rows.append(name)
    if not rows or not last:
        return ()
    states = [heads[name][last[0]] for name in rows]
    together = {key: torch.cat([state[key] for state in states]) for key in states[0]}
    with suppress(ValueError):
        _check_answers(base, {}, {last[0]: together})
        return {*rows}
    return ()


def _check_apart(adapted: set[str], whole: set[str]) -> None:
    for outer, inner in product(sorted(whole), sorted(adapted | whole)):
        if f"{inner}.".startswith(f"{outer}.") and (inner != outer or inner in adapted):
            both = f"{inner!r} is adapted or trained, and {outer!r} trained in full"
            raise ValueError(f"{both}, by this adapter or one in the bank; a bank can hold only one of both")


@torch.no_grad()
def _check_answers(
    base: BaseModel,
    updates: Mapping[str, Update],
    heads: Heads,
) -> None:
    # Pass short texts through the base model of a bank, which is not changed, with an adapter's updates and heads.
    texts = _count_texts(base.model)
    states = dict[str, Tensor]()
    named = {module: name for name, module in base.model.named_modules()}
    with torch.compiler.set_stance("force_eager"), ExitStack() as hooks:  # a compiled model would be compiled for hooks
        for name, update in updates.items():
            hooks.enter_context(base.modules[name].register_forward_hook(partial(_add, name, texts, update.plain())))
        for name, state in heads.items():
            module = base.modules[name]
            hooks.enter_context(module.register_forward_pre_hook(partial(_check_call, name, texts), with_kwargs=True))
            like = module.state_dict()
            for key, value in state.items():
                states[f"{named[module]}.{key}"] = value.to(like[key])
        answers = outputs(base.model, texts, states, at_once=True)
    if answers is not None and not answers.isfinite().all():
        raise ValueError("its outputs are not finite: its weights overflow in this base model")


def _count_texts(model: nn.Module) -> int:
    """Return the number of texts of the batch that checks an adapter: models without a padding token take only one."""
    has_padding = getattr(_text_config(model), "pad_token_id", None) is not None
    return TEXTS if has_padding else 1


def _add(
    name: str,
    texts: int,
    plain: Update,
    _: nn.Module,
    inputs: tuple[Tensor, ...],
    output: Tensor,
) -> Tensor:
    x = inputs[0]
    _check_rows(name, texts, x)
    hidden = plain.scaling * F.linear(x, plain.bases.a.to(x))
    return output + F.linear(hidden, plain.bases.b.to(x)).to(output.dtype)


def _check_call(
    name: str,
    texts: int,
    _: nn.Module,
    inputs: tuple[Any, ...],
    named: dict[str, Any],
) -> None:
    if len(inputs) != 1 or named or not isinstance(inputs[0], Tensor):
        raise ValueError(f"trains {name!r} in full, which is not a head: the model calls it with more than one tensor")
    _check_rows(name, texts, inputs[0])


def _check_rows(
    name: str,
    texts: int,
    x: Tensor,
) -> None:
    # In XLNet and Longformer the first axis is that of tokens, experts are called with tokens of all texts, and DeBERTa
    # with share_att_key calls query_proj and key_proj with its positions, too.
    if len(x) != texts:
        count = "one text" if texts == 1 else f"{texts} texts"
        reason = "so a bank cannot tell the rows of a batch apart"
        raise ValueError(f"{name!r} is called with a first axis of {len(x)} for {count}, {reason}")
