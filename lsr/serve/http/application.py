"""The routes of the server, which openapi.json describes, and the batches in which rows of different tenants pass.

Every error is JSON, {"error": REASON}.
"""

import asyncio
import os
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lsr.loading.contents import Contents, read_on
from lsr.serve.http.answers import SMALL, Room, check_size, longest_token, most_bytes, rendered
from lsr.serve.http.aside import Aside
from lsr.serve.http.bodies import MOST_JSON_BYTES, check_values, header_of, parsed
from lsr.serve.http.refusals import refusal
from lsr.serve.modules import Version
from lsr.serve.passes import NO_TEMPLATE, Passes, ReplacedError, Row, Said
from lsr.tuner.files import CONFIG, ROUNDED, TASK, WEIGHTS
from lsr.tuner.mistakes import InputError

MOST_TEXTS, MOST_ADAPTER_BYTES = 64, 16 << 20  # of a request
JSON = (CONFIG, TASK)
FILES = (*JSON, WEIGHTS, ROUNDED)
DESCRIPTION = Path(__file__).with_name("openapi.json")
SECONDS = Histogram("lsr_predict_seconds", "Seconds until texts are answered")
ADAPTERS = Gauge("lsr_adapters", "Adapters in the bank")
WAITING = Gauge("lsr_waiting_rows", "Rows that wait for a batch")
BATCHES = Histogram("lsr_batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
# All rows of a batch take the time and memory of the largest of their adapters. So those with a rank or a number of
# labels above LARGE pass apart, in every other batch at most, and there rows times that are at most ROOM.
LARGE, ROOM = 64, 1024
MOST = 64 * 64  # texts of a request times the size of their adapter: their answers are made between two batches

Asked = tuple[Row, "asyncio.Future[Said]"]


class Batches:
    """A bank and the rows that wait for it.

    All that reads or changes the bank's tensors runs in one thread, so an adapter comes, goes or is replaced between
    two batches and never within one.
    """

    def __init__(self, passes: Passes, rows: int, room: int, wait: float) -> None:
        self._passes, self._rows, self._room, self._wait = passes, rows, room, wait
        self._waiting: dict[str, deque[Asked]] = {}  # by adapter, first who is next
        self._came, self._was_large = asyncio.Event(), False
        self._thread = ThreadPoolExecutor(1)
        WAITING.set_function(self._count)

    def _count(self) -> int:
        return sum(map(len, [*self._waiting.values()]))

    async def answers(self, rows: list[Row]) -> list[Said]:
        """Return what each row of an adapter gets; refuse them all if there is no room, or half of it is its own.

        Raises:
            ReplacedError: if the adapter is replaced or removed before all rows have passed.
        """
        name = rows[0].adapter
        size = rows[0].version.size
        if len(rows) > 1 and len(rows) * size > MOST:
            raise HTTPException(422, f"at most {max(1, MOST // size)} at once for an adapter of this size")
        own = self._waiting.get(name, ())
        if self._count() + len(rows) > self._room or (own and 2 * (len(own) + len(rows)) > self._room):
            raise HTTPException(429, "too many texts are waiting; try again later", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in rows]
        self._waiting.setdefault(name, deque()).extend(zip(rows, answers, strict=True))
        self._came.set()
        try:
            return await asyncio.gather(*answers)
        finally:
            for answer in answers:  # of one that fails, the others shall not pass
                answer.cancel()

    async def in_turn(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return what a call returns that reads or changes the bank, made between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def run(self) -> None:
        """Pass batch after batch through the bank, until cancelled."""
        while True:
            await self._came.wait()
            if self._count() < self._rows:
                await asyncio.sleep(self._wait)
            self._drop()
            batch = self._next() if self._waiting else []
            if not self._waiting:
                self._came.clear()
            if batch:
                await self._pass(batch)

    async def _pass(self, batch: list[Asked]) -> None:
        BATCHES.observe(len(batch))
        found = await self.in_turn(self._passes.answers, [row for row, _ in batch])
        for (_, answer), its in zip(batch, found, strict=True):
            if not answer.done():  # nor cancelled
                (answer.set_exception if isinstance(its, Exception) else answer.set_result)(its)

    def _drop(self) -> None:
        # Let go of rows for which nobody waits, and of those whose adapter is another one now: it may be larger.
        versions = self._passes.bank.versions
        for name, asked in [*self._waiting.items()]:
            for row, answer in asked:
                if not answer.done() and row.version is not versions.get(name):
                    answer.set_exception(ReplacedError())
            left = deque((row, answer) for row, answer in asked if not answer.done())
            if left:
                self._waiting[name] = left
            else:
                del self._waiting[name]

    def _next(self) -> list[Asked]:
        """Take the rows of a batch, one of each adapter in turn; those of large ones apart."""
        sizes = {name: asked[0][0].version.size for name, asked in self._waiting.items()}
        kinds = {size > LARGE for size in sizes.values()}
        self._was_large = not self._was_large if len(kinds) > 1 else kinds.pop()
        names = deque(name for name, size in sizes.items() if (size > LARGE) == self._was_large)
        batch, largest = list[Asked](), 0
        while names and len(batch) < self._rows:
            largest = max(largest, sizes[name := names.popleft()])
            if batch and self._was_large and largest * (len(batch) + 1) > ROOM:
                break
            own = self._waiting.pop(name)
            batch.append(own.popleft())
            if own:  # it is the last now
                self._waiting[name] = own
                names.append(name)
        return batch


class Service:
    """The answers to requests."""

    def __init__(self, passes: Passes, rows: int, room: int, wait: float) -> None:
        self.passes, self.bank, self.batches = passes, passes.bank, Batches(passes, rows, room, wait)
        self._answer_room = Room()
        self._token_bytes = longest_token(passes.tokenizer) if passes.new_tokens else 0
        self._aside = Aside()
        self._of_adapters = ThreadPoolExecutor(1)  # one at a time
        ADAPTERS.set_function(lambda: len(self.bank.versions))

    async def answer(self, field: str, request: Request) -> Response:
        """Say of each of the `texts` what an adapter says, or write on after `prompts`, with the likeliest tokens."""
        new_tokens = self.passes.new_tokens
        if bool(new_tokens) != (field == "prompts"):
            writes = "writes: ask /v1/generate" if new_tokens else "does not write: ask /v1/predict"
            raise HTTPException(422, f"the base model of this bank {writes}")
        with SECONDS.time():
            name, texts, new_tokens = _asked(await self._json(request), new_tokens)
            # Answers of one version of an adapter: if it is replaced before the last of them, all is read again.
            while True:
                version = self.bank.versions.get(name)
                if version is None:
                    raise _unknown(name)
                with suppress(ReplacedError):
                    return await self._answers(field, name, version, texts, new_tokens)

    async def _answers(self, field: str, name: str, version: Version, texts: list[Any], new_tokens: int) -> Response:
        # Not in the loop of events, which one long text would stop.
        rows, size = await asyncio.to_thread(self._rows, name, version, texts, new_tokens)
        with self._answer_room.hold(size):
            answers = await self.batches.answers(rows)
            if None in answers:
                reason = "the answer is not finite: the weights of this adapter overflow"
                raise HTTPException(422, f"{field}[{answers.index(None)}]: {reason}")
            render = partial(rendered, name, answers)
            body = render() if size <= SMALL else await self._aside.run(render)
        return Response(body, media_type="application/json")

    def _rows(self, name: str, version: Version, texts: list[Any], new_tokens: int) -> tuple[list[Row], int]:
        # The rows of a request, and the most bytes of the response.
        each = most_bytes(version, new_tokens, self._token_bytes)
        check_size(len(texts), each, self._token_bytes, new_tokens)
        return self.passes.rows(name, version, texts, new_tokens), len(rendered(name, [])) + len(texts) * each

    async def _json(self, request: Request) -> Any:
        _check_size(request, MOST_JSON_BYTES)
        body = await request.body()
        return parsed(body) if len(body) <= SMALL else await self._aside.run(partial(parsed, body))

    async def _check_json(self, name: str, content: bytes) -> None:
        if len(content) > MOST_JSON_BYTES:
            raise HTTPException(413, f"{name} has {len(content):,} bytes; at most {MOST_JSON_BYTES:,} are allowed")
        await self._aside.run(partial(check_values, content.decode(errors="replace"), name))

    async def put(self, request: Request) -> Response:
        """Add or replace an adapter, whose files may hold anything."""
        name = _permitted(request)
        _check_size(request, MOST_ADAPTER_BYTES)
        with TemporaryDirectory() as folder:
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
                    Path(folder, file).write_bytes(content)
            try:
                loop = asyncio.get_running_loop()
                contents = await loop.run_in_executor(self._of_adapters, self._read, Path(folder))
                await self.batches.in_turn(lambda: self.bank.add(name, contents, replace=True))
            except InputError as error:
                raise HTTPException(422, str(error).replace(folder, name)) from None
        return JSONResponse({"adapter": name})

    def _read(self, folder: Path) -> Contents:
        contents = read_on(self.bank.of_base, folder)
        own = self.passes.tokenizer.chat_template  # another is a program, which may take time and memory of all
        if ((contents.task or {}).get("template") or NO_TEMPLATE) not in (NO_TEMPLATE, own):
            raise InputError(f"{folder}: task.json: template must be none or that of the base model's tokenizer")
        return contents

    async def delete(self, request: Request) -> Response:
        """Remove an adapter."""
        name = _permitted(request)
        try:
            await self.batches.in_turn(self.bank.remove, name)
        except InputError:
            raise _unknown(name) from None
        return Response(status_code=204)

    def application(self) -> Starlette:
        """Return the application, which passes batches through the bank while it runs."""

        @asynccontextmanager
        async def running(_: Starlette) -> AsyncIterator[None]:
            task = asyncio.create_task(self.batches.run())
            yield  # until uvicorn has answered the last request
            task.cancel()

        description = DESCRIPTION.read_bytes()
        routes = [
            Route("/v1/predict", partial(self.answer, "texts"), methods=["POST"]),
            Route("/v1/generate", partial(self.answer, "prompts"), methods=["POST"]),
            Route("/v1/adapters/{name}", self.put, methods=["PUT"]),
            Route("/v1/adapters/{name}", self.delete, methods=["DELETE"]),
            Route("/health", lambda _: JSONResponse({"status": "ok", "adapters": len(self.bank.versions)})),
            Route("/metrics", lambda _: Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})),
            Route("/openapi.json", lambda _: Response(description, media_type="application/json")),
        ]
        handlers: Any = {
            InputError: lambda _, error: refusal(str(error), 422),
            HTTPException: lambda _, error: refusal(error.detail, error.status_code, error.headers),
            ClientDisconnect: lambda *_: refusal("nobody reads this", 499),
            Exception: lambda *_: refusal("the server failed; its log says why", 500),
        }
        return Starlette(routes=routes, lifespan=running, exception_handlers=handlers)


def _asked(content: Any, new_tokens: int) -> tuple[str, list[Any], int]:
    # An adapter's name, its texts or prompts, and how many tokens to write: 0, or `new_tokens` at most.
    match content, new_tokens:
        case {"adapter": str(name), "texts": [_, *_] as texts, **more}, 0 if not more and len(texts) <= MOST_TEXTS:
            return name, texts, 0
        case {"adapter": str(name), "prompts": [_, *_] as texts, "new_tokens": count, **more}, _ if not more:
            if len(texts) <= MOST_TEXTS and type(count) is int and 0 < count <= new_tokens:
                return name, texts, count
    fields = f'"prompts": [TEXT, ...], "new_tokens": 1 to {new_tokens}' if new_tokens else '"texts": [TEXT, ...]'
    raise HTTPException(422, f'needed: {{"adapter": NAME, {fields}}}, a list of 1 to {MOST_TEXTS}')


def _check_size(request: Request, most: int) -> None:
    if "Transfer-Encoding" in request.headers or "Content-Length" not in request.headers:
        raise HTTPException(411, "needed: Content-Length")
    if int(request.headers["Content-Length"]) > most:  # the server reads no more than that
        raise HTTPException(413, f"a body has at most {most:,} bytes")


def _permitted(request: Request) -> str:
    given, token = request.headers.get("Authorization", "").encode(), os.environ.get("LSR_TOKEN")
    if not token or not secrets.compare_digest(given, f"Bearer {token}".encode()):
        raise HTTPException(401, "needed: Authorization: Bearer $LSR_TOKEN", {"WWW-Authenticate": "Bearer"})
    return request.path_params["name"]


def _unknown(adapter: str) -> HTTPException:  # the bank's own error may suggest the name of another tenant
    return HTTPException(404, f"no adapter is named {adapter[:100]!r}")
