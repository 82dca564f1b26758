"""Texts for different adapters in one pass through a bank: what it says of each, or writes after it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsr.loading.padding import prepare_batches
from lsr.serve.bank import AdapterBank
from lsr.serve.modules import Version
from lsr.tuner.mistakes import HALVES, InputError, first_line
from lsr.tuner.model import BASE

CHARACTERS = 20  # a token; texts of more are refused before they are tokenized
NO_TEMPLATE = "none"  # of prompts: a prompt is its text
ROLES = ("system", "user", "assistant")  # of messages, as in training

Said = dict[str, Any] | None  # as JSON; None: not finite


class ReplacedError(Exception):
    """The adapter of a row has been replaced or removed since the row was read, so the row must be read again."""


class Row(NamedTuple):
    """A text for an adapter, read with what one version of it requires: its columns, length, template and ends."""

    adapter: str
    version: Version
    inputs: dict[str, list[int]]  # input_ids and what else the tokenizer gives
    new_tokens: int  # to write; 0 where something is said of the text
    ends: tuple[int, ...] = ()  # tokens after which nothing is written


class Passes:
    """A bank and its tokenizer; it writes after prompts if the base model is a decoder with a head for that.

    A text has at most so many tokens, or a prompt and `new_tokens` after it.

    Raises:
        InputError: if the base model does not take so many, or batches for it cannot be padded.
    """

    def __init__(self, bank: AdapterBank, tokenizer: Any, tokens: int, new_tokens: int) -> None:
        self.bank, self.tokenizer = bank, tokenizer
        prepare_batches(tokenizer, bank.model.config, "the base model")
        tokenizer(["any"])  # a first call changes the tokenizer; later ones, of several threads, do not
        writes = bank.model.can_generate() and not bank.model.config.is_encoder_decoder
        tokens, self.new_tokens = min(tokens, tokenizer.model_max_length), new_tokens * writes
        if writes and not 0 < new_tokens < tokens:
            raise InputError(f"--new-tokens: needed: some of the {tokens} tokens, but not all, got {new_tokens}")
        self.tokens = tokens - self.new_tokens  # of a text or prompt
        end = bank.model.generation_config.eos_token_id if writes else None
        self.ends = end if isinstance(end, list) else [end] if end is not None else []
        try:
            with torch.no_grad():
                no_padding = int(tokenizer.pad_token_id == 0)
                bank(input_ids=torch.full((1, tokens), no_padding), adapter_names=[BASE])
        except (IndexError, RuntimeError):
            raise InputError(f"--max-tokens: the base model does not take {tokens}") from None

    def rows(self, name: str, version: Version, texts: Sequence[Any], new_tokens: int) -> list[Row]:
        """Return the rows of texts, of pairs of texts if the note of their adapter says so, or of prompts.

        A prompt is a text or, where the note has a template, perhaps a conversation: a list of messages.

        Raises:
            InputError: names the first one that cannot be read.
        """
        note = version.note
        field, parts = ("prompts", 1) if self.new_tokens else ("texts", len(note.get("columns") or ["text"]))
        most = min(self.tokens, note.get("max_length") or self.tokens)
        template = note.get("template") or NO_TEMPLATE
        talks = self.new_tokens > 0 and template != NO_TEMPLATE
        split = [_texts(text, parts, talks=talks) for text in texts]
        for at, its in enumerate(split):
            if not its:
                needed = "a text" if parts == 1 else "a list of two texts, each"
                messages = f"a list of messages with role and content, where role is {' or '.join(ROLES)}"
                needed += f", or {messages}," * talks
                raise InputError(f"{field}[{at}]: needed: {needed} of whole Unicode characters, not blank")
            if sum(map(len, its)) > CHARACTERS * most:
                raise InputError(f"{field}[{at}]: over {CHARACTERS * most:,} characters; at most that are read")
        if self.new_tokens:
            encoded = {"input_ids": [self._prompt(template, text, at) for at, text in enumerate(texts)]}
        else:
            encoded = self.tokenizer(*map(list, zip(*split, strict=True)), verbose=False)
        for at, ids in enumerate(encoded["input_ids"]):
            if not ids:  # a row of padding alone
                raise InputError(f"{field}[{at}]: has no token; needed: a text of which the tokenizer makes some")
            if len(ids) > most:
                raise InputError(f"{field}[{at}]: {len(ids)} tokens; this adapter reads at most {most}")
        ends = tuple(note.get("ends") or self.ends)
        inputs = [{key: its[at] for key, its in encoded.items()} for at in range(len(texts))]
        return [Row(name, version, its, new_tokens, ends) for its in inputs]

    def _prompt(self, template: str, asked: Any, at: int) -> list[int]:
        # The tokens of a prompt, after which the template lets the assistant begin.
        if template == NO_TEMPLATE:
            encoded = self.tokenizer(asked, return_special_tokens_mask=True, verbose=False)
            ids: list[int] = encoded["input_ids"]
            # An end token that the tokenizer adds is left out; those that the text has are part of it.
            is_ended = ids[-1:] == [self.tokenizer.eos_token_id] and encoded["special_tokens_mask"][-1]
            return ids[:-1] if is_ended else ids
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        options = {"chat_template": template, "add_generation_prompt": True, "return_dict": False}
        try:
            return list(self.tokenizer.apply_chat_template(messages, **options))
        except Exception as error:  # Jinja's, or what the template raises
            raise InputError(f"prompts[{at}]: the template of this adapter refuses it: {first_line(error)}") from None

    def answers(self, rows: Sequence[Row]) -> list[Said | Exception]:
        """Return what each row gets: a ReplacedError if its version is no longer in the bank, which holds still.

        If a pass fails, such as for lack of memory, halves of it pass alone: so the error is that of the row that
        causes it, and not of other tenants.
        """
        with self.bank.shared.one_thread:
            are_current = [self.bank.versions.get(row.adapter) is row.version for row in rows]
            current = [row for row, is_current in zip(rows, are_current, strict=True) if is_current]
            answers = iter(self._answers(current))
            return [next(answers) if is_current else ReplacedError() for is_current in are_current]

    def _answers(self, rows: Sequence[Row]) -> list[Said | Exception]:
        if not rows:
            return []
        try:
            return [*(self._written_apart(rows) if self.new_tokens else self._said(rows))]
        except Exception as error:
            if len(rows) == 1:
                return [error]
        half = len(rows) // 2
        return self._answers(rows[:half]) + self._answers(rows[half:])

    def _said(self, rows: Sequence[Row]) -> list[Said]:
        names, said = [row.adapter for row in rows], list[Said]()
        with torch.no_grad():
            logits = self.bank(**self._padded(rows, self.tokenizer.padding_side), adapter_names=names).logits
        for answer in self.bank.answers(logits, names):
            if not answer.logits.isfinite().all():
                said.append(None)
            elif answer.labels is None:
                said.append({"number": float(answer.logits[0])})
            elif answer.thresholds is not None:
                said.append({"labels": answer.applying, "probabilities": answer.probabilities})
            else:
                chances = answer.probabilities
                said.append({"label": max(chances, key=lambda label: chances[label]), "probabilities": chances})
        return said

    def _written_apart(self, rows: Sequence[Row]) -> list[Said]:
        # Those with other ends, of which there are few, pass by themselves.
        said = dict[int, Said]()
        for ends in dict.fromkeys(row.ends for row in rows):
            places = [at for at, row in enumerate(rows) if row.ends == ends]
            said |= zip(places, self._written([rows[at] for at in places]), strict=True)
        return [said[at] for at in range(len(rows))]

    def _written(self, rows: Sequence[Row]) -> list[Said]:
        inputs = self._padded(rows, "left")
        width = inputs["input_ids"].shape[1]
        counts = torch.tensor([row.new_tokens for row in rows])
        ends = torch.tensor(rows[0].ends, dtype=torch.int64)
        finite = torch.ones(len(rows), dtype=torch.bool)

        def watch(ids: Tensor, scores: Tensor) -> Tensor:  # of each row's next token
            written = ids[:, width:].cpu()
            # The others in the batch may be longer: what a row would go on with is not its answer.
            is_over = (written.shape[1] >= counts) | torch.isin(written, ends).any(dim=1)
            finite.logical_and_(is_over | scores.amax(dim=-1).isfinite().cpu())  # NaN is larger than any; some are -inf
            return scores

        written = self.bank.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            adapter_names=[row.adapter for row in rows],
            max_new_tokens=max(row.new_tokens for row in rows),
            eos_token_id=[*rows[0].ends] or None,
            pad_token_id=self.tokenizer.pad_token_id,
            repetition_penalty=1.0,
            logits_processor=[watch],
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
        )[:, width:]
        cut = [ids[: row.new_tokens] for row, ids in zip(rows, written, strict=True)]
        texts = self.tokenizer.batch_decode(cut, skip_special_tokens=True)
        return [{"text": text} if fine else None for text, fine in zip(texts, finite, strict=True)]

    def _padded(self, rows: Sequence[Row], side: str) -> Mapping[str, Tensor]:
        return self.tokenizer.pad([row.inputs for row in rows], padding_side=side, return_tensors="pt")


def _texts(asked: Any, parts: int, *, talks: bool) -> list[str]:
    """Return the texts of what is asked; none if it has another form, or one of them is blank or not a text.

    Those of a conversation are the role and the content of each message: a template may repeat both.
    """
    if talks and isinstance(asked, list):
        its = [text for message in asked for text in _texts_of_message(message)]
        fits = len(its) == 2 * len(asked)
    else:
        its = asked if parts == 2 and isinstance(asked, list) else [asked]
        fits = len(its) == parts
    are_texts = all(isinstance(one, str) and one.strip() and not HALVES.search(one) for one in its)
    return its if fits and are_texts else []


def _texts_of_message(message: Any) -> list[Any]:
    is_message = isinstance(message, dict) and message.keys() == {"role", "content"}
    return [message["role"], message["content"]] if is_message and message["role"] in ROLES else []
