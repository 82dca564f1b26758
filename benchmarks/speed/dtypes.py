"""Which cases a processor can run in reasonable time."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from pipeline.core import console
from pipeline.training import emulated


class _Case(Protocol):
    @property
    def dtype(self) -> str: ...


Case = TypeVar("Case", bound=_Case)


def affordable(part: str, cases: Iterable[Case]) -> tuple[Case, ...]:
    """Return all cases, but without bf16 where torch multiplies it number by number, which would take hours."""
    if not emulated.is_needed():
        return tuple(cases)
    console.warn(f"{part}: bf16 is left out: torch has no fast products in bf16 on this processor")
    return tuple(case for case in cases if case.dtype != "bfloat16")
