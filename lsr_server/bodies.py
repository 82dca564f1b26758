"""Parse the JSON bodies of requests within limits, since parsing blocks all other threads."""

import json
from typing import Any

from starlette.exceptions import HTTPException

MAX_JSON_BYTES = 1 << 20  # maximum size of a request, or of a file of an adapter, that is JSON
# Maximum number of values in it, counted by the signs around them: objects with many keys and lists of lists take the
# longest to parse. A conversation of 10,000 messages has as many.
MAX_VALUES = 50_000
SIGNS = ",:[{"


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON body."""
    try:
        text = content.decode()
        check_values(text, "a body")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {error}") from None


def header_of(content: bytes) -> bytes:
    """Return the JSON header of a safetensors file; the first eight bytes are its length."""
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length]


def check_values(text: str, name: str) -> None:
    """Reject JSON that may take long to parse; `name` says which in the error."""
    if count_of_signs(text) > MAX_VALUES:
        raise HTTPException(422, f"{name} has over {MAX_VALUES:,} JSON values; at most that is allowed")


def count_of_signs(text: str) -> int:
    """Return the number of structural characters of a JSON text, outside its strings."""
    without_escaped = text.replace(r"\\", "").replace(r"\"", "")
    outside = "".join(without_escaped.split('"')[::2])
    return sum(map(outside.count, SIGNS))
