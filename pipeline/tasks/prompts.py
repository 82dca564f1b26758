"""How prompts and answers become tokens of a language model, and which of them it learns: the same in every stage."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.core.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NONE = "none"  # in place of a chat template: a prompt is its text
SILENT = -100  # the label of a token that no loss is about, as transformers has it
SAMPLE = "Q7z"  # an answer that no template holds
ROLES = ("system", "user", "assistant")

Message = Mapping[str, str]  # role and content


class Example(NamedTuple):
    """Tokens of a prompt and an answer, and of each the label: the token itself, or SILENT."""

    ids: list[int]
    labels: list[int]

    @property
    def answer(self) -> int:
        """The number of tokens of the last answer, with the end token."""
        return next((at for at, label in enumerate(reversed(self.labels)) if label == SILENT), len(self.labels))


class Prompts:
    """A tokenizer with a template: a chat template in Jinja or `none`; by default the tokenizer's own, if it has one.

    A prompt ends where the template lets the assistant begin. Its tokens do not depend on the answer, which becomes
    tokens by itself, so those that a model learns to go on from are those that it is asked with.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str | None = None) -> None:
        self.tokenizer = tokenizer
        own = tokenizer.get_chat_template() if tokenizer.chat_template else NONE
        self.template = template or own
        self.end = self._end()

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a prompt: of a conversation, or of one message of the user."""
        if self.template != NONE:
            return self._ids(self._rendered(messages, asks=True))
        ids: list[int] = self.tokenizer(messages[-1]["content"], verbose=False)["input_ids"]
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def example(self, messages: Sequence[Message], answer: str) -> Example:
        """Return the tokens of a prompt and its answer. Labels are those of all of the assistant's answers.

        Raises:
            ValueError: if the template changes an answer once the conversation goes on.
        """
        if self.template == NONE:
            pieces = iter([(self.prompt(messages), self._ids(answer))])
        else:
            pieces = self._pieces([*messages, {"role": "assistant", "content": answer}])
        ids, labels = list[int](), list[int]()
        for asked, answered in pieces:
            silent = [SILENT] * len(asked)
            if ids:  # after an answer
                if asked[:1] != [self.end]:
                    raise ValueError("the chat template does not end an answer with its end token")
                silent[0] = self.end
            ids += asked + answered
            labels += silent + answered
        return Example([*ids, self.end], [*labels, self.end])

    def text(self, ids: Sequence[int]) -> str:
        """Return what a model has written, up to the end token."""
        written = list(ids)
        known = written[: written.index(self.end)] if self.end in written else written
        return str(self.tokenizer.decode(known, skip_special_tokens=True))

    def _pieces(self, turns: Sequence[Message]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield what stands before each answer since the last one, and the answer, in tokens.

        Raises:
            ValueError: if the template says an answer otherwise once the conversation goes on.
        """
        before, answer = "", ""
        for at, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            asked = self._rendered(turns[:at], asks=True)
            since = asked[len(before) :] if not answer else asked[len(before) :].lstrip()
            if not asked.startswith(before) or not since.startswith(answer):
                raise ValueError("the chat template changes an answer once the conversation goes on")
            since, before, answer = since[len(answer) :], asked, turn["content"].strip()
            yield self._ids(since), self._ids(answer)

    def _rendered(self, messages: Sequence[Message], *, asks: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=asks,
                )
            )
        except Exception as error:  # Jinja's, of which transformers takes care, or what the template raises
            raise ValueError(f"the chat template refuses it: {first_line(error)}") from None

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _end(self) -> int:
        """Return the token that ends an answer: the special one that the template sets there, or else the tokenizer's.

        Raises:
            UserError: if there is none.
        """
        if self.template != NONE:
            turns = [{"role": "user", "content": SAMPLE}, {"role": "assistant", "content": SAMPLE}]
            after = self._ids(self._rendered(turns, asks=False).rpartition(SAMPLE)[2])
            if after and after[0] in self.tokenizer.all_special_ids:
                return after[0]
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token, eos_token, with which an answer could end")
        return int(self.tokenizer.eos_token_id)
