"""Responses to rejected requests."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter
from starlette.responses import JSONResponse, Response

REFUSED = Counter("lsr_refused", "Refused requests by status", ["status"])


def refusal(
    reason: str,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response {"error": REASON} with this status, and count it."""
    return refuse_with({"error": reason}, status, headers)


def refuse_with(
    content: Any,
    status: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response to a rejected request in any format, and count it."""
    REFUSED.labels(status).inc()
    return JSONResponse(content, status, headers)
