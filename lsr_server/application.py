"""The routes of the server, which openapi.json describes. Every error is JSON, {"error": REASON}."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lsr_onnx.errors import HALVES, InputError
from lsr_onnx.rows import TokenizedText, Version, Wanted
from lsr_onnx.runner import Runner
from lsr_server import openai, openai_forms, tenants
from lsr_server.answers import NOT_FINITE, SECONDS, Room, check_answers, encode_response, longest_token, most_bytes
from lsr_server.aside import Aside
from lsr_server.batches import BatchScheduler, answer_by_one_version
from lsr_server.openai_fields import FieldError
from lsr_server.questions import Group, Question, check_body, check_change, has_long_text, read_json, read_question
from lsr_server.refusals import refusal
from lsr_server.streaming import run_unless_left
from lsr_server.uploads import MAX_ADAPTER_BYTES, Uploads

DESCRIPTION = Path(__file__).with_name("openapi.json")
ADAPTERS = Gauge("lsr_adapters", "Adapters in the bank")


class Entry(NamedTuple):
    """What answers a question: an adapter of the bank, or the entry of a group of tenants."""

    name: str
    version: Version


class Service:
    """The answers to requests.

    If it `answers_by_group`, a tenant that the bank does not have is answered by the rows of the group whose labels the
    request names.
    """

    def __init__(
        self,
        passes: Runner,
        batches: BatchScheduler,
        *,
        answers_by_group: bool = False,
    ) -> None:
        self.passes = passes
        self.bank = passes.bank
        self.batches = batches
        self._answers_by_group = answers_by_group
        self._answer_room = Room()
        self._token_bytes = longest_token(passes.tokenizer) if passes.max_new_tokens else 0
        self._aside = Aside()
        self._uploads = Uploads(passes)
        self._openai = openai.Endpoints(passes, batches, self._answer_room, self._aside, self._token_bytes)
        self._tenants = tenants.Endpoints(passes, batches, self._aside)
        ADAPTERS.set_function(lambda: len(self.bank.versions))

    async def answer(self, request: Request) -> Response:
        """Answer a request: predictions for `texts`, or greedy completions of `prompts`."""
        with SECONDS.time():
            content = await read_json(request, self._aside)
            takes_labels = self._answers_by_group
            question = read_question(content, self.passes.max_new_tokens, takes_labels=takes_labels)
            find = partial(self._find_entry, question)
            return await answer_by_one_version(find, partial(self._answer_by, request, question))

    def _find_entry(self, question: Question) -> Entry:
        """Return the entry that answers a question: the adapter, or that of the group if the bank does not have it.

        Raises:
            HTTPException: if there is neither, or the adapter has other labels than the question names.
        """
        group = question.group
        version = self.bank.versions.get(question.adapter)
        if version is not None:
            if group is not None and not _has_labels(version, group):
                raise HTTPException(422, "labels: the adapter of this name has others")
            return Entry(question.adapter, version)
        if group is None or HALVES.search(question.adapter):  # an answer, in UTF-8, could not repeat such a name
            raise _make_not_found_error(question.adapter)
        name = self.passes.name_entry(group.labels)
        version = self.passes.find_version(name)
        if version is None:
            raise HTTPException(404, f"no adapter is named {question.adapter[:100]!r}, and no group has these labels")
        return Entry(name, version)

    async def _answer_by(
        self,
        request: Request,
        question: Question,
        entry: Entry,
    ) -> Response:
        # Not in the event loop, which one long text would stop.
        is_long = has_long_text(question.texts, self.passes.tokens)
        rows, size = await self._aside.run_in_thread(partial(self._rows, entry, question), is_long=is_long)
        with self._answer_room.hold(size):
            results: Any = await run_unless_left(request, self.batches.answers(rows))
            finite = [result for result in results if result is not None]
            if len(finite) < len(results):
                raise HTTPException(422, f"{self.passes.field}[{results.index(None)}]: {NOT_FINITE}")
            truncated = sum(row.is_truncated for row in rows)
            render = partial(encode_response, question.adapter, truncated, finite)
            body = await self._aside.run_if_large(size, render)
        return Response(body, media_type="application/json")

    def _rows(self, entry: Entry, question: Question) -> tuple[list[TokenizedText], int]:
        """Return the rows of a question, and an upper bound of the bytes of the response."""
        texts = question.texts
        max_new_tokens = question.max_new_tokens
        each = most_bytes(entry.version, max_new_tokens, self._token_bytes)
        check_answers(len(texts), each, self._token_bytes, max_new_tokens)
        wanted = Wanted(max_new_tokens) if max_new_tokens else None
        rows = self.passes.rows(entry.name, entry.version, texts, wanted)
        return rows, len(encode_response(question.adapter, len(texts), [])) + len(texts) * each

    async def put(self, request: Request) -> Response:
        """Add or replace an adapter."""
        check_change(request, self.passes)
        check_body(request, MAX_ADAPTER_BYTES)
        name = request.path_params["name"]
        contents = await self._uploads.read(request, name)
        await self.batches.change(partial(self.bank.add, name, contents, replace=True))
        return JSONResponse({"adapter": name})

    async def delete(self, request: Request) -> Response:
        """Remove an adapter."""
        check_change(request, self.passes)
        name = request.path_params["name"]
        is_removed = name in self.bank.versions and await self.batches.change(self._remove, name)
        if not is_removed:
            raise _make_not_found_error(name)
        return Response(status_code=204)

    def _remove(self, name: str) -> bool:
        """Remove an adapter, and return whether there was one: the bank's own error would look for similar names."""
        is_there = name in self.bank.versions
        if is_there:
            self.bank.remove(name)
        return is_there

    async def refuse(self, _: Request) -> Response:
        """Reject predictions with a generating base model, and generation with a predicting one."""
        writes = "writes: ask /v1/generate" if self.passes.max_new_tokens else "does not write: ask /v1/predict"
        raise HTTPException(422, f"the base model of this bank {writes}")

    @asynccontextmanager
    async def run_batches(self, _: Starlette) -> AsyncIterator[None]:
        """Run batches until uvicorn has answered the last request: the lifespan of the application."""
        task = asyncio.create_task(self.batches.run())
        yield
        task.cancel()

    def application(self) -> Starlette:
        """Return the application, which runs the batches during its lifespan."""
        description = DESCRIPTION.read_bytes()
        writes = bool(self.passes.max_new_tokens)
        routes = [
            Route("/v1/predict", self.refuse if writes else self.answer, methods=["POST"]),
            Route("/v1/generate", self.answer if writes else self.refuse, methods=["POST"]),
            Route("/v1/adapters/{name}", self.put, methods=["PUT"]),
            Route("/v1/adapters/{name}", self.delete, methods=["DELETE"]),
            Route("/health", lambda _: JSONResponse({"status": "ok", "adapters": len(self.bank.versions)})),
            Route("/metrics", lambda _: Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})),
            Route("/openapi.json", lambda _: Response(description, media_type="application/json")),
            *self._tenants.routes(),
            *self._openai.routes(),
        ]
        application = Starlette(routes=routes, lifespan=self.run_batches, exception_handlers=HANDLERS)
        application.router.redirect_slashes = False  # to the scheme and host that the server is taken to have
        return application


class RefuseAtStop:
    """Middleware that answers requests which the server cancels because it stops."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Answer a request; of an answer that has begun, nothing more is sent."""
        has_begun = asyncio.Event()

        async def send_and_note(message: Message) -> None:
            has_begun.set()
            await send(message)

        try:
            await self._application(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not has_begun.is_set():
                refused = _refuse(Request(scope), "the server stops", 503, {"Connection": "close"})
                await refused(scope, receive, send)


def _has_labels(version: Version, group: Group) -> bool:
    return frozenset(version.task_info.get("labels") or ()) == frozenset(group.labels or ())


def _make_not_found_error(adapter: str) -> HTTPException:  # the bank's own error may suggest the name of another tenant
    return HTTPException(404, f"no adapter is named {adapter[:100]!r}")


def _refuse(
    request: Request,
    reason: str,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    if request.url.path in openai.PATHS:
        return openai_forms.refusal(reason, status, headers)
    return refusal(reason, status, headers)


HANDLERS: Any = {
    FieldError: lambda _, error: openai_forms.refusal(error.detail, error.status_code, None, error.field),
    InputError: lambda request, error: _refuse(request, str(error), 422),
    HTTPException: lambda request, error: _refuse(request, error.detail, error.status_code, error.headers),
    ClientDisconnect: lambda request, _: _refuse(request, "nobody reads this", 499),
    Exception: lambda request, _: _refuse(request, "the server failed; its log says why", 500),
}
