"""Serve a bank of adapters over HTTP: python -m examples.server build/bank.

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
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers.utils import logging

from examples.server.batches import Batches, unknown
from lsr import AdapterBank
from lsr.loading.base_models import load_tokenizer
from lsr.loading.contents import HALVES, Contents, read_contents
from lsr.serve.bank import Answer
from lsr.tuner.files import read_config
from lsr.tuner.mistakes import InputError

MOST_TEXTS, MOST_BYTES, MOST_ADAPTER_BYTES = 64, 1 << 20, 16 << 20  # of a request
FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_rounded.safetensors", "task.json")

SECONDS = Histogram("lsr_predict_seconds", "Seconds until texts are answered")
REFUSED = Counter("lsr_refused", "Refused requests by status", ["status"])
ADAPTERS = Gauge("lsr_adapters", "Adapters in the bank")


class Service:
    """The answers to requests."""

    def __init__(self, batches: Batches, most_tokens: int) -> None:
        self.batches, self.bank, self.most_tokens = batches, batches.bank, most_tokens
        ADAPTERS.set_function(lambda: len(self.bank.notes))

    async def predict(self, request: Request) -> Response:
        """Say of each text what an adapter says."""
        with SECONDS.time():
            _check_size(request, MOST_BYTES)
            try:
                asked = await request.json()
            except (ValueError, RecursionError) as error:
                raise HTTPException(400, f"not JSON: {error}") from None
            match asked:
                case {"adapter": str(name), "texts": [_, *_] as texts, **more} if not more and len(texts) <= MOST_TEXTS:
                    answers = await self.batches.predict(name, self._encoded(name, texts))
                    _check_finite(answers)
                    return JSONResponse({"adapter": name, "answers": [_shown(answer) for answer in answers]})
        raise HTTPException(422, f'needed: {{"adapter": NAME, "texts": [TEXT, ...]}}, a list of 1 to {MOST_TEXTS}')

    def _encoded(self, name: str, texts: list[Any]) -> list[dict[str, list[int]]]:
        if (note := self.bank.notes.get(name)) is None:  # once: it may leave meanwhile
            raise unknown(name)
        for at, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip() or HALVES.search(text):
                raise HTTPException(422, f"texts[{at}]: needed: a text of whole Unicode characters, not blank")
        encoded = self.batches.tokenizer(texts, verbose=False)
        most = min(self.most_tokens, longest(note) or self.most_tokens)
        for at, ids in enumerate(encoded["input_ids"]):
            if len(ids) > most:
                raise HTTPException(422, f"texts[{at}]: {len(ids)} tokens; this adapter reads at most {most}")
        return [{key: values[at] for key, values in encoded.items()} for at in range(len(texts))]

    async def put(self, request: Request) -> Response:
        """Add or replace an adapter, whose files may hold anything."""
        name = _permitted(request)
        _check_size(request, MOST_ADAPTER_BYTES)
        with TemporaryDirectory() as folder:
            async with request.form(max_files=len(FILES), max_fields=0) as form:
                for file, part in form.multi_items():
                    if file not in FILES:
                        raise HTTPException(422, f"{file[:100]!r}: the parts of the form are {', '.join(FILES)}")
                    Path(folder, file).write_bytes(await part.read())
            try:
                contents = await asyncio.to_thread(_read_adapter, Path(folder))
                await self.batches.in_turn(lambda: self.bank.add(name, contents, replace=True))
            except InputError as error:
                raise HTTPException(422, str(error).replace(folder, name)) from None
        return JSONResponse({"adapter": name})

    async def delete(self, request: Request) -> Response:
        """Remove an adapter."""
        name = _permitted(request)
        try:
            await self.batches.in_turn(self.bank.remove, name)
        except InputError:  # which would suggest the name of another tenant
            raise unknown(name) from None
        return Response(status_code=204)

    def application(self) -> Starlette:
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
            Route("/health", lambda _: JSONResponse({"status": "ok", "adapters": len(self.bank.notes)})),
            Route("/metrics", lambda _: Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})),
        ]
        handlers: Any = {
            HTTPException: lambda _, error: _refused(error.detail, error.status_code, error.headers),
            ClientDisconnect: lambda *_: _refused("nobody reads this", 499),
            Exception: lambda *_: _refused("the server failed; its log says why", 500),
        }
        return Starlette(routes=routes, lifespan=running, exception_handlers=handlers)


def _refused(reason: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    REFUSED.labels(status).inc()
    return JSONResponse({"error": reason}, status, headers)


def _permitted(request: Request) -> str:
    given, token = request.headers.get("Authorization", "").encode(), os.environ.get("LSR_TOKEN")
    if not token or not secrets.compare_digest(given, f"Bearer {token}".encode()):
        raise HTTPException(401, "needed: Authorization: Bearer $LSR_TOKEN", {"WWW-Authenticate": "Bearer"})
    return request.path_params["name"]


def _check_size(request: Request, most: int) -> None:
    if "Transfer-Encoding" in request.headers or "Content-Length" not in request.headers:
        raise HTTPException(411, "needed: Content-Length")
    if int(request.headers["Content-Length"]) > most:  # the server reads no more than that
        raise HTTPException(413, f"a body has at most {most:,} bytes")


def _check_finite(answers: Sequence[Answer]) -> None:
    for at, answer in enumerate(answers):
        if not torch.isfinite(answer.logits).all():
            raise HTTPException(422, f"texts[{at}]: the answer is not finite: the weights of this adapter overflow")


def _shown(answer: Any) -> dict[str, Any]:
    if answer.labels is None:
        return {"number": float(answer.logits[0])}
    chances = answer.probabilities
    return {"label": max(chances, key=chances.get), "probabilities": chances}


def _read_adapter(folder: Path) -> Contents:
    if read_config(folder).get("frames", "own") != "own":
        raise InputError(f"{folder}: names frames in another folder of this machine, which cannot be sent")
    contents = read_contents(folder)
    longest(contents.task or {})
    return contents


def longest(task: Mapping[str, Any]) -> int | None:
    """Return how many tokens an adapter reads according to its task, of single texts; None if that is not said."""
    length, columns = task.get("max_length"), task.get("columns", ["text"])
    if not (length is None or (type(length) is int and length > 0)):
        raise InputError(f"task.json: max_length must be a positive whole number, got {length!r}")
    if not isinstance(columns, list) or len(columns) != 1:
        raise InputError(f"task.json: this server passes single texts, not those of the columns {columns!r}")
    return length


def opened(options: argparse.Namespace) -> Service:
    """Return the service of a bank, which has shown that it takes texts of the greatest length."""
    bank = AdapterBank.load(options.base, options.bank)
    tokenizer = load_tokenizer(bank.base_fields, options.bank, options.base)
    if tokenizer is None:
        raise InputError(f"{options.bank}: the base model has no tokenizer")
    for note in bank.notes.values():
        longest(note)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "right"
    most = min(options.max_tokens, tokenizer.model_max_length)
    try:
        with torch.no_grad():
            no_padding = int(tokenizer.pad_token_id == 0)
            bank(input_ids=torch.full((1, most), no_padding), adapter_names=["__base__"])
    except (IndexError, RuntimeError):
        raise InputError(f"--max-tokens: the base model does not take {most}") from None
    return Service(Batches(bank, tokenizer, options.rows, options.queue, options.wait / 1000), most)


def main() -> None:
    """Serve until a signal stops it: what has been asked is answered, for at most 30 seconds."""
    parser = argparse.ArgumentParser(prog="python -m examples.server", description="Serve a bank over HTTP.")
    add = parser.add_argument
    add("bank", type=Path, help="a folder from `lsr bank`")
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
        app = opened(options).application()
    except InputError as error:
        parser.error(str(error))
    # Clients close connections that they leave idle: if the server did so first, it might lose a request.
    waits = {"timeout_keep_alive": 75, "timeout_graceful_shutdown": 30}
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", **waits)


if __name__ == "__main__":
    main()
