"""OpenAI-compatible routes, and /classify as in vLLM: the model of a request is an adapter of the bank.

Every error has OpenAI's form, {"error": {"message": REASON, ...}}.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from logging import getLogger
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from lsr_onnx.rows import Completion, TokenizedText, Version
from lsr_onnx.runner import Runner
from lsr_onnx.task import NO_TEMPLATE
from lsr_server.answers import NOT_FINITE, SECONDS, Room, check_answers, json_bytes, most_bytes
from lsr_server.aside import Aside
from lsr_server.batches import BatchScheduler, answer_by_one_version
from lsr_server.openai_fields import Asked, FieldError, read_chat, read_classify, read_completion
from lsr_server.openai_forms import Form, format_classes, format_error
from lsr_server.questions import check_token, has_long_text, read_json
from lsr_server.streaming import DONE, STREAMED, GrowingText, encode_event, run_unless_left

PATHS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/classify")
MAX_HEAD = 512  # bytes of an answer, or of one of its choices, in addition to its texts and the name of the adapter
LOG = getLogger("uvicorn.error")
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx passes each piece on
UNREAD = "the answer is not read as fast as it is written"


class Endpoints:
    """Handlers of the OpenAI-compatible routes."""

    def __init__(
        self,
        passes: Runner,
        batches: BatchScheduler,
        room: Room,
        aside: Aside,
        token_bytes: int,
    ) -> None:
        self._passes = passes
        self._batches = batches
        self._room = room
        self._aside = aside
        self._token_bytes = token_bytes
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/classify", self.classify, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        """List the adapters; needs the token, because they belong to all tenants."""
        check_token(request)
        names = list(self._passes.bank.versions)
        body = await self._aside.run(partial(self._list_models, names))
        return Response(body, media_type="application/json")

    def _list_models(self, names: Sequence[str]) -> bytes:
        data = []
        for name in names:
            data.append({"id": name, "object": "model", "created": self._created, "owned_by": "lsr"})
        return json_bytes({"object": "list", "data": data})

    async def complete(self, request: Request) -> Response:
        """Continue prompts as they are, without a chat template."""
        return await self._write(request, read_completion)

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a conversation."""
        return await self._write(request, read_chat)

    async def _write(self, request: Request, read: Callable[[Any, int], Asked]) -> Response:
        if not self._passes.max_new_tokens:
            raise HTTPException(400, "the base model of this bank does not write: ask /v1/predict or /classify")
        asked = read(await read_json(request, self._aside), self._passes.max_new_tokens)
        with SECONDS.time():
            find = partial(self._version, asked.model)
            return await answer_by_one_version(find, partial(self._write_by, request, asked))

    def _version(self, model: str) -> Version:
        version = self._passes.bank.versions.get(model)
        if version is None:
            raise FieldError("model", f"no adapter is named {model[:100]!r}", 404)
        return version

    async def _write_by(
        self,
        request: Request,
        asked: Asked,
        version: Version,
    ) -> Response:
        rows, size = await asyncio.to_thread(self._rows, version, asked)
        if asked.is_streamed:
            return await self._stream(request, asked, rows[0], size)
        with self._room.hold(size):
            completions: Any = await run_unless_left(request, self._batches.answers(rows))
            if None in completions:
                raise FieldError(asked.names[completions.index(None)], NOT_FINITE)
            form = Form(asked, rows)
            return await self._respond(partial(form.answer, completions), size)

    async def _respond(self, content: Any, size: int) -> Response:
        body = await self._aside.run_if_large(size, lambda: json_bytes(content()))
        return Response(body, media_type="application/json")

    async def _answers_of_stream(self, rows: list[TokenizedText], size: int) -> Any:
        with self._room.hold(size):
            return await self._batches.answers(rows)

    def _rows(self, version: Version, asked: Asked) -> tuple[list[TokenizedText], int]:
        """Return the rows of a request, and an upper bound of the bytes of the response."""
        wanted = asked.wanted
        each = most_bytes(version, wanted.max_new_tokens, self._token_bytes) + MAX_HEAD
        check_answers(len(asked.prompts), each, self._token_bytes, wanted.max_new_tokens)
        rows = self._passes.rows(
            asked.model,
            version,
            asked.prompts,
            wanted,
            template=self._template(version, asked),
            names=asked.names,
            is_strict=True,  # as OpenAI's servers do: their answers cannot hold how many prompts were truncated
        )
        if wanted.sampling is not None and not asked.is_seeded:
            rows = [_draw_seed(row) for row in rows]
        return rows, MAX_HEAD + len(rows) * each

    def _template(self, version: Version, asked: Asked) -> str:
        if not asked.is_chat:
            return NO_TEMPLATE
        template = version.task_info.get("template") or self._passes.tokenizer.chat_template
        if not isinstance(template, str) or template == NO_TEMPLATE:
            raise FieldError("messages", "this adapter has no chat template: ask /v1/completions")
        return template

    async def _stream(
        self,
        request: Request,
        asked: Asked,
        row: TokenizedText,
        size: int,
    ) -> Response:
        """Return a stream after its first piece, so that an earlier error is an ordinary response."""
        loop = asyncio.get_running_loop()
        text = GrowingText()

        def grow(longer: str) -> None:
            if text.is_left:
                task.cancel()
            text.grow(longer)

        def listen(longer: str) -> None:  # runs in the thread of batches
            loop.call_soon_threadsafe(grow, longer)

        assert row.wanted is not None
        listening = row.wanted._replace(listen=listen)
        task = asyncio.create_task(self._answers_of_stream([row._replace(wanted=listening)], size))
        task.add_done_callback(lambda _: text.end())
        try:
            await run_unless_left(request, text.more())
            if task.done() and task.result() == [None]:
                raise FieldError(asked.names[0], NOT_FINITE)
        except BaseException:
            task.cancel()
            raise
        setattr(request.state, STREAMED, True)
        events = _stream_events(task, text, Form(asked, [row]))
        return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)

    async def classify(self, request: Request) -> Response:
        """Return the probabilities of an adapter's labels."""
        if self._passes.max_new_tokens:
            raise HTTPException(400, "the base model of this bank writes: ask /v1/completions")
        with SECONDS.time():
            model, texts = read_classify(await read_json(request, self._aside))
            find = partial(self._version, model)
            return await answer_by_one_version(find, partial(self._classify_by, request, model, texts))

    async def _classify_by(
        self,
        request: Request,
        model: str,
        texts: list[Any],
        version: Version,
    ) -> Response:
        each = most_bytes(version, 0, 0) + MAX_HEAD
        check_answers(len(texts), each, 0, 0)
        names = [f"input[{number}]" for number in range(len(texts))]
        read = partial(self._passes.rows, model, version, texts, names=names)
        rows = await self._aside.run_in_thread(read, is_long=has_long_text(texts, self._passes.tokens))
        size = MAX_HEAD + len(texts) * each
        with self._room.hold(size):
            answers: Any = await run_unless_left(request, self._batches.answers(rows))
            if None in answers:
                raise FieldError(names[answers.index(None)], NOT_FINITE)
            if answers[0].labels is None:
                raise FieldError("model", "this adapter predicts a number: ask /v1/predict")
            return await self._respond(partial(format_classes, model, rows, answers), size)


def _draw_seed(row: TokenizedText) -> TokenizedText:
    assert row.wanted is not None
    assert row.wanted.sampling is not None
    sampling = row.wanted.sampling._replace(seed=secrets.randbits(63))
    return row._replace(wanted=row.wanted._replace(sampling=sampling))


async def _stream_events(
    task: "asyncio.Task[list[Completion | None]]",
    text: GrowingText,
    form: Form,
) -> AsyncIterator[bytes]:
    """Yield the events of a stream; if it ends early, its place in the batch is freed."""
    try:
        for content in form.begin():
            yield encode_event(content)
        while not task.done():
            piece = text.take()
            if piece:
                yield encode_event(form.piece(piece))
            await text.more()
        completion = _result(task)
        if isinstance(completion, str):
            yield encode_event(format_error(completion, 500))
            return
        rest = completion.text[text.sent :]
        if rest:
            yield encode_event(form.piece(rest))
        for content in form.end(completion):
            yield encode_event(content)
        yield DONE
    finally:
        task.cancel()


def _result(task: "asyncio.Task[list[Completion | None]]") -> Completion | str:
    """Return the completion of a finished task, or the reason for its failure."""
    if task.cancelled():
        return UNREAD
    failure = task.exception()
    if failure is not None:
        LOG.error("a stream has failed", exc_info=failure)
        return "the server failed; its log says why"
    return task.result()[0] or NOT_FINITE
