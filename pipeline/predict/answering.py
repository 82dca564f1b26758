"""Open a trained adapter on its base model, run it over texts, and turn its outputs into columns."""

import argparse
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from lsr.loading.adapters import load_adapter
from lsr.loading.base_models import load_tokenizer
from lsr.tuner.files import read_config
from lsr.tuner.mistakes import InputError
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data.encoding import encode
from pipeline.data.pretrained import pad
from pipeline.evaluation import inference
from pipeline.methods import device, table
from pipeline.methods.adapter_task import FILE, Task
from pipeline.predict.output import Columns, rounded
from pipeline.predict.texts import Given


def answers(options: argparse.Namespace, given: Given, task: Task) -> Columns:
    """Return the label and the probability of each class, or the number, to six digits.

    Raises:
        UserError: if the adapter cannot be opened, or has other labels than its task names.
    """
    model, tokenizer = open_adapter(options.adapter, options.base)
    labels, outputs = task.labels, model.config.num_labels
    if len(labels or ("number",)) != outputs:
        where = options.adapter / FILE
        raise UserError(f"{where}: labels: {outputs} names are needed, one per output of the head")
    encoded, whole = encode(given.texts, given.pairs, tokenizer, task.max_length)
    inputs = Dataset.from_dict({**encoded, "length": [len(ids) for ids in encoded["input_ids"]]})
    with console.progress("predict", len(inputs), "texts", console.errors) as advance:
        found = inference.logits(model, inputs, DataCollatorWithPadding(tokenizer), options.batch_size, advance)
    if cut := sum(tokens > task.max_length for tokens in whole):
        console.errors.print(f"{cut} of {len(whole)} texts truncated to {task.max_length} tokens", soft_wrap=True)
    if labels is None:
        return {"number": [rounded(value) for value in found[:, 0].tolist()]}
    shares = found.double().softmax(dim=1)
    by_label = {f"p({label})": list(map(rounded, shares[:, at].tolist())) for at, label in enumerate(labels)}
    return {"label": [labels[at] for at in shares.argmax(dim=1).tolist()], **by_label}


def open_adapter(folder: Path, base: str | None) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return a trained adapter on the base model that it names, or on `base`, a folder or hub repository.

    It is in evaluation mode and on the fastest device; beside it is its tokenizer.

    Raises:
        UserError: if the folder is not such an adapter, or its base model or tokenizer is missing or does not fit.
    """
    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    try:
        fields = read_config(folder)
        if (method := fields["peft_type"]) not in (known := table.known_types()):
            raise UserError(f"{folder}: an adapter of the method {method}; needed: {' or '.join(sorted(known))}")
        model = load_adapter(folder, base, method=None)
        tokenizer = load_tokenizer(fields, folder, base)
    except InputError as error:
        raise UserError(str(error)) from None
    if tokenizer is None:
        raise UserError(f"{folder}: no tokenizer beside the adapter or its base model; see --base")
    base_model: Any = model.get_base_model()
    pad(tokenizer, str(folder), base_model)
    return device.place(model), tokenizer
