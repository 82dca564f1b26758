"""What a request may hold, and who may change adapters; what is raised is the answer."""

import os
import secrets
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

MOST_TEXTS, MOST_BYTES, MOST_ADAPTER_BYTES = 64, 1 << 20, 16 << 20  # of a request


async def asked(request: Request, new_tokens: int) -> tuple[str, list[Any], int]:
    """Return an adapter's name, its texts or prompts, and how many tokens to write: 0, or `new_tokens` at most."""
    check_size(request, MOST_BYTES)
    try:
        content = await request.json()
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not JSON: {error}") from None
    match content, new_tokens:
        case {"adapter": str(name), "texts": [_, *_] as texts, **more}, 0 if not more and len(texts) <= MOST_TEXTS:
            return name, texts, 0
        case {"adapter": str(name), "prompts": [_, *_] as texts, "new_tokens": count, **more}, _ if not more:
            if len(texts) <= MOST_TEXTS and type(count) is int and 0 < count <= new_tokens:
                return name, texts, count
    fields = f'"prompts": [TEXT, ...], "new_tokens": 1 to {new_tokens}' if new_tokens else '"texts": [TEXT, ...]'
    raise HTTPException(422, f'needed: {{"adapter": NAME, {fields}}}, a list of 1 to {MOST_TEXTS}')


def check_size(request: Request, most: int) -> None:
    """Check the size of a body before it is read."""
    if "Transfer-Encoding" in request.headers or "Content-Length" not in request.headers:
        raise HTTPException(411, "needed: Content-Length")
    if int(request.headers["Content-Length"]) > most:  # the server reads no more than that
        raise HTTPException(413, f"a body has at most {most:,} bytes")


def permitted(request: Request) -> str:
    """Return the name of the adapter that a request may change."""
    given, token = request.headers.get("Authorization", "").encode(), os.environ.get("LSR_TOKEN")
    if not token or not secrets.compare_digest(given, f"Bearer {token}".encode()):
        raise HTTPException(401, "needed: Authorization: Bearer $LSR_TOKEN", {"WWW-Authenticate": "Bearer"})
    return request.path_params["name"]


def unknown(adapter: str) -> HTTPException:
    """Return the error for an adapter that is not in the bank, or has left it."""
    return HTTPException(404, f"no adapter is named {adapter[:100]!r}")
