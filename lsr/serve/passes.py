"""Run texts for different adapters through a bank in one batch, to classify or to generate."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsr.loading.contents import Contents, read_on
from lsr.loading.padding import prepare_batches
from lsr.loading.prompts import Template, continuations
from lsr.serve.bank import AdapterBank
from lsr.serve.completions import Writing
from lsr.serve.settling import Decoder
from lsr.serve.truncation import truncate
from lsr.tuner.files import CONFIG, ROUNDED, TASK, WEIGHTS
from lsr_onnx.errors import InputError
from lsr_onnx.names import BASE
from lsr_onnx.rows import Completion, Result, TokenizedText, Version
from lsr_onnx.runner import PROMPT, TEXT, Encoded, Runner, form_of, read_each
from lsr_onnx.task import NO_TEMPLATE
from lsr_onnx.truncation import Inputs


class BatchRunner(Runner):
    """Runs batches of a bank with its tokenizer; it generates text if the base model is a causal language model.

    `tokens` limits a text, or a prompt together with its `max_new_tokens`. If `is_strict`, longer ones are refused,
    otherwise truncated.

    Raises:
        InputError: if the base model has fewer positions, or its batches cannot be padded.
    """

    can_change = True
    adapter_files = (CONFIG, TASK, WEIGHTS, ROUNDED)

    def __init__(
        self,
        bank: AdapterBank,
        tokenizer: Any,
        tokens: int,
        max_new_tokens: int,
        *,
        is_strict: bool = False,
    ) -> None:
        model = bank.model
        writes = model.can_generate() and not model.config.is_encoder_decoder
        prepare_batches(tokenizer, model.config, "the base model", writes=writes)
        tokenizer(["any"])  # a first call changes the tokenizer; later ones, of several threads, do not
        tokens = min(tokens, tokenizer.model_max_length)
        if writes and not 0 < max_new_tokens < tokens:
            raise InputError(
                f"--max-new-tokens: needed: some of the {tokens} tokens, but not all, got {max_new_tokens}"
            )
        written = max_new_tokens if writes else 0
        super().__init__(bank, tokenizer, tokens - written, written, is_strict=is_strict)
        self._decoder = Decoder(tokenizer)
        end = model.generation_config.eos_token_id if writes else None
        self.stop_token_ids: list[int] = [end] if isinstance(end, int) else end or []
        no_padding = int(tokenizer.pad_token_id == 0)
        try:
            with torch.no_grad():
                bank(input_ids=torch.full((1, tokens), no_padding), adapter_names=[BASE])
        except (IndexError, RuntimeError):
            raise InputError(f"--max-length: the base model does not take {tokens}") from None

    def encode(
        self,
        version: Version,
        texts: Sequence[Any],
        names: Sequence[str],
        longest: int | None,
        template: str,
    ) -> list[Encoded]:
        """Check and tokenize texts, or prompts if the base model generates text."""
        if self.max_new_tokens:
            reader = Template(self.tokenizer, template)
            parts = self.read_texts(TEXT if reader.is_none else PROMPT, texts, names, longest)
            encoded: Any = {"input_ids": read_each(names, texts, reader.prompt)}
        else:
            parts = self.read_texts(form_of(version), texts, names, longest)
            columns = map(list, zip(*parts, strict=True))
            encoded = self.tokenizer(*columns, verbose=False)
        tokenized = list[Encoded]()
        for number, ids in enumerate(encoded["input_ids"]):
            tokenized.append(Encoded(ids, partial(self._cut, encoded, parts, number)))
        return tokenized

    def _cut(
        self,
        encoded: Any,
        parts: Sequence[Sequence[str]],
        number: int,
        length: int,
    ) -> Inputs:
        """Return the inputs of a tokenized text or prompt, truncated to `length` tokens."""
        inputs = {name: values[number] for name, values in encoded.items()}
        ids = inputs["input_ids"]
        if len(ids) <= length:
            return inputs
        if self.max_new_tokens:
            return {"input_ids": ids[-length:]}
        return truncate(self.tokenizer, encoded, number, parts[number], length)

    def read_adapter(self, folder: Path) -> Contents:
        """Read the files of an untrusted adapter for the base model.

        Raises:
            InputError: as `read_on`; if its template is a program other than that of the base model's tokenizer, or if
                the bank has a shared adapter, which would be added to it.
        """
        if self.bank.shared_adapter is not None:
            reason = "the tenants of this bank share an adapter, which would be added to this one"
            raise InputError(f"{folder}: {reason}; add a tenant by its labels, or fit it to labeled texts")
        contents = read_on(self.bank.of_base, folder)
        template = (contents.task or {}).get("template")
        own = self.tokenizer.chat_template  # another is a program, which may take time and memory of all
        if template and template not in (NO_TEMPLATE, own):
            raise InputError(f"{folder}: task.json: template must be none or that of the base model's tokenizer")
        return contents

    def find_version(self, name: str) -> Version | None:
        """Return the present version of an adapter, or of the entry of a group; None if there is neither."""
        return self.bank.find_version(name)

    def answers(self, rows: Sequence[TokenizedText]) -> list[Result | Exception]:
        """Return the result of each row, as `Runner.answers` does, while no other thread uses the bank."""
        with self.bank.shared.one_thread:
            return super().answers(rows)

    def run(self, rows: Sequence[TokenizedText]) -> list[Result]:
        """Return the result of each row of a batch."""
        return self._generate(rows) if self.max_new_tokens else self._predict(rows)

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
            writings.append(Writing(own, self._decoder, row.is_unwanted))

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
