"""Decode a growing text, and tell how much of it later tokens leave as it is, whatever the tokenizer."""

import json
import re
from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # a tokenizer decodes the first bytes of a character as this, until the others follow
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of one byte: bytes in a row are decoded together, or each as unfinished
BYTES = "ByteFallback"
# Steps of decoders, of the package tokenizers, that leave the text of earlier tokens as it is, in any order or alone.
STABLE = {BYTES, "ByteLevel", "Fuse", "Metaspace"}
STABLE_ALONE = STABLE | {"BPEDecoder", "CTC", "WordPiece"}
# The replacements of `clean_up_tokenization_spaces`. Each may still change as many last characters as it has, less one.
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class Decoder:
    """A tokenizer that decodes unfinished texts."""

    def __init__(self, tokenizer: Any) -> None:
        self._text_tokenizer = tokenizer
        steps = read_steps(tokenizer)
        self._is_stable = is_stable(steps)
        self._has_bytes = any(step["type"] == BYTES for step in steps)
        self._special = set(tokenizer.all_special_ids)
        self._cleaned = 0  # characters
        if tokenizer.clean_up_tokenization_spaces:
            self._cleaned = sum(len(pattern) - 1 for pattern in CLEANED)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._text_tokenizer.decode(tokens, skip_special_tokens=True)

    def count_settled(
        self,
        tokens: Sequence[int],
        text: str,
        stop_texts: Sequence[str],
    ) -> int:
        """Return how many leading characters of an unfinished text are final: the rest may change or be a stop text."""
        settled = text[: self._count_stable(tokens, text)]
        length = len(settled)
        for stop in stop_texts:
            for count in range(1, len(stop)):
                if settled.endswith(stop[:count]):
                    length = min(length, len(settled) - count)
        return length

    def _count_stable(self, tokens: Sequence[int], text: str) -> int:
        if not self._is_stable:
            return 0
        if self._has_bytes:
            count = self._count_before_bytes(tokens)
            text = text if count == len(tokens) else self.decode(tokens[:count])
        return max(0, len(text.rstrip(UNFINISHED)) - self._cleaned)

    def _count_before_bytes(self, tokens: Sequence[int]) -> int:
        """Return how many tokens precede the bytes at the end; special tokens between them are not decoded."""
        count = len(tokens)
        while count and self._is_byte(tokens[count - 1]):
            count -= 1
        return count

    def _is_byte(self, token: int) -> bool:
        if token in self._special:
            return True
        name = self._text_tokenizer.convert_ids_to_tokens(token)
        return BYTE.fullmatch(name or "") is not None


def read_steps(tokenizer: Any) -> list[dict[str, Any]]:
    """Return the steps of a tokenizer's decoder; without a decoder of tokenizers, one unknown step."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [{"type": None}]
    if backend.decoder is None:
        return []
    steps = []
    left = [json.loads(backend.decoder.__getstate__())]
    while left:
        step = left.pop()
        left += step.get("decoders", [])
        if step["type"] != "Sequence":
            steps.append(step)
    return steps


def is_stable(steps: Sequence[dict[str, Any]]) -> bool:
    """Return whether the steps of a decoder leave the text of earlier tokens as it is when others follow."""
    stable = STABLE_ALONE if len(steps) == 1 else STABLE
    for step in steps:
        kind = step["type"]
        is_character = kind == "Replace" and len(step["pattern"].get("String", "")) == 1
        is_start = kind == "Strip" and step["stop"] == 0
        if kind not in stable and not is_character and not is_start:
            return False
    return True
