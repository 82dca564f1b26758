"""Stream answers during generation, and handle clients that leave or do not read."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from lsr_server.answers import SMALL, json_bytes

Answer = TypeVar("Answer")

MAX_UNSENT = SMALL  # characters of a stream that its client has not read; with more, it is ended
STREAMED = "is_streamed"  # key in a request's state: between two pieces of its answer, the client waits for the server
DONE = b"data: [DONE]\n\n"


class GrowingText:
    """A growing text that one task extends and another sends, in one event loop."""

    def __init__(self) -> None:
        self._text = ""
        self._has_more = asyncio.Event()
        self.sent = 0  # characters

    def grow(self, text: str) -> None:
        """Set the text if it is longer than the present one; a failed batch generates its text again."""
        if len(text) > len(self._text):
            self._text = text
            self._has_more.set()

    def end(self) -> None:
        """Wake the sender, since no more text comes."""
        self._has_more.set()

    @property
    def is_left(self) -> bool:
        """Whether too much of the text is unread by the client."""
        return len(self._text) - self.sent > MAX_UNSENT

    async def more(self) -> None:
        """Wait until there is more text, or it is complete."""
        await self._has_more.wait()

    def take(self) -> str:
        """Return the text added since the last call."""
        self._has_more.clear()
        piece = self._text[self.sent :]
        self.sent = len(self._text)
        return piece


async def run_unless_left(request: Request, call: Awaitable[Answer]) -> Answer:
    """Return the result of a call, which is cancelled if the client leaves.

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
