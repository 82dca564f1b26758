"""Open a trained adapter on its base model and run it over texts, for predictions and for scores."""

from collections.abc import Mapping, Sequence
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, TextStreamer

from lsr.loading import adapters, base_models
from lsr.serve.bank import AdapterBank
from lsr.tuner.mistakes import InputError
from pipeline import evaluation, generation
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError, as_user_error
from pipeline.data.base_models import check_positions, pad
from pipeline.methods import banks, device, planning
from pipeline.methods.adapter_task import FILE, AdapterTask
from pipeline.tasks import CompletionTask
from pipeline.tasks.completion import asked
from pipeline.tasks.encoding import tokenize
from pipeline.tasks.prompts import Prompts
from pipeline.tasks.task import TENANT, Columns


def answer(
    folder: Path, base: str | None, task: AdapterTask, texts: Dataset, batch_size: int, title: str
) -> tuple[Tensor, int]:  # (texts, ...), as Task.outputs
    """Return what an adapter or a bank says of texts (text, perhaps text_pair), and how many of them it truncated.

    It is put on the base model that it names, or on `base`. For a bank the texts have the number of their tenant.

    Raises:
        FloatingPointError: if an answer is not finite; names the first row.
    """
    model, tokenizer = _opened(folder, base, task)
    table, lengths = tokenize(texts, tokenizer, task.max_length)
    split, collate = Dataset(table), task.task.collator(tokenizer)
    with console.progress(title, len(split), "texts", console.errors) as advance:
        outputs = evaluation.outputs(task.task, device.place(model), split, collate, batch_size, advance)
    if not (finite := outputs.isfinite().all(dim=-1)).all():
        row = int(finite.reshape(len(split), -1).all(dim=1).int().argmin()) + 1
        raise FloatingPointError(f"row {row}: the answer is not finite: the weights of {folder} overflow")
    return outputs, int((lengths > task.max_length).sum())


def written(
    folder: Path, base: str | None, task: AdapterTask, texts: Sequence[str], batch_size: int, most: int, *, shown: bool
) -> tuple[list[str], int]:
    """Return what an adapter writes for prompts, `most` tokens each, and how many prompts it cut from the left.

    A single answer can also be printed while it is written.
    """
    model, tokenizer = _opened(folder, base, task)
    prompts = Prompts(tokenizer, task.template)
    ids = [prompts.prompt(asked(text)) for text in texts]
    cut, options = [one[-task.max_length :] for one in ids], {}
    check_positions(cast("PreTrainedModel", model), max(map(len, cut)) + most, "--new-tokens")
    if shown:
        options = {"streamer": TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)}
    with console.progress("predict", len(ids), "prompts", console.errors) as advance:
        said = generation.write(device.place(model), prompts, cut, most, batch_size, advance, **options)
    return said, sum(len(one) > task.max_length for one in ids)


def _opened(folder: Path, base: str | None, task: AdapterTask) -> tuple[nn.Module, Any]:
    """Return the model of an adapter or a bank, and its tokenizer.

    Raises:
        UserError: if something is missing or does not fit.
    """
    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    with as_user_error(InputError):
        model, its, fields = (_bank if artifacts.is_bank(folder) else _adapter)(folder, base, task)
        tokenizer = base_models.load_tokenizer(fields, folder, base)
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer beside the adapter or its base model; see --base")
    pad(tokenizer, str(folder), its)
    return model, tokenizer


Opened = tuple[nn.Module, "PreTrainedModel", Mapping[str, Any]]  # with its base model, and what says which one it is


def _adapter(folder: Path, base: str | None, task: AdapterTask) -> Opened:
    model = adapters.load_adapter(folder, base, method=None)
    config = model.peft_config["default"]
    if config.peft_type not in (known := planning.known_types()):
        raise UserError(f"{folder}: an adapter of the method {config.peft_type}; needed: {' or '.join(known)}")
    if reason := task.task.misfit(model, task.labels):
        raise UserError(f"{folder / FILE}: {reason}")
    return model, cast("PreTrainedModel", model.get_base_model()), vars(config)


def _bank(folder: Path, base: str | None, task: AdapterTask) -> Opened:
    if task.kind == CompletionTask.kind:
        raise UserError(f"{folder}: a bank of adapters that write; it answers by: lsr serve {folder}")
    bank = AdapterBank.load(base, folder)
    return banks.Served(bank, bank.names), bank.model, bank.base_fields


def printed(outputs: Tensor, tasks: Sequence[AdapterTask], whose: Mapping[str, Sequence[int]]) -> Columns:
    """Return the columns to print: of one task all that its kind says, of several the answer and its probability."""
    numbers = whose.get(TENANT, [0] * len(outputs))
    if len(used := sorted(set(numbers))) == 1:
        task = tasks[used[0]]
        return task.task.printed(outputs[:, : task.task.width(task.labels)], task.labels, task.thresholds or ())
    columns: dict[str, list[Any]] = {}
    for number, row in zip(numbers, outputs, strict=True):
        (name, (answer,)), *rest = printed(row[None], [tasks[number]], {}).items()
        columns.setdefault(name, []).append(answer)
        if rest:
            columns.setdefault("p", []).append(max(values[0] for _, values in rest))
    return columns
