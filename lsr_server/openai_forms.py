"""The format of responses and errors of OpenAI's API, and of vLLM's /classify."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from lsr_onnx.answers import Answer
from lsr_onnx.rows import Completion, Result, TokenizedText
from lsr_server.openai_fields import Asked
from lsr_server.refusals import refuse_with

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error"}


def refusal(
    reason: str,
    status: int,
    headers: Mapping[str, str] | None = None,
    field: str | None = None,
) -> Response:
    """Return the response to a rejected request in OpenAI's format, which has 400 in place of 422."""
    status = 400 if status == 422 else status
    return refuse_with(format_error(reason, status, field), status, headers)


def format_error(reason: str, status: int, field: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's format."""
    code = "model_not_found" if status == 404 and field == "model" else None
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": reason, "type": kind, "param": field, "code": code}}


class Form:
    """The format of responses, whole or streamed."""

    def __init__(self, asked: Asked, rows: Sequence[TokenizedText]) -> None:
        self._rows = rows
        self._is_chat = asked.is_chat
        self._has_usage = asked.has_usage
        kind = "chatcmpl" if self._is_chat else "cmpl"
        self._head = {
            "id": f"{kind}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": asked.model,
        }

    def answer(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return a whole answer."""
        choices = []
        for number, completion in enumerate(completions):
            text: dict[str, Any] = {"text": completion.text}
            if self._is_chat:
                text = {"message": {"role": "assistant", "content": completion.text, "refusal": None}}
            reason = _reason_of(completion)
            choices.append({"index": number, **text, "logprobs": None, "finish_reason": reason})
        kind = "chat.completion" if self._is_chat else "text_completion"
        usage = _count_tokens(self._rows, completions)
        return {
            **self._head,
            "object": kind,
            "choices": choices,
            "usage": usage,
        }

    def begin(self) -> list[dict[str, Any]]:
        """Return the first piece, before the text, if the format has one."""
        return [self._piece({"delta": {"role": "assistant", "content": ""}})] if self._is_chat else []

    def piece(self, text: str) -> dict[str, Any]:
        """Return a piece with a part of the text."""
        return self._piece({"delta": {"content": text}} if self._is_chat else {"text": text})

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        """Return the last pieces, after the text."""
        text: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        pieces = [self._piece(text, _reason_of(completion))]
        if self._has_usage:
            pieces.append({**self._begin_piece(), "choices": [], "usage": _count_tokens(self._rows, [completion])})
        return pieces

    def _piece(self, text: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, **text, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._has_usage else {}  # only the last piece has it
        return {**self._begin_piece(), "choices": [choice], **usage}

    def _begin_piece(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._head, "object": kind}


def _reason_of(completion: Completion) -> str:
    return "stop" if completion.has_stopped else "length"


def format_classes(
    model: str,
    rows: Sequence[TokenizedText],
    answers: Sequence[Result],
) -> dict[str, Any]:
    """Return the response of /classify."""
    data = []
    for number, answer in enumerate(answers):
        assert isinstance(answer, Answer)
        data.append({"index": number, **_format_labels(answer)})
    return {
        "id": f"classify-{secrets.token_hex(16)}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "truncated": sum(row.is_truncated for row in rows),
        "usage": _count_tokens(rows, []),
    }


def _format_labels(answer: Answer) -> dict[str, Any]:
    """Return the fields of one text; vLLM's have one label, so those of a multi-label task are in one more field."""
    probabilities = answer.probabilities
    probs = list(probabilities.values())
    fields = {"probs": probs, "num_classes": len(probs)}
    if answer.thresholds is None:
        return {"label": answer.label, **fields}
    applying = answer.applying
    likeliest = max(applying, key=lambda label: probabilities[label], default=None)
    return {"label": likeliest, "labels": applying, **fields}


def _count_tokens(rows: Sequence[TokenizedText], completions: Sequence[Completion]) -> dict[str, int]:
    asked = sum(len(row.inputs["input_ids"]) for row in rows)
    written = sum(completion.tokens for completion in completions)
    return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
