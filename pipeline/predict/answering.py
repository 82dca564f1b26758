"""Open a trained adapter on its base model and run it over texts, for predictions and for scores."""

from collections.abc import Sequence
from logging import ERROR, getLogger
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsr.loading import adapters, base_models
from lsr.loading.padding import prepare_batches
from lsr.serve.bank import AdapterBank
from lsr.serve.groups import make_member
from pipeline import evaluation
from pipeline.core import artifacts
from pipeline.core.console import Advance
from pipeline.core.errors import UserError, as_user_error
from pipeline.data.base_models import check_positions
from pipeline.methods import banks, planning
from pipeline.methods.adapter_task import FILE, AdapterTask
from pipeline.methods.device import fastest
from pipeline.predict.streaming import CompletionPrinter
from pipeline.predict.texts import check_finite, refuse_long_text
from pipeline.predict.unknown import Group
from pipeline.tasks.completion import CompletionDescription
from pipeline.tasks.completion import to_user_message as asked_of
from pipeline.tasks.encoding import tokenize
from pipeline.tasks.prompts import Prompts
from pipeline.tasks.task import Columns


class Opened:
    """An opened adapter or bank on its base model, or on another one, which answers batches of texts.

    `group` answers for tenants that the bank does not have.

    Raises:
        UserError: or InputError, if something is missing or does not fit.
    """

    def __init__(
        self,
        folder: Path,
        base: str | None,
        task: AdapterTask,
        batch_size: int,
        *,
        is_strict: bool = False,
        group: Group | None = None,
    ) -> None:
        self.folder = folder
        self.task = task
        self.batch_size = batch_size
        self.is_strict = is_strict  # texts that are longer than the adapter reads are refused
        getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
        model: nn.Module
        if artifacts.is_bank(folder):
            reason = task.task.head.misfit_of_bank(folder)
            if reason:
                raise UserError(f"{folder}: {reason}")
            bank = _load_bank(base, folder, group)
            model = banks.BankModel(bank, bank.names)
            base_model = bank.model
            fields = bank.base_fields
        else:
            fitted = adapters.load_adapter(folder, base, method=None)
            model = fitted
            base_model = fitted.get_base_model()
            fields = vars(fitted.peft_config["default"])
            _check_method(fields["peft_type"], folder)
            reason = task.task.head.find_misfit(fitted, task.labels)
            if reason:
                raise UserError(f"{folder / FILE}: {reason}")
        tokenizer = base_models.load_tokenizer(fields, folder, base)
        if tokenizer is None:
            raise UserError(f"{folder}: no tokenizer in the folder of the adapter or of its base model; see --base")
        prepare_batches(tokenizer, base_model.config, folder, writes=base_model.can_generate())
        self.tokenizer = tokenizer
        self.model = model.to(fastest())

    def outputs(
        self,
        texts: pa.Table,
        rows: Sequence[int],
        advance: Advance,
    ) -> tuple[Tensor, int]:
        """Return the outputs for a batch of texts (text, perhaps text_pair and tenant), and how many were truncated.

        Outputs are (texts, ...), as in Head.outputs; `rows` are the numbers of the texts, for messages.

        Raises:
            FloatingPointError: if an answer is not finite; names the first row.
            UserError: if a text has no token, or has too many and `is_strict`.
        """
        longest = self.task.max_length
        with as_user_error(ValueError):
            ((table, lengths),) = tokenize([texts], self.tokenizer, longest)
        truncated = np.flatnonzero(lengths > longest)
        if self.is_strict and len(truncated):
            refuse_long_text(rows[truncated[0]], longest)
        head = self.task.task.head
        collate = head.collator(self.tokenizer)
        outputs = evaluation.outputs(head, self.model, Dataset(table), collate, self.batch_size, advance)
        check_finite(outputs.numpy(), rows, self.folder)
        return outputs, len(truncated)

    def generate(
        self,
        texts: Sequence[str],
        rows: Sequence[int],
        most: int,
        advance: Advance,
        *,
        shown: bool,
    ) -> tuple[Columns, int]:
        """Return the completions of prompts, `most` tokens each, and how many prompts were truncated on the left.

        A single completion can also be printed during generation. `rows` are the numbers of the texts, for messages.

        Raises:
            UserError: if a prompt has too many tokens and `is_strict`, or the model takes fewer.
        """
        prompts = Prompts(self.tokenizer, self.task.template)
        longest = self.task.max_length
        cut = []
        truncated = 0
        for row, text in zip(rows, texts, strict=True):
            tokens = prompts.prompt(asked_of(text))
            is_long = len(tokens) > longest
            if is_long and self.is_strict:
                refuse_long_text(row, longest)
            cut.append(tokens[-longest:])
            truncated += is_long
        room = max(map(len, cut)) + most
        check_positions(cast("PreTrainedModel", self.model), room, "--max-new-tokens")
        streamer = CompletionPrinter(prompts) if shown else None
        written = evaluation.write(self.model, prompts, cut, most, self.batch_size, advance, streamer)
        return CompletionDescription.to_columns(written, None), truncated


def _load_bank(base: str | None, folder: Path, group: Group | None) -> AdapterBank:
    bank = AdapterBank.load(base, folder)
    if group is not None:
        contents = make_member(bank, group.name, group.labels)
        bank.add(group.name, contents)
    return bank


def _check_method(name: str, folder: Path) -> None:
    """Check that the method of an adapter is one that this pipeline trains.

    Raises:
        UserError: if it is not; lists the supported ones.
    """
    known = planning.list_types()
    if name not in known:
        needed = " or ".join(known)
        raise UserError(f"{folder}: an adapter of the method {name}; needed: {needed}")
