"""Names: of adapters, which every answer repeats, and of labels that have none."""

import re
from collections.abc import Container, Sequence

from lsr_onnx.errors import CONTROL

BASE = "__base__"  # PEFT's name for a row without an adapter
LONGEST_NAME = 255  # bytes of an adapter's name, as of a folder's on usual file systems
RESERVED = re.compile("__group_.*", re.DOTALL)
NO_NAME = re.compile(rf"{CONTROL.pattern}|[/\\]")  # control characters, halves, parts of a path


def check_name(name: str, taken: Container[str] = ()) -> None:
    """Reject names that are not safe as folder names or on terminals.

    Each answer repeats the name, so its length is limited, too.

    Raises:
        ValueError: if the name is taken or not allowed; the message lists what is allowed.
    """
    size = len(name.encode(errors="replace"))
    if size > LONGEST_NAME:
        raise ValueError(f"an adapter's name must have at most {LONGEST_NAME} bytes in UTF-8, got {name[:30]!r}...")
    if name in taken:
        raise ValueError(f"an adapter named {name!r} is in the bank; replace=True replaces it")
    if name in ("", ".", "..", BASE) or NO_NAME.search(name):
        allowed = f"must be non-empty, not {BASE!r}, and have no path separators, control characters or lone surrogates"
        raise ValueError(f"an adapter's name {allowed}, got {name!r}")
    if is_reserved(name):
        reserved = "__group_, which is for groups of tenants"
        raise ValueError(f"an adapter's name must not begin with {reserved}, got {name!r}")


def is_reserved(name: str) -> bool:
    """Return whether a name is reserved for groups of tenants (`lsr.serve.group_names`)."""
    return RESERVED.fullmatch(name) is not None


def check_labels(names: Sequence[str] | None, outputs: int) -> None:
    """Check that a head has one output per label of the task; None if the task does not name them.

    Raises:
        ValueError: if not, or if two labels have the same name.
    """
    if names is None:
        return
    different = len(set(names))
    are_different = different == len(names)
    if are_different and different == outputs:
        return
    named = f"its task names {different} different labels"
    raise ValueError(f"{named}, but its head has {outputs} outputs")


def make_label_names(count: int) -> list[str]:
    """Return default names of labels, as transformers makes them: LABEL_0 and so on."""
    return [f"LABEL_{number}" for number in range(count)]
