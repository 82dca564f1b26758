"""Open a trained adapter on its base model and run it over texts, for predictions and for scores."""

from logging import ERROR, getLogger
from pathlib import Path
from typing import cast

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from lsr.loading import adapters, base_models
from lsr.tuner.mistakes import InputError
from pipeline import evaluation
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data.base_models import pad
from pipeline.data.encoding import tokenize
from pipeline.methods import device, planning
from pipeline.methods.adapter_task import FILE, AdapterTask


def answer(
    folder: Path, base: str | None, task: AdapterTask, texts: Dataset, batch_size: int, title: str
) -> tuple[Tensor, int]:  # (texts, ...), as Task.outputs
    """Return what the adapter in a folder says of texts (text, perhaps text_pair), and how many of them it truncated.

    It is put on the base model that it names, or on `base`.

    Raises:
        UserError: if the folder is no such adapter or has other labels than its task names, or its base model or
            tokenizer is missing or does not fit.
    """
    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    try:
        model = adapters.load_adapter(folder, base, method=None)
        config = model.peft_config["default"]
        if config.peft_type not in (known := planning.known_types()):
            raise UserError(f"{folder}: an adapter of the method {config.peft_type}; needed: {' or '.join(known)}")
        tokenizer = base_models.load_tokenizer(vars(config), folder, base)
    except InputError as error:
        raise UserError(str(error)) from None
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer beside the adapter or its base model; see --base")
    pad(tokenizer, str(folder), cast("PreTrainedModel", model.get_base_model()))
    if reason := task.task.misfit(model, task.labels):
        raise UserError(f"{folder / FILE}: {reason}")
    table, lengths = tokenize(texts, tokenizer, task.max_length)
    split, collate = Dataset(table), task.task.collator(tokenizer)
    with console.progress(title, len(split), "texts", console.errors) as advance:
        outputs = evaluation.outputs(task.task, device.place(model), split, collate, batch_size, advance)
    return outputs, int((lengths > task.max_length).sum())
