"""Tokenize prompts for a language model and generate continuations, alike in training and in serving."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from lsr.errors import first_line
from lsr_onnx.task import NO_TEMPLATE, Message


class Template:
    """A tokenizer with the template that turns prompts into tokens: a Jinja chat template, or NO_TEMPLATE.

    A tokenized prompt ends where the assistant's answer begins.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self.tokenizer = tokenizer
        self.is_none = template == NO_TEMPLATE
        self._template = template

    def prompt(self, asked: str | Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt: a conversation, or a single message of the user.

        Raises:
            ValueError: if the template refuses it.
        """
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        return self.tokens(self.render(messages), begins=True)

    def render(self, messages: Sequence[Message], *, asks: bool = True) -> str:
        """Return the text of a conversation, followed by the beginning of an answer if `asks` is true.

        Raises:
            ValueError: if the template refuses it.
        """
        if self.is_none:
            return messages[-1]["content"]
        conversation = [dict(message) for message in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=asks,
            )
        except Exception as error:  # Jinja's, of which transformers takes care, or what the template raises
            raise ValueError(f"the chat template refuses it: {first_line(error)}") from None
        return str(rendered)

    def tokens(self, text: str, *, begins: bool = False) -> list[int]:
        """Tokenize a text, perhaps truncated; a chat template already contains the first special token."""
        adds = begins and self.is_none
        encoded = self.tokenizer(
            text,
            add_special_tokens=adds,
            return_special_tokens_mask=True,
            verbose=False,
        )
        ids: list[int] = encoded["input_ids"]
        # An end token that the tokenizer adds is left out; those that the text has are part of it.
        is_ended = adds and ids[-1:] == [self.tokenizer.eos_token_id] and encoded["special_tokens_mask"][-1]
        return ids[:-1] if is_ended else ids


def continuations(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    **options: Any,
) -> Tensor:  # (prompts, new tokens)
    """Return the tokens that a model generates greedily after each prompt, up to one of `stop_token_ids`.

    Prompts are padded on the left, shorter continuations on the right. `options` are passed to the model's `generate`.
    """
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    batch = padded.to(next(model.parameters()).device)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        eos_token_id=list(stop_token_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    ids: Tensor = model.generate(**batch, generation_config=greedy, **options)
    return ids[:, batch["input_ids"].shape[1] :]
