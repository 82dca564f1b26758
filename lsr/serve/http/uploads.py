"""Adapters that clients send as the files of a form, which may hold anything."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from lsr.loading.contents import Contents, read_on
from lsr.loading.prompts import NO_TEMPLATE
from lsr.serve.http.aside import Aside
from lsr.serve.http.bodies import MOST_JSON_BYTES, check_values, header_of
from lsr.serve.passes import Passes
from lsr.tuner.files import CONFIG, ROUNDED, TASK, WEIGHTS
from lsr.tuner.mistakes import InputError

MOST_ADAPTER_BYTES = 16 << 20  # maximum size of a request with an adapter
JSON = (CONFIG, TASK)
FILES = (*JSON, WEIGHTS, ROUNDED)


class Uploads:
    """Reads the adapters that clients send for a bank, one at a time."""

    def __init__(self, passes: Passes, aside: Aside) -> None:
        self._passes = passes
        self._aside = aside
        self._thread = ThreadPoolExecutor(1)

    async def read(self, request: Request, name: str) -> Contents:
        """Return the adapter in the form of a request; errors name the adapter in place of its folder."""
        with TemporaryDirectory() as folder:
            await self._receive(request, Path(folder))
            try:
                loop = asyncio.get_running_loop()
                contents = await loop.run_in_executor(self._thread, self._read, Path(folder))
            except InputError as error:
                raise InputError(str(error).replace(folder, name)) from None
        return replace(contents, source=name)

    async def _receive(self, request: Request, folder: Path) -> None:
        """Write the files of a form to a folder."""
        async with request.form(max_files=len(FILES), max_fields=0) as form:
            for file, part in form.multi_items():
                if file not in FILES:
                    raise HTTPException(422, f"{file[:100]!r}: the parts of the form are {', '.join(FILES)}")
                assert isinstance(part, UploadFile)  # as max_fields is 0
                content = await part.read()
                if file in JSON:
                    await self._check_json(file, content)
                else:
                    await self._check_json(f"the header of {file}", header_of(content))
                (folder / file).write_bytes(content)

    async def _check_json(self, name: str, content: bytes) -> None:
        if len(content) > MOST_JSON_BYTES:
            raise HTTPException(413, f"{name} has {len(content):,} bytes; at most {MOST_JSON_BYTES:,} are allowed")
        await self._aside.run(partial(check_values, content.decode(errors="replace"), name))

    def _read(self, folder: Path) -> Contents:
        contents = read_on(self._passes.bank.of_base, folder)
        template = (contents.task or {}).get("template")
        own = self._passes.tokenizer.chat_template  # another is a program, which may take time and memory of all
        if template and template not in (NO_TEMPLATE, own):
            raise InputError(f"{folder}: task.json: template must be none or that of the base model's tokenizer")
        return contents
