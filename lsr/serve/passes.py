"""Run texts for different adapters through a bank in one batch, to classify or to generate."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsr.errors import HALVES, InputError, wrap_errors
from lsr.loading.padding import prepare_batches
from lsr.loading.prompts import NO_TEMPLATE, Template, continuations
from lsr.serve.bank import AdapterBank, Answer
from lsr.serve.completions import Completion, Wanted, Writing
from lsr.serve.modules import Version
from lsr.serve.truncation import Inputs, truncate
from lsr.tuner.model import BASE

MAX_TEXTS = 64  # maximum number of texts of a request
# Characters per token. Before anything is tokenized, a text that must not be truncated is refused above so many, and a
# request above what all its texts could have if none were truncated.
CHARACTERS = 20
ROLES = ("system", "user", "assistant")  # roles of messages, the same as in training
# What a text of a request must be:
TEXT = "a text"
PAIR = "a list of two texts, each"
PROMPT = f"a text, or a list of messages with role and content, where role is {' or '.join(ROLES)},"

Result = Answer | Completion | None  # a prediction or a completion; None: not finite


class ReplacedError(Exception):
    """The adapter of a row was replaced or removed after the row was tokenized; it must be tokenized again."""


def _never() -> bool:
    return False


class TokenizedText(NamedTuple):
    """A tokenized text for one version of an adapter: by its columns, length, template and stop tokens."""

    adapter: str
    version: Version
    inputs: Inputs
    wanted: Wanted | None = None  # settings of a completion; None where an adapter predicts
    is_unwanted: Callable[[], bool] = _never  # whether nobody awaits the answer any more: then nothing more is written
    is_truncated: bool = False


class BatchRunner:
    """Runs batches of a bank with its tokenizer; it generates text if the base model is a causal language model.

    `tokens` limits a text, or a prompt together with its `max_new_tokens`. If `is_strict`, longer ones are refused,
    otherwise truncated.

    Raises:
        InputError: if the base model has fewer positions, or its batches cannot be padded.
    """

    def __init__(
        self,
        bank: AdapterBank,
        tokenizer: Any,
        tokens: int,
        max_new_tokens: int,
        *,
        is_strict: bool = False,
    ) -> None:
        self.bank = bank
        self.is_strict = is_strict
        self.tokenizer = tokenizer
        model = bank.model
        prepare_batches(tokenizer, model.config, "the base model")
        tokenizer(["any"])  # a first call changes the tokenizer; later ones, of several threads, do not
        tokens = min(tokens, tokenizer.model_max_length)
        writes = model.can_generate() and not model.config.is_encoder_decoder
        if writes and not 0 < max_new_tokens < tokens:
            raise InputError(
                f"--max-new-tokens: needed: some of the {tokens} tokens, but not all, got {max_new_tokens}"
            )
        self.field = "prompts" if writes else "texts"  # name of the request's field, for messages
        self.max_new_tokens = max_new_tokens if writes else 0
        self.tokens = tokens - self.max_new_tokens  # maximum tokens of a text or prompt
        end = model.generation_config.eos_token_id if writes else None
        self.stop_token_ids: list[int] = [end] if isinstance(end, int) else end or []
        no_padding = int(tokenizer.pad_token_id == 0)
        try:
            with torch.no_grad():
                bank(input_ids=torch.full((1, tokens), no_padding), adapter_names=[BASE])
        except (IndexError, RuntimeError):
            raise InputError(f"--max-length: the base model does not take {tokens}") from None

    def rows(
        self,
        name: str,
        version: Version,
        texts: Sequence[Any],
        wanted: Wanted | None = None,
        *,
        template: str | None = None,
        names: Sequence[str] = (),
        is_strict: bool = False,
    ) -> list[TokenizedText]:
        """Tokenize texts, pairs of texts (if the adapter's task info has two columns) or prompts into rows.

        A prompt is a text or, if the task info has a template, a conversation: a list of messages. `template` overrides
        the task info's. `names` replace the names of the texts in errors. A text with more tokens than the adapter
        reads is truncated as in `pipeline.predict`, a prompt on the left, unless this or the runner `is_strict`.

        Raises:
            InputError: if a text is not valid; names the first one.
        """
        task_info = version.task_info
        most = min(self.tokens, task_info.get("max_length") or self.tokens)
        is_strict = is_strict or self.is_strict
        reader = Template(self.tokenizer, template or task_info.get("template") or NO_TEMPLATE)
        each = partial(_each, names or [f"{self.field}[{number}]" for number in range(len(texts))])
        form = TEXT
        if wanted is not None and not reader.is_none:
            form = PROMPT
        elif wanted is None and len(task_info.get("columns") or ()) == 2:
            form = PAIR
        parts = each(texts, partial(_parts, form, CHARACTERS * most if is_strict else None))
        if not is_strict:
            self._check_characters(parts)
        encoded = self._encode(parts) if wanted is None else {"input_ids": each(texts, reader.prompt)}
        each(encoded["input_ids"], partial(_check_tokens, most if is_strict else None))
        inputs = each(range(len(texts)), partial(self._read, encoded, parts, most))
        if wanted is not None:
            wanted = wanted._replace(stop_token_ids=tuple(task_info.get("stop_token_ids") or self.stop_token_ids))
        rows = list[TokenizedText]()
        for ids, own in zip(encoded["input_ids"], inputs, strict=True):
            rows.append(TokenizedText(name, version, own, wanted, is_truncated=len(ids) > most))
        return rows

    def _check_characters(self, parts: Sequence[Sequence[str]]) -> None:
        """Reject texts with more characters together than a request could have if none were truncated.

        Raises:
            InputError: if they have.
        """
        characters = CHARACTERS * self.tokens * MAX_TEXTS
        if sum(len(part) for own in parts for part in own) > characters:
            raise InputError(f"{self.field}: over {characters:,} characters together; at most that are read")

    def _encode(self, parts: Sequence[Sequence[str]]) -> Any:
        """Tokenize texts or pairs of texts, whole."""
        columns = map(list, zip(*parts, strict=True))
        return self.tokenizer(*columns, verbose=False)

    def _read(
        self,
        encoded: Any,
        parts: Sequence[Sequence[str]],
        length: int,
        number: int,
    ) -> Inputs:
        """Return the inputs of a tokenized text or prompt, truncated to `length` tokens."""
        inputs = {name: values[number] for name, values in encoded.items()}
        ids = inputs["input_ids"]
        if len(ids) <= length:
            return inputs
        if self.max_new_tokens:
            return {"input_ids": ids[-length:]}
        return truncate(self.tokenizer, encoded, number, parts[number], length)

    def answers(self, rows: Sequence[TokenizedText]) -> list[Result | Exception]:
        """Return the result of each row: a ReplacedError if its version has left the bank.

        If a batch fails, for example by lack of memory, its halves run separately, so that only the row that causes the
        error gets it. The bank must not change meanwhile.
        """
        with self.bank.shared.one_thread:
            versions = self.bank.versions
            current = [row for row in rows if versions.get(row.adapter) is row.version]
            answers = iter(self._answers(current))
            results = list[Result | Exception]()
            for row in rows:
                is_current = versions.get(row.adapter) is row.version
                results.append(next(answers) if is_current else ReplacedError())
            return results

    def _answers(self, rows: Sequence[TokenizedText]) -> list[Result | Exception]:
        if not rows:
            return []
        answer = self._generate if self.max_new_tokens else self._predict
        try:
            return [*answer(rows)]
        except Exception as error:
            if len(rows) == 1:
                return [error]
        half = len(rows) // 2
        return self._answers(rows[:half]) + self._answers(rows[half:])

    def _predict(self, rows: Sequence[TokenizedText]) -> list[Result]:
        names = [row.adapter for row in rows]
        inputs = self.tokenizer.pad([row.inputs for row in rows], return_tensors="pt")
        with torch.no_grad():
            logits = self.bank(**inputs, adapter_names=names).logits
        answers = self.bank.answers(logits, names)
        return [answer if answer.logits.isfinite().all() else None for answer in answers]

    def _generate(self, rows: Sequence[TokenizedText]) -> list[Result]:
        # Rows with other stop tokens, of which there are few, pass by themselves.
        results: list[Result] = [None] * len(rows)
        stop_tokens = [row.wanted.stop_token_ids for row in rows if row.wanted is not None]
        for stop_token_ids in set(stop_tokens):
            numbers = [number for number, own in enumerate(stop_tokens) if own == stop_token_ids]
            written = self._generate_batch([rows[number] for number in numbers], stop_token_ids)
            for number, result in zip(numbers, written, strict=True):
                results[number] = result
        return results

    def _generate_batch(self, rows: Sequence[TokenizedText], stop_token_ids: Sequence[int]) -> list[Completion | None]:
        prompts = [row.inputs["input_ids"] for row in rows]
        wanted = [row.wanted for row in rows if row.wanted is not None]
        writings = []
        for row, own in zip(rows, wanted, strict=True):
            writings.append(Writing(own, self.tokenizer, row.is_unwanted))

        def choose(_: Tensor, scores: Tensor) -> Tensor:
            are_finite = scores.amax(dim=-1).isfinite().tolist()  # NaN is larger than any; some scores are -inf
            for writing, own, is_finite in zip(writings, scores, are_finite, strict=True):
                writing.choose(own, is_finite)
            return scores

        def take(ids: Tensor, *_: Any, **__: Any) -> Tensor:  # (rows, tokens) -> (rows,): whether each is over
            for writing, token in zip(writings, ids[:, -1].tolist(), strict=True):
                writing.add(token)
            return torch.tensor([writing.is_over for writing in writings], device=ids.device)

        continuations(
            self.bank,
            self.tokenizer,
            prompts,
            max(own.max_new_tokens for own in wanted),
            stop_token_ids,
            adapter_names=[row.adapter for row in rows],
            logits_processor=[choose],
            stopping_criteria=[take],
        )
        return [writing.completion() for writing in writings]


def _each(
    names: Sequence[str],
    values: Sequence[Any],
    read: Callable[[Any], Any],
) -> list[Any]:
    """Apply `read` to each text; its errors name the text."""
    results = []
    for name, value in zip(names, values, strict=True):
        with wrap_errors(name, ValueError):
            results.append(read(value))
    return results


def _parts(form: str, characters: int | None, text: Any) -> list[str]:
    """Return the texts of a request; for a conversation all roles and contents, since templates may repeat both.

    Raises:
        ValueError: if it has another form, a text is blank, or the texts have more than `characters`.
    """
    parts = [text]
    if form == PAIR:
        is_pair = isinstance(text, list) and len(text) == 2
        parts = text if is_pair else []
    elif form == PROMPT and isinstance(text, list):
        parts = [part for message in text for part in _parts_of_message(message)]
    if not parts or not all(map(_is_text, parts)):
        raise ValueError(f"needed: {form} of whole Unicode characters, not blank")
    if characters is not None and sum(map(len, parts)) > characters:
        raise ValueError(f"over {characters:,} characters; at most that are read")
    return parts


def _parts_of_message(message: Any) -> list[Any]:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        return [None]
    role = message["role"]
    return [role, message["content"]] if role in ROLES else [None]


def _is_text(part: Any) -> bool:
    if not isinstance(part, str) or HALVES.search(part):
        return False
    return bool(part.strip())


def _check_tokens(most: int | None, ids: Sequence[int]) -> None:
    count = len(ids)
    if count == 0:  # a row of padding alone
        raise ValueError("has no token; needed: a text of which the tokenizer makes some")
    if most is not None and count > most:
        raise ValueError(f"{count} tokens; this adapter reads at most {most}")
