"""Tokenize prompts and answers for a language model, with labels for training, alike in every stage."""

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from lsr_onnx.task import LONGEST_TEMPLATE, NO_TEMPLATE, Message
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # the label of a token that no loss is about, as transformers has it
SAMPLE = "Q7z"  # an answer that no template holds


class Example(NamedTuple):
    """The tokens of a prompt and an answer, and their labels: the token itself, or IGNORE_INDEX."""

    ids: list[int]
    labels: list[int]

    @property
    def answer(self) -> int:
        """The number of tokens of the last answer, with the end token."""
        answered = takewhile(lambda label: label != IGNORE_INDEX, reversed(self.labels))
        return sum(1 for _ in answered)


class Prompts:
    """A tokenizer with a template: a chat template in Jinja or `none`; by default the tokenizer's own, if it has one.

    A tokenized prompt ends where the assistant's answer begins. The answer is tokenized separately, so that prompts
    have the same tokens in training and in generation.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str | None = None) -> None:
        from lsr.loading.prompts import Template  # it imports torch, which takes seconds

        self.tokenizer = tokenizer
        own = tokenizer.get_chat_template() if tokenizer.chat_template else NO_TEMPLATE
        self.template = template or own
        self._template = Template(tokenizer, self.template)
        if len(self.template) > LONGEST_TEMPLATE:
            size = f"{len(self.template):,} characters; at most {LONGEST_TEMPLATE:,} are allowed"
            raise UserError(f"the tokenizer's chat template has {size}")
        self.end = tokenizer.eos_token_id  # unless the template sets another special token after an answer
        if self.template != NO_TEMPLATE:
            turns = [{"role": role, "content": SAMPLE} for role in ("user", "assistant")]
            rendered = self._template.render(turns, asks=False)
            _, _, after = rendered.rpartition(SAMPLE)
            ids = self._template.tokens(after)
            if ids and ids[0] in tokenizer.all_special_ids:
                self.end = ids[0]
        if self.end is None:
            raise UserError("the tokenizer has no end token, eos_token, with which an answer could end")

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt: of a conversation, or of one message of the user."""
        return self._template.prompt(messages)

    def example(self, messages: Sequence[Message], answer: str) -> Example:
        """Tokenize a prompt and its answer; labels cover all of the assistant's answers.

        Raises:
            ValueError: if the template changes an answer once the conversation continues.
        """
        turns = [*messages, {"role": "assistant", "content": answer}]
        ids = list[int]()
        labels = list[int]()
        before = ""  # the prompt of the last answer
        last = ""  # last answer
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            prompt = self._template.render(turns[:number])
            if last:
                asked = self._since(prompt, before, last)
                silent = [self.end] + [IGNORE_INDEX] * (len(asked) - 1)
            else:
                asked = self._template.tokens(prompt, begins=True)
                silent = [IGNORE_INDEX] * len(asked)
            before = prompt
            last = turn["content"]
            if self.template != NO_TEMPLATE:
                last = last.strip()
            answered = self._template.tokens(last)
            ids += asked + answered
            labels += silent + answered
        return Example([*ids, self.end], [*labels, self.end])

    def _since(self, prompt: str, before: str, answer: str) -> list[int]:
        # Returns the tokens of a prompt after an answer, which came after the prompt `before`: first the end token.
        since = prompt[len(before) :].lstrip()
        ids = self._template.tokens(since[len(answer) :])
        if not (prompt.startswith(before) and since.startswith(answer) and ids[:1] == [self.end]):
            raise ValueError("the chat template changes an answer once the conversation continues")
        return ids

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end an answer."""
        return sorted({self.end, self.tokenizer.eos_token_id} - {None})

    def answer(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the tokens of an answer up to and including the first of `stop_token_ids`, or all."""
        stop_token_ids = self.stop_token_ids
        for place, token in enumerate(ids, start=1):
            if token in stop_token_ids:
                return ids[:place]
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """Decode generated tokens up to the end token."""
        written = list(takewhile(lambda token: token != self.end, ids))
        return str(self.tokenizer.decode(written, skip_special_tokens=True))
