"""Which versions of PEFT this package works with: said when it is imported, not by what breaks later."""

import warnings

OLDEST, NEXT = (0, 21), (0, 22)  # of PEFT, as in pyproject.toml; a minor version of it may change what we build on


def check_peft(found: str) -> None:
    """Refuse a PEFT that lacks what we build on, and warn of one that nobody has tried.

    Raises:
        ImportError: if it is older than the oldest that passes the tests.
    """
    version = tuple(int(part) for part in found.split(".")[:2])
    needed = f"peft>={_text(OLDEST)},<{_text(NEXT)}"
    if version < OLDEST:
        raise ImportError(f"lsr needs {needed}, and {found} is installed; install it with: pip install '{needed}'")
    if version >= NEXT:
        warnings.warn(f"lsr is tested with {needed}, and {found} is installed", stacklevel=3)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
