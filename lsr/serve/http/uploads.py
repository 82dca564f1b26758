"""Read uploaded adapters: untrusted files of a multipart form.

A large form takes long to parse, and its adapter to check. So its body goes to a file while it comes, and a thread does
both, with rests.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Scope

from lsr.errors import InputError
from lsr.loading.contents import Contents, read_on
from lsr.loading.prompts import NO_TEMPLATE
from lsr.serve.http.aside import Aside
from lsr.serve.http.bodies import MAX_JSON_BYTES, check_values, header_of
from lsr.serve.passes import BatchRunner
from lsr.tuner.files import CONFIG, ROUNDED, TASK, WEIGHTS

MAX_ADAPTER_BYTES = 16 << 20  # maximum size of a request with an adapter
PIECE = 1 << 20  # bytes of a body that are held in memory
JSON = (CONFIG, TASK)
FILES = (*JSON, WEIGHTS, ROUNDED)


class Uploads:
    """Reads uploaded adapters for a bank, one at a time."""

    def __init__(self, passes: BatchRunner) -> None:
        self._passes = passes
        self._aside = Aside()

    async def read(self, request: Request, name: str) -> Contents:
        """Return the adapter in a request's form; errors name the adapter instead of a folder."""
        with TemporaryDirectory() as body_folder, TemporaryDirectory() as folder:
            body = Path(body_folder, "body")
            await save_body(request.stream(), body)
            try:
                contents = await self._aside.run(partial(self._read, request.scope, body, Path(folder)))
            except InputError as error:
                raise InputError(str(error).replace(folder, name)) from None
        return replace(contents, source=name)

    def _read(self, scope: Scope, body: Path, folder: Path) -> Contents:
        write_files(scope, body, folder)
        contents = read_on(self._passes.bank.of_base, folder)
        template = (contents.task or {}).get("template")
        own = self._passes.tokenizer.chat_template  # another is a program, which may take time and memory of all
        if template and template not in (NO_TEMPLATE, own):
            raise InputError(f"{folder}: task.json: template must be none or that of the base model's tokenizer")
        return contents


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


def write_files(scope: Scope, body: Path, folder: Path) -> None:
    """Parse the form in a file and write its files to a folder; runs in a thread."""
    asyncio.run(_write_files(scope, body, folder))


async def _write_files(scope: Scope, body: Path, folder: Path) -> None:
    with body.open("rb") as file:

        async def receive() -> Message:
            piece = file.read(PIECE)
            return {"type": "http.request", "body": piece, "more_body": len(piece) == PIECE}

        async with Request(scope, receive).form(max_files=len(FILES), max_fields=0) as form:
            for name, part in form.multi_items():
                if name not in FILES:
                    raise HTTPException(422, f"{name[:100]!r}: the parts of the form are {', '.join(FILES)}")
                assert isinstance(part, UploadFile)  # max_fields=0 allows files only
                content = part.file.read()
                if name in JSON:
                    _check_json(name, content)
                else:
                    _check_json(f"the header of {name}", header_of(content))
                (folder / name).write_bytes(content)


def _check_json(name: str, content: bytes) -> None:
    if len(content) > MAX_JSON_BYTES:
        raise HTTPException(413, f"{name} has {len(content):,} bytes; at most {MAX_JSON_BYTES:,} are allowed")
    check_values(content.decode(errors="replace"), name)
