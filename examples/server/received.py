"""What is received is read within limits: the body of a request, the files of an adapter, its task."""

from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from lsr.loading.contents import Contents, read_contents
from lsr.loading.files import InputError, read_config

FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_rounded.safetensors", "task.json")


def limited(request: Request, most: int) -> Request:
    """Return a request whose body is read up to so many bytes.

    Raises:
        HTTPException: 413, while a longer one is read.
    """
    left = most

    async def receive() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"a body has at most {most:,} bytes")
        return message

    return Request(request.scope, receive)


def read_adapter(folder: Path) -> Contents:
    """Return the adapter in a folder.

    Raises:
        InputError: if it is none, names frames in another folder of this machine, or has no task that can be served.
    """
    if read_config(folder).get("frames", "own") != "own":
        raise InputError(f"{folder}: names frames in another folder, which cannot be sent")
    contents = read_contents(folder)
    max_length_of(contents.task)
    return contents


def max_length_of(task: Any) -> int | None:
    """Return how many tokens an adapter reads according to its task; None if that is not said.

    Raises:
        InputError: if it is no positive number, or the adapter reads pairs of texts.
    """
    fields = task if isinstance(task, dict) else {}
    length, columns = fields.get("max_length"), fields.get("columns", ["text"])
    if not (length is None or (type(length) is int and length > 0)):
        raise InputError(f"task.json: max_length must be a positive whole number, got {length!r}")
    if not isinstance(columns, list) or len(columns) != 1:
        raise InputError(f"task.json: this server passes single texts, not those of the columns {columns!r}")
    return length
