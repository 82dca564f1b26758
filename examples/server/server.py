"""Serve a bank of adapters over HTTP: python examples/server/server.py build/bank.

    POST   /v1/predict         {"adapter": "anna", "texts": ["..."]}
    PUT    /v1/adapters/NAME   the files of an adapter's folder, as parts of a form; in memory, until the server stops
    DELETE /v1/adapters/NAME
    GET    /health, /metrics

Who changes adapters shows the token in the environment variable LSR_TOKEN; without one nobody can. Every error is JSON,
{"error": REASON}.
"""

import argparse
import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import uvicorn
from batches import Batches, FullError, GoneError, Inputs
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from received import FILES, limited, max_length_of, read_adapter
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from lsr.loading.base_models import load_tokenizer
from lsr.loading.contents import Contents
from lsr.loading.files import InputError
from lsr.serve.opening import open_bank

MOST_TEXTS, MOST_BYTES = 64, 1 << 20  # of a request
MOST_ADAPTERS, MOST_ADAPTER_BYTES = 4096, 16 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
HALVES = re.compile("[\ud800-\udfff]")  # of characters, which JSON can hold and a tokenizer cannot

REQUESTS = Counter("lsr_requests", "Requests by method and status", ["method", "status"])
SECONDS = Histogram("lsr_predict_seconds", "Seconds until texts are answered")
ADAPTERS = Gauge("lsr_adapters", "Adapters in the bank")


class Service:
    """The answers to requests."""

    def __init__(self, batches: Batches, tokenizer: PreTrainedTokenizerBase, most_tokens: int, token: str) -> None:
        self.batches, self.bank, self.notes = batches, batches.bank, batches.bank.notes
        self.tokenizer, self.most_tokens, self.token = tokenizer, most_tokens, token
        ADAPTERS.set_function(lambda: len(self.notes))

    async def predict(self, request: Request) -> Response:
        """Say of each text what an adapter says.

        Raises:
            HTTPException: 400, 413, 422 for what is wrong with the request, 404 without the adapter, 429 without room.
        """
        started = perf_counter()
        try:
            asked = await limited(request, MOST_BYTES).json()
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"not JSON: {error}") from None
        if not (isinstance(asked, dict) and asked.keys() == {"adapter", "texts"} and isinstance(asked["adapter"], str)):
            raise HTTPException(422, 'needed: {"adapter": NAME, "texts": [TEXT, ...]}')
        name = asked["adapter"]
        unknown = HTTPException(404, f"no adapter is named {name[:100]!r}")
        if name not in self.notes:
            raise unknown
        try:
            answers = await self.batches.predict(name, self.encoded(asked["texts"], max_length_of(self.notes[name])))
        except GoneError:
            raise unknown from None
        except FullError:
            raise HTTPException(429, "too many texts are waiting; try again later", {"Retry-After": "1"}) from None
        SECONDS.observe(perf_counter() - started)
        return JSONResponse({"adapter": name, "answers": answers})

    def encoded(self, texts: Any, max_length: int | None) -> list[Inputs]:
        """Return the tokens of each text.

        Raises:
            HTTPException: 422 if they are none or too many, or one is blank, no text or too long.
        """
        if not (isinstance(texts, list) and 0 < len(texts) <= MOST_TEXTS):
            raise HTTPException(422, f"texts: needed: a list of 1 to {MOST_TEXTS}")
        for at, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip() or HALVES.search(text):
                raise HTTPException(422, f"texts[{at}]: needed: a text of whole Unicode characters, not blank")
        encoded = self.tokenizer(texts, verbose=False)
        most = min(self.most_tokens, max_length or self.most_tokens)
        for at, ids in enumerate(encoded["input_ids"]):
            if len(ids) > most:
                raise HTTPException(422, f"texts[{at}]: {len(ids)} tokens; this adapter reads at most {most}")
        return [{key: values[at] for key, values in encoded.items()} for at in range(len(texts))]

    async def put(self, request: Request) -> Response:
        """Add or replace an adapter, whose files may hold anything.

        Raises:
            HTTPException: as `permitted`, 409 if the bank is full, 413 or 422 if the files are too large or no adapter.
        """
        name = self.permitted(request)
        if name not in self.notes and len(self.notes) >= MOST_ADAPTERS:
            raise HTTPException(409, f"the bank is full: {MOST_ADAPTERS} adapters")
        with TemporaryDirectory() as folder:
            async with limited(request, MOST_ADAPTER_BYTES).form(max_files=len(FILES), max_fields=0) as form:
                for file, part in form.multi_items():
                    if file not in FILES or not isinstance(part, UploadFile):
                        raise HTTPException(422, f"{file[:100]!r}: the parts of the form are {', '.join(FILES)}")
                    Path(folder, file).write_bytes(await part.read())
            try:
                contents = await asyncio.to_thread(read_adapter, Path(folder))
                replaced = await self.batches.in_turn(lambda: self.add(name, contents))
            except InputError as error:
                raise HTTPException(422, str(error).replace(f"{folder}/", "").replace(folder, name)) from None
        return JSONResponse({"adapter": name, "replaced": replaced}, 200 if replaced else 201)

    def add(self, name: str, contents: Contents) -> bool:
        """Add an adapter to the bank, and return whether it replaces one."""
        replaced = name in self.notes
        self.bank.add(name, contents, replace=True)
        return replaced

    async def delete(self, request: Request) -> Response:
        """Remove an adapter.

        Raises:
            HTTPException: as `permitted`, 404 without the adapter.
        """
        name = self.permitted(request)
        try:
            await self.batches.in_turn(lambda: self.bank.remove(name))
        except InputError:  # which would suggest the name of another tenant
            raise HTTPException(404, f"no adapter is named {name!r}") from None
        return Response(status_code=204)

    def permitted(self, request: Request) -> str:
        """Return the name of the adapter that a request may change.

        Raises:
            HTTPException: 403 if nobody may, 401 without the token, 422 if it is no name.
        """
        if not self.token:
            raise HTTPException(403, "adapters cannot be changed: the server was started without LSR_TOKEN")
        given = request.headers.get("Authorization", "").encode()
        if not secrets.compare_digest(given, f"Bearer {self.token}".encode()):
            raise HTTPException(401, "needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        name: str = request.path_params["name"]
        if not NAME.fullmatch(name):
            raise HTTPException(422, f"a name has up to 100 letters, digits, '.', '_' and '-', got {name[:100]!r}")
        return name

    def application(self) -> ASGIApp:
        """Return the application, which passes batches through the bank while it runs."""

        @asynccontextmanager
        async def running(_: Starlette) -> AsyncIterator[None]:
            task = asyncio.create_task(self.batches.run())
            yield  # until uvicorn has answered the last request
            task.cancel()

        routes = [
            Route("/v1/predict", self.predict, methods=["POST"]),
            Route("/v1/adapters/{name}", self.put, methods=["PUT"]),
            Route("/v1/adapters/{name}", self.delete, methods=["DELETE"]),
            Route("/health", lambda _: JSONResponse({"status": "ok", "adapters": len(self.notes)})),
            Route("/metrics", lambda _: Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})),
        ]
        handlers: Any = {
            HTTPException: lambda _, error: JSONResponse({"error": error.detail}, error.status_code, error.headers),
            ClientDisconnect: lambda *_: Response(status_code=499),  # for the count: nobody reads it
            Exception: lambda *_: JSONResponse({"error": "the server failed; its log says why"}, 500),
        }
        return counted(Starlette(routes=routes, lifespan=running, exception_handlers=handlers))


def counted(app: ASGIApp) -> ASGIApp:
    """Return an application that counts its responses."""

    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                REQUESTS.labels(scope["method"], message["status"]).inc()
            await send(message)

        await app(scope, receive, sending)

    return counting


def opened(options: argparse.Namespace) -> Service:
    """Return the service of a bank, which has shown that it takes texts of the greatest length.

    Raises:
        InputError: if there is no bank, or it does not fit the base model or this server.
    """
    bank = open_bank(options.bank, options.base)
    tokenizer = load_tokenizer(bank.base_fields, options.bank, options.base)
    if tokenizer is None:
        raise InputError(f"{options.bank}: the base model has no tokenizer")
    for note in bank.notes.values():
        max_length_of(note)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "right"
    most = min(options.max_tokens, tokenizer.model_max_length)
    try:
        with torch.no_grad():
            no_padding = int(tokenizer.pad_token_id == 0)
            bank(input_ids=torch.full((1, most), no_padding), adapter_names=["__base__"])
    except (IndexError, RuntimeError):
        raise InputError(f"--max-tokens: the base model does not take {most}") from None
    batches = Batches(bank, tokenizer, rows=options.rows, room=options.queue, wait=options.wait / 1000)
    return Service(batches, tokenizer, most, os.environ.get("LSR_TOKEN", ""))


def main() -> None:
    """Serve until a signal stops it: what has been asked is answered, for at most 30 seconds."""
    parser = argparse.ArgumentParser(description="Serve a bank of adapters over HTTP.")
    add = parser.add_argument
    add("bank", type=Path, help="a folder from `python -m lsr bank`")
    add("--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapters name")
    add("--host", default="127.0.0.1", help="(%(default)s)")
    add("--port", type=int, default=8000, help="(%(default)s)")
    add("--rows", type=int, default=64, help="texts in a batch (%(default)s)")
    add("--queue", type=int, default=1024, help="texts that wait; more are refused with 429 (%(default)s)")
    add("--wait", type=float, default=3, metavar="MS", help="how long a batch is gathered (%(default)s)")
    add("--max-tokens", type=int, default=512, help="of a text, if model and adapter take more (%(default)s)")
    options = parser.parse_args()
    logging.set_verbosity_error()  # else it reports the head, which the adapters bring, as missing
    logging.disable_progress_bar()
    try:
        service = opened(options)
    except InputError as error:
        parser.error(str(error))
    app = service.application()
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
