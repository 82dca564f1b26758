"""Routes that add a tenant to the bank without an adapter: by its labels, or by a few labeled texts.

A fit goes on aside: its texts pass in small batches between those of others, and a thread fits the rows with rests.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lsr_onnx.errors import InputError
from lsr_onnx.examples import Example, columns_of
from lsr_onnx.runner import PreparedFit, Runner
from lsr_server.aside import Aside
from lsr_server.batches import BatchScheduler
from lsr_server.bodies import MAX_JSON_BYTES
from lsr_server.questions import check_body, check_change, read_json
from lsr_server.rests import REST
from lsr_server.tenant_fields import parse_examples, read_labels

MAX_TOKENS = 1 << 17  # maximum tokens of all texts of a fit
MAX_OUTPUTS = 32_000  # maximum number of texts times labels of a fit
MAX_SECONDS = 20.0  # maximum CPU seconds of a fit in its thread


class Endpoints:
    """Handlers of the routes for tenants."""

    def __init__(
        self,
        passes: Runner,
        batches: BatchScheduler,
        aside: Aside,
    ) -> None:
        self._passes = passes
        self._batches = batches
        self._aside = aside  # thread for large JSON
        self._fits = Aside()
        self._one_fit = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/tenants/{name}", self.put, methods=["PUT"]),
            Route("/v1/tenants/{name}/fit", self.fit, methods=["POST"]),
        ]

    async def put(self, request: Request) -> Response:
        """Add or replace a tenant, which answers by the rows of its group."""
        self._check_adds(request)
        name = request.path_params["name"]
        labels = read_labels(await read_json(request, self._aside))
        count = await self._batches.change(self._passes.add_tenant, name, labels)
        return JSONResponse({"adapter": name, "tenants": count})

    async def fit(self, request: Request) -> Response:
        """Add or replace a tenant, whose rows are fitted to labeled texts unless those of its group are as good."""
        self._check_adds(request)
        name = request.path_params["name"]
        examples = await self._read_examples(request)
        async with self._one_fit:
            prepared = await asyncio.to_thread(self._prepare, name, examples)
            parts = list[Any]()
            for batch in prepared.batches:
                parts.append(await self._batches.read(partial(prepared.read, batch)))
            clock = FitClock(self._batches.is_busy)
            described = await self._fits.run(partial(_finish_in_time, prepared, parts, clock), clock.count_rested)
            answers = await self._batches.change(prepared.add)
        return JSONResponse({**described, "answers": answers})

    def _check_adds(self, request: Request) -> None:
        check_change(request, self._passes)
        if self._passes.max_new_tokens:
            raise HTTPException(422, "the base model of this bank writes; tenants need labels or numbers")

    async def _read_examples(self, request: Request) -> list[Example]:
        check_body(request, MAX_JSON_BYTES)
        body = await request.body()
        content_type = request.headers.get("Content-Type", "")
        columns = columns_of(self._passes.bank)
        parse = partial(parse_examples, body, content_type, columns)
        return await self._aside.run_if_large(len(body), parse)

    def _prepare(self, name: str, examples: list[Example]) -> PreparedFit:
        """Prepare a fit; runs in a thread.

        Raises:
            InputError: as `prepare_fit`, or if the fit would take too long.
        """
        prepared = self._passes.prepare_fit(name, examples)
        outputs = prepared.outputs
        if len(examples) * outputs > MAX_OUTPUTS:
            raise InputError(f"at most {MAX_OUTPUTS // outputs:,} texts with {outputs:,} labels")
        if prepared.tokens > MAX_TOKENS:
            raise InputError(f"the texts have {prepared.tokens:,} tokens together; at most {MAX_TOKENS:,} are allowed")
        return prepared


def _finish_in_time(
    prepared: PreparedFit,
    parts: list[Any],
    clock: "FitClock",
) -> dict[str, Any]:
    clock.begin()
    return prepared.finish(parts, clock.check_time)


class FitClock:
    """Limits the time of a fit in this thread, and lets it rest after each step while others are asked.

    `computed` returns the thread's CPU seconds, and `sleep` waits.
    """

    def __init__(
        self,
        is_busy: Callable[[], bool],
        computed: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._is_busy = is_busy
        self._computed = computed
        self._sleep = sleep
        self._rested = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin in this thread."""
        self._last = self._computed()
        self._end = self._last + MAX_SECONDS

    def count_rested(self) -> float:
        """Return the CPU seconds of the steps after which the fit has rested."""
        return self._rested

    def check_time(self) -> None:
        """Rest REST times as long as the last step took, if others are asked.

        Raises:
            InputError: if the fit has computed for more than MAX_SECONDS.
        """
        now = self._computed()
        if now > self._end:
            raise InputError(f"the fit takes over {MAX_SECONDS:g} seconds of a processor; send fewer texts")
        if self._is_busy():
            spent = now - self._last
            self._sleep(REST * spent)
            self._rested += spent
        self._last = self._computed()
