"""One-line errors for users' mistakes: those of `lsr_onnx.errors`, and what only a base model needs."""

from collections.abc import Collection

from lsr_onnx.errors import (
    CONTROL,
    HALVES,
    InputError,
    escape,
    first_line,
    shortened,
    wrap_errors,
)

__all__ = [
    "CONTROL",
    "HALVES",
    "InputError",
    "NoBaseError",
    "check_held",
    "escape",
    "first_line",
    "shortened",
    "wrap_errors",
]


class NoBaseError(InputError):
    """The base model does not exist or cannot be loaded."""


def check_held(held: Collection[str], expected: Collection[str], whole: str) -> None:
    """Check that the present names are exactly the expected ones.

    Raises:
        ValueError: if one is missing or unexpected; names the first.
    """
    for name in sorted({*held} ^ {*expected}):
        problem = "is missing" if name in expected else f"is not part of {whole}"
        raise ValueError(f"{name} {problem}")
