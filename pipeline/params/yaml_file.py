"""Read YAML mappings within limits."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import YAMLError

from lsr_onnx.folder import DEEPEST, is_deeper
from pipeline.core.errors import UserError

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
    if is_deeper(content):
        raise RecursionError
    return content


def by_dotted_key(value: Any, key: str) -> dict[str, Any]:
    """Return the values of nested sections by their dotted keys, each of which begins with `key`."""
    if not isinstance(value, dict):
        return {key: value}
    values = dict[str, Any]()
    for name, inner in value.items():
        values |= by_dotted_key(inner, f"{key}.{name}")
    return values
