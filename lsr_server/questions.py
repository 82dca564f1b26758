"""Validate requests: the length of the body, the fields of a question, and the token for changes of adapters."""

import os
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request

from lsr_onnx.runner import CHARACTERS, MAX_TEXTS, Runner
from lsr_server.aside import Aside
from lsr_server.bodies import MAX_JSON_BYTES, parse_json
from lsr_server.tenant_fields import LABELS, read_labels


class Group(NamedTuple):
    """The tenants with the same labels, in any order."""

    labels: tuple[str, ...] | None  # None for numbers


class Question(NamedTuple):
    """The parsed request to an adapter."""

    adapter: str
    texts: list[Any]  # texts to classify, or prompts
    max_new_tokens: int  # limit to the generated tokens; 0 where an adapter predicts
    group: Group | None = None  # None if the request names no labels


def has_long_text(texts: Sequence[Any], tokens: int) -> bool:
    """Return whether a text, or a message of a prompt, is so long that `tokens` of it are read only in part."""
    for text in texts:
        parts = text if isinstance(text, list) else [text]
        for part in parts:
            content = part.get("content") if isinstance(part, dict) else part
            if isinstance(content, str) and len(content) > CHARACTERS * tokens:
                return True
    return False


def read_question(
    content: Any,
    max_new_tokens: int,
    *,
    takes_labels: bool = False,
) -> Question:
    """Return the question in a request.

    `max_new_tokens` is the largest allowed value, 0 for predictions. If it `takes_labels`, a request may name those of
    its tenant.

    Raises:
        HTTPException: if the request has another form; InputError if a label is beyond the limits of task.json.
    """
    group = None
    if takes_labels and isinstance(content, dict) and LABELS in content:
        group = Group(read_labels({LABELS: content[LABELS]}))
        content = {name: value for name, value in content.items() if name != LABELS}
    field = "prompts" if max_new_tokens else "texts"
    fields = {"adapter", field, "max_new_tokens"} if max_new_tokens else {"adapter", field}
    if isinstance(content, dict) and content.keys() == fields:
        name = content["adapter"]
        texts = content[field]
        count = content.get("max_new_tokens", 0)
        is_count = type(count) is int and bool(max_new_tokens) <= count <= max_new_tokens
        are_texts = isinstance(texts, list) and 0 < len(texts) <= MAX_TEXTS
        if isinstance(name, str) and are_texts and is_count:
            return Question(name, texts, count, group)
    example = f'"{field}": [TEXT, ...]'
    if max_new_tokens:
        example += f', "max_new_tokens": 1 to {max_new_tokens}'
    raise HTTPException(422, f'needed: {{"adapter": NAME, {example}}}, a list of 1 to {MAX_TEXTS}')


async def read_json(request: Request, aside: Aside) -> Any:
    """Return the value of a request's JSON body; large bodies are parsed by `Aside`."""
    check_body(request, MAX_JSON_BYTES)
    body = await request.body()
    return await aside.run_if_large(len(body), partial(parse_json, body))


def check_body(request: Request, most: int) -> None:
    """Reject a request whose body is too large or has no Content-Length."""
    length = request.headers.get("Content-Length")
    if length is None or "Transfer-Encoding" in request.headers:
        raise HTTPException(411, "needed: Content-Length")
    if int(length) > most:  # the server reads no more than that
        raise HTTPException(413, f"a body has at most {most:,} bytes")


def check_change(request: Request, passes: Runner) -> None:
    """Reject a change of adapters of a graph, or without the server's token."""
    if not passes.can_change:
        raise HTTPException(422, "the adapters of a graph do not change: export the bank again")
    check_token(request)


def check_token(request: Request) -> None:
    """Reject a change of adapters without the server's token."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    token = os.environ.get("LSR_TOKEN")
    is_bearer = scheme.lower() == "bearer"  # in any case, according to RFC 9110
    sent = given.encode("latin-1")  # the bytes that were sent, in any encoding
    if not token or not is_bearer or not secrets.compare_digest(sent, token.encode()):
        raise HTTPException(401, "needed: Authorization: Bearer $LSR_TOKEN", {"WWW-Authenticate": "Bearer"})
