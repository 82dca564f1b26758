"""Print a completion during generation."""

from typing import Any

from transformers.generation.streamers import BaseStreamer

from lsr.serve.settling import Decoder
from pipeline.tasks.prompts import Prompts


class CompletionPrinter(BaseStreamer):
    """Prints the completion of one prompt as far as later tokens leave it as it is."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._decoder = Decoder(prompts.tokenizer)
        self._has_prompt = False
        self._tokens: list[int] = []
        self._printed = 0  # characters

    def put(self, value: Any) -> None:
        """Take the tokens of the prompt, and then one token at a time."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._tokens += value.flatten().tolist()
        text = self._prompts.text(self._tokens)
        count = self._decoder.count_settled(self._tokens, text, ())
        self._print(text[:count])

    def end(self) -> None:
        """Print the rest, and a newline."""
        text = self._prompts.text(self._tokens)
        self._print(text)
        print(flush=True)

    def _print(self, text: str) -> None:
        print(text[self._printed :], end="", flush=True)
        self._printed = max(self._printed, len(text))
