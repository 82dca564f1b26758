"""Read uploaded adapters: untrusted files of a multipart form.

A large form takes long to parse, and its adapter to check. So its body goes to a file while it comes, and a thread does
both, with rests.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Scope

from lsr_onnx.errors import InputError
from lsr_onnx.runner import Runner
from lsr_server.aside import Aside
from lsr_server.bodies import MAX_JSON_BYTES, check_values, header_of

MAX_ADAPTER_BYTES = 16 << 20  # maximum size of a request with an adapter
PIECE = 1 << 20  # bytes of a body that are held in memory
JSON = ".json"  # extension of configurations; the others are tensors


class Uploads:
    """Reads uploaded adapters for a bank, one at a time."""

    def __init__(self, passes: Runner) -> None:
        self._passes = passes
        self._aside = Aside()

    async def read(self, request: Request, name: str) -> Any:
        """Return the adapter in a request's form; errors name the adapter instead of a folder."""
        with TemporaryDirectory() as body_folder, TemporaryDirectory() as folder:
            body = Path(body_folder, "body")
            await save_body(request.stream(), body)
            try:
                contents = await self._aside.run(partial(self._read, request.scope, body, Path(folder)))
            except InputError as error:
                raise InputError(str(error).replace(folder, name)) from None
        return replace(contents, source=name)

    def _read(self, scope: Scope, body: Path, folder: Path) -> Any:
        asyncio.run(write_files(scope, body, folder, self._passes.adapter_files))
        return self._passes.read_adapter(folder)


async def save_body(stream: AsyncIterator[bytes], path: Path) -> None:
    """Write the body of a request to a file as it arrives."""
    piece = bytearray()
    with path.open("wb") as file:
        async for chunk in stream:
            piece += chunk
            if len(piece) >= PIECE:
                await asyncio.to_thread(file.write, piece)
                piece = bytearray()
        await asyncio.to_thread(file.write, piece)


async def write_files(
    scope: Scope,
    body: Path,
    folder: Path,
    allowed: Sequence[str],
) -> None:
    """Parse the form in the file `body` and write its files to a folder; other names than `allowed` are rejected."""
    with body.open("rb") as file:

        async def receive() -> Message:
            piece = file.read(PIECE)
            return {"type": "http.request", "body": piece, "more_body": len(piece) == PIECE}

        async with Request(scope, receive).form(max_files=len(allowed), max_fields=0) as form:
            for name, part in form.multi_items():
                if name not in allowed:
                    raise HTTPException(422, f"{name[:100]!r}: the parts of the form are {', '.join(allowed)}")
                assert isinstance(part, UploadFile)  # max_fields=0 allows files only
                content = part.file.read()
                if name.endswith(JSON):
                    _check_json(name, content)
                else:
                    _check_json(f"the header of {name}", header_of(content))
                (folder / name).write_bytes(content)


def _check_json(name: str, content: bytes) -> None:
    if len(content) > MAX_JSON_BYTES:
        raise HTTPException(413, f"{name} has {len(content):,} bytes; at most {MAX_JSON_BYTES:,} are allowed")
    check_values(content.decode(errors="replace"), name)
