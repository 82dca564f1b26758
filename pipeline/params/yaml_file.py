"""Read YAML mappings within limits."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import UserError

DEEPEST = 50  # values within values: far more than any setting has, and less than Python can parse
TOO_DEEP = f"more than {DEEPEST} values within one another"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the contents of a YAML mapping; the result is cached, so copy it before changing it.

    Raises:
        UserError: if the file is missing or not a mapping.
    """
    try:
        return parse_yaml(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the root of the repository") from None


def parse_yaml(text: bytes, path: Path) -> dict[str, Any]:
    """Parse a YAML mapping; the result is cached, so copy it before changing it.

    Raises:
        UserError: if it is not a mapping.
    """
    try:
        content = _parse(text)
    except MaxDepthExceededError as error:
        line = error.problem_mark.line + 1
        raise UserError(f"{path}: line {line}: {TOO_DEEP}") from None
    except (YAMLError, ValueError) as error:  # ruamel raises a ValueError for a date in month 13
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {reason}") from None
    except RecursionError:
        raise UserError(f"{path}: {TOO_DEEP}") from None
    if content is None:  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, got {content!r}")
    return content


@lru_cache(maxsize=8)
def _parse(text: bytes) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEEPEST
    content = yaml.load(text)
    if _is_too_deep(content):
        raise RecursionError
    return content


def _is_too_deep(content: Any) -> bool:
    """Return whether values are nested more than DEEPEST levels deep, also by aliases, which may form a cycle."""
    level: list[Any] = [[content]]
    for _ in range(DEEPEST + 2):
        inner = dict[int, Any]()
        for value in level:
            held = value.values() if isinstance(value, dict) else value
            inner |= {id(item): item for item in held if isinstance(item, dict | list)}
        level = list(inner.values())
        if not level:
            return False
    return True


def by_dotted_key(value: Any, key: str) -> dict[str, Any]:
    """Return the values of nested sections by their dotted keys, each of which begins with `key`."""
    if not isinstance(value, dict):
        return {key: value}
    values = dict[str, Any]()
    for name, inner in value.items():
        values |= by_dotted_key(inner, f"{key}.{name}")
    return values
