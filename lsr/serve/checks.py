"""What an adapter must be like to join a bank."""

from collections.abc import Mapping, Set
from typing import Any

from lsr.serve.answer import labels_in


def check_base(fields: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    """Check that an adapter's base model is that of a bank, as far as both name it.

    Raises:
        ValueError: if it is another; names the field.
    """
    for field, value in fields.items():
        expected = held.get(field, value)
        if value is not None and value != expected:
            raise ValueError(f"{field} is {value!r}, but {expected!r} for the adapters in the bank")


def check_nesting(adapted: Set[str], whole: Set[str]) -> None:
    """Check that no module that is trained in full holds another one that is adapted or trained.

    Raises:
        ValueError: names the modules.
    """
    for name in sorted(adapted | whole):
        inside = [head for head in whole if name.startswith(f"{head}.") or (name == head and name in adapted)]
        if inside:
            raise ValueError(
                f"{name!r} is adapted or trained, and {inside[0]!r} trained in full, by this adapter or one in the "
                "bank; a bank can hold only one of both"
            )


def check_note(note: Any, outputs: int) -> None:
    """Check that a task names as many labels as a head has outputs, if it names any.

    Raises:
        ValueError: if it does not.
    """
    labels = labels_in(note)
    if labels is not None and (not isinstance(labels, list) or len(labels) != outputs):
        named = f"{len(labels)} labels" if isinstance(labels, list) else "no list of labels"
        raise ValueError(f"its task names {named}, but its head has {outputs} outputs")
