"""Limits on the bytes of answers: per request, and for all answers that are computed at once.

Each answer repeats the names of its adapter's labels, which are untrusted. So an upper bound of its size is checked
before anything is computed.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import Gauge, Histogram
from starlette.exceptions import HTTPException

from lsr_onnx.answers import Answer
from lsr_onnx.names import make_label_names
from lsr_onnx.rows import Completion, Version

SMALL = 1 << 16  # bytes of JSON that the event loop itself parses or renders: it takes about a millisecond
MAX_ANSWER_BYTES = 4 << 20  # maximum size of the answers to a request
MAX_COMPUTED_BYTES = 64 << 20  # maximum size of all larger answers that wait for a batch or are computed
NOT_FINITE = "the answer is not finite: the weights of this adapter overflow"
LONGEST_NUMBER = len("-2.2250738585072014e-308")
SECONDS = Histogram("lsr_predict_seconds", "Seconds until texts are answered")
HELD = Gauge("lsr_answer_bytes", "Most bytes of the large answers that wait for a batch or are computed")


def json_bytes(content: Any) -> bytes:
    """Encode an answer, or a part of one, as JSON in UTF-8."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def longest_token(tokenizer: Any) -> int:
    """Return the maximum number of bytes that a generated token adds to a JSON text."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    # By itself a token of some tokenizers has no space before it, but in a text it has.
    return 1 + max(len(json_bytes(text)) - len('""') for text in texts)


def most_bytes(
    version: Version,
    max_new_tokens: int,
    token_bytes: int,
) -> int:
    """Return an upper bound of the bytes of the answer to one text, including a comma.

    `max_new_tokens` is 0 for classification and regression; `token_bytes` is the size of the longest token.
    """
    if max_new_tokens:
        return len('{"text":""},') + max_new_tokens * token_bytes
    # Without names, at most as many labels as its size.
    labels = version.task_info.get("labels") or make_label_names(version.size)
    names = len(json_bytes(labels))
    longest = 6 * max(map(len, labels), default=0) + len('""')  # JSON writes a control character as six
    probabilities = names + len(labels) * (len(":") + LONGEST_NUMBER)
    applying = names if version.task_info.get("thresholds") else longest
    return len('{"labels":[],"probabilities":{}},') + probabilities + applying


def check_answers(
    texts: int,
    size: int,
    token_bytes: int,
    max_new_tokens: int,
) -> None:
    """Reject a request whose answers, `size` bytes per text at most, can exceed the limit."""
    if texts * size <= MAX_ANSWER_BYTES:
        return
    reason = f"the answers could have {texts * size:,} bytes; at most {MAX_ANSWER_BYTES:,} are allowed"
    if size <= MAX_ANSWER_BYTES:
        raise HTTPException(422, f"{reason}: at most {MAX_ANSWER_BYTES // size} at once for this adapter")
    fewer = min(max_new_tokens, MAX_ANSWER_BYTES // token_bytes - 1)
    raise HTTPException(422, f"{reason}: at most {fewer:,} max_new_tokens")


class Room:
    """Budget in bytes for large answers that wait for a batch or are computed.

    Bytes that clients have not read yet are counted with their connections.
    """

    def __init__(self) -> None:
        self._held = 0
        HELD.set_function(lambda: self._held)

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Reserve this many bytes while an answer is computed; small answers are limited by the queue instead."""
        held = size if size > SMALL else 0
        if self._held + held > MAX_COMPUTED_BYTES:
            reason = "too many large answers are computed; try again later, or ask with fewer texts at once"
            raise HTTPException(429, reason, {"Retry-After": "1"})
        self._held += held
        try:
            yield
        finally:
            self._held -= held


def encode_response(
    adapter: str,
    truncated: int,
    results: Sequence[Answer | Completion],
) -> bytes:
    """Return the body of a response, encoded answer by answer, so that other threads get their turns.

    `truncated` is the number of truncated texts.
    """
    parts = b",".join(json_bytes(_content_of(result)) for result in results)
    return b'{"adapter":%s,"answers":[%s],"truncated":%d}' % (json_bytes(adapter), parts, truncated)


def _content_of(result: Answer | Completion) -> dict[str, Any]:
    """Convert an answer or a completion to JSON values."""
    if isinstance(result, Completion):
        return {"text": result.text}
    if result.labels is None:
        return {"number": float(result.logits[0])}
    probabilities = result.probabilities
    if result.thresholds is not None:
        return {"labels": result.applying, "probabilities": probabilities}
    return {"label": result.label, "probabilities": probabilities}
