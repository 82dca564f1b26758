"""Parse requests about tenants that have no adapter of their own: their labels, or a few labeled texts."""

import io
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException

from lsr_onnx.errors import wrap_errors
from lsr_onnx.examples import Example, Label, parse_lines
from lsr_onnx.task import CHECKS, are_names
from lsr_server.bodies import parse_json

MAX_EXAMPLES = 1000  # maximum number of labeled texts of a request
CSV = "text/csv"
BODY = "the body"
LABELS = "labels"


def read_labels(content: Any) -> tuple[str, ...] | None:
    """Return the labels in a request, in order; None for a number.

    Raises:
        HTTPException: if the request has another form; InputError if a label is beyond the limits of task.json.
    """
    if not isinstance(content, dict) or content.keys() != {LABELS} or content[LABELS] == []:
        raise HTTPException(422, 'needed: {"labels": [NAME, ...]}, or null for a number')
    labels = content[LABELS]
    if labels is None:
        return None
    with wrap_errors(LABELS, ValueError):
        CHECKS[LABELS](labels)
    return tuple(labels)


def parse_examples(body: bytes, content_type: str, columns: Sequence[str]) -> list[Example]:
    """Return the labeled texts in a body: CSV by its content type, or else JSON.

    Raises:
        HTTPException: if JSON has another form; InputError if CSV is not valid.
    """
    if content_type.partition(";")[0].strip().lower() != CSV:
        return _read_examples(parse_json(body))
    with wrap_errors(BODY, UnicodeDecodeError):
        text = body.decode("utf-8-sig")
    return parse_lines(io.StringIO(text, newline=""), columns, BODY, MAX_EXAMPLES)


def _read_examples(content: Any) -> list[Example]:
    if not isinstance(content, dict) or content.keys() != {"texts", "labels"}:
        raise HTTPException(422, f'needed: {{"texts": [TEXT, ...], "labels": [LABEL, ...]}}, or a body of {CSV}')
    texts = content["texts"]
    labels = content["labels"]
    are_lists = isinstance(texts, list) and isinstance(labels, list)
    if not are_lists or len(texts) != len(labels) or len(texts) > MAX_EXAMPLES:
        raise HTTPException(422, f"needed: a list of texts and one of as many labels, of at most {MAX_EXAMPLES:,}")
    examples = list[Example]()
    for number, text in enumerate(texts):
        label = _read_label(labels[number], f"labels[{number}]")
        examples.append(Example(text, label))
    return examples


def _read_label(value: Any, where: str) -> Label:
    if isinstance(value, str) or type(value) in (int, float):
        return value
    if are_names(value):
        return tuple(value)
    raise HTTPException(422, f"{where}: needed: a label, a list of labels, or a number")
