"""Completions during generation: choose the next token of each row, extend its text, and decide when it ends."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from lsr.serve.settling import Decoder
from lsr_onnx.rows import Completion, Wanted


class Writing:
    """The completion of one prompt, token by token."""

    def __init__(
        self,
        wanted: Wanted,
        decoder: Decoder,
        is_unwanted: Callable[[], bool],
    ) -> None:
        self._wanted = wanted
        self._decoder = decoder
        self._is_unwanted = is_unwanted
        self._tokens: list[int] = []
        self._text = ""
        self._has_stopped = False
        self._is_finite = True
        self.is_over = False
        self._generator = torch.Generator()
        if wanted.sampling is not None:
            self._generator.manual_seed(wanted.sampling.seed)

    def choose(self, scores: Tensor, is_finite: bool) -> None:  # (vocabulary,)
        """Sample the next token by masking all other `scores`; without sampling, leave them unchanged."""
        if self.is_over:
            return
        if not is_finite:
            self._is_finite = False
            self.is_over = True
            return
        sampling = self._wanted.sampling
        if sampling is None:
            return
        logits = scores.double().cpu()
        logits = (logits - logits.max()) / sampling.temperature  # a low temperature does not overflow
        if sampling.top_p < 1:
            kept = TopPLogitsWarper(sampling.top_p)(torch.empty(1, 0, dtype=torch.int64), logits[None])
            logits = kept[0]
        token = torch.multinomial(logits.softmax(dim=0), 1, generator=self._generator)
        scores.fill_(-torch.inf)
        scores[int(token)] = 0

    def add(self, token: int) -> None:
        """Append the next token, unless the completion has ended."""
        if self.is_over:
            return
        wanted = self._wanted
        self._tokens.append(token)
        self._has_stopped = token in wanted.stop_token_ids
        self.is_over = self._has_stopped or len(self._tokens) >= wanted.max_new_tokens or self._is_unwanted()
        if self.is_over or wanted.stop_texts or wanted.listen is not None:
            self._decode()

    def _decode(self) -> None:
        wanted = self._wanted
        text = self._decoder.decode(self._tokens)
        starts = [text.index(stop) for stop in wanted.stop_texts if stop in text]
        if starts:
            text = text[: min(starts)]
            self._has_stopped = True
            self.is_over = True
        self._text = text
        if wanted.listen is None:
            return
        count = len(text) if self.is_over else self._decoder.count_settled(self._tokens, text, wanted.stop_texts)
        wanted.listen(text[:count])

    def completion(self) -> Completion | None:
        """Return the completion; None if the logits were not finite."""
        if not self._is_finite:
            return None
        return Completion(self._text, len(self._tokens), self._has_stopped)
