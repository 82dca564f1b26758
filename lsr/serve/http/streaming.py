"""Answers that are sent while they are written, and clients that leave or do not read them."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lsr.serve.http.answers import SMALL, json_bytes

Answer = TypeVar("Answer")

MAX_UNSENT = SMALL  # characters of a stream that its client has not read; with more, it is ended
STREAMED = "is_streamed"  # key in a request's state: between two pieces of its answer, the client waits for the server
DONE = b"data: [DONE]\n\n"


class GrowingText:
    """A text that is written in one place and sent from another, within an event loop."""

    def __init__(self) -> None:
        self._text = ""
        self._has_more = asyncio.Event()
        self.sent = 0  # characters

    def grow(self, text: str) -> None:
        """Take the text as it is now, unless it is only what is there: a batch that failed is written again."""
        if len(text) > len(self._text):
            self._text = text
            self._has_more.set()

    def end(self) -> None:
        """End the waiting for more."""
        self._has_more.set()

    @property
    def is_left(self) -> bool:
        """Whether the client leaves too much of it unread."""
        return len(self._text) - self.sent > MAX_UNSENT

    async def more(self) -> None:
        """Wait until there is more, or the end."""
        await self._has_more.wait()

    def take(self) -> str:
        """Return what has not been taken yet."""
        self._has_more.clear()
        piece = self._text[self.sent :]
        self.sent = len(self._text)
        return piece


async def run_unless_left(request: Request, call: Awaitable[Answer]) -> Answer:
    """Return what a call returns; it is cancelled if the client leaves before that.

    The body of the request must have been read.

    Raises:
        ClientDisconnect: if the client has left.
    """
    task = asyncio.ensure_future(call)
    left = asyncio.create_task(_wait_for_leaving(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        left.cancel()
        with suppress(asyncio.CancelledError):
            await left


async def _wait_for_leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def encode_event(content: Any) -> bytes:
    """Return an event of a stream."""
    return b"data: %s\n\n" % json_bytes(content)
