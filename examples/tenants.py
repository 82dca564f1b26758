"""Train an adapter for each tenant of a CSV file, all side by side: python -m examples.tenants data.csv -o build/all.

The file has the columns tenant, text and label; tenants have labels of their own. A fifth of a tenant's texts is held
out, and of the epochs that is kept which is best on these. Written are folders of plain LoRA, one a tenant, with its
head and the names of its labels.
"""

import argparse
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from rich.progress import track
from sklearn.model_selection import train_test_split
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed
from transformers.utils import logging

from lsr import AdapterBank
from lsr.convert.writing import check_output
from lsr.loading.base_models import locate

BASE = "sentence-transformers/all-MiniLM-L6-v2"
ROWS, LEAST = 64, 5  # texts of a batch, and of a tenant
COLUMNS = ("tenant", "text", "label")
Rows = Sequence[Mapping[str, Any]]  # token ids of a text, and the number of its label


class Tenant(NamedTuple):
    """The texts of a tenant."""

    labels: Sequence[str]
    train: Rows
    held_out: Rows


def read(file: pd.DataFrame, tokenizer: Any, max_length: int) -> dict[str, Tenant]:
    """Return the tenants of a file by name.

    Raises:
        ValueError: if a column is missing, or a tenant has fewer than five texts or two labels, or no name of a folder.
    """
    if lacking := set(COLUMNS).difference(file.columns):
        raise ValueError(f"no column {', '.join(sorted(lacking))}; there are {', '.join(file.columns)}")
    tenants = {}
    file = file[list(COLUMNS)]
    for name, table in file[(file != "").all(axis=1)].groupby("tenant"):
        if Path(name).name != name or name in ("..", "__base__"):
            raise ValueError(f"tenant {name!r}: its folder cannot have this name")
        labels = sorted(table["label"].unique())
        if len(table) < LEAST or len(labels) < 2:
            raise ValueError(f"tenant {name}: {len(table)} texts with {len(labels)} labels; needed: {LEAST} with 2")
        tokens = tokenizer(table["text"].tolist(), truncation=True, max_length=max_length)["input_ids"]
        rows = [
            {"input_ids": ids, "label": labels.index(label)} for ids, label in zip(tokens, table["label"], strict=True)
        ]
        tenants[str(name)] = Tenant(labels, *train_test_split(rows, test_size=0.2, random_state=0))
    return tenants


def add(bank: AdapterBank, name: str, labels: Sequence[str], base: Any, config: PeftConfig) -> None:
    """Add an untrained adapter, with the head that the base model has."""
    with TemporaryDirectory() as folder:
        get_peft_model(base, config).save_pretrained(folder)
        bank.add(name, folder, note={"labels": list(labels)})


def fit(
    bank: AdapterBank,
    tenants: Mapping[str, Tenant],
    collate: Any,
    *,
    epochs: int,
    rate: float,
    head_rate: float,
    size: int = ROWS,  # of a batch
    seed: int = 0,
) -> dict[str, float]:
    """Train the adapters of tenants side by side; return the best accuracy of each on its held-out texts."""
    order = random.Random(seed)  # noqa: S311
    rows = [(name, row) for name, tenant in tenants.items() for row in tenant.train]
    batches = math.ceil(len(rows) / size)
    with bank.side_by_side(tenants, rate=rate, head_rate=head_rate) as training:
        for step in track(range(epochs * batches), "training"):
            at = step % batches
            if at == 0:
                order.shuffle(rows)
            names, its = zip(*rows[at * size : (at + 1) * size], strict=True)
            training.step(collate(its), names, share=1 - step / (epochs * batches))
            if at == batches - 1:
                training.judge({name: accuracy(bank, name, one.held_out, collate) for name, one in tenants.items()})
    return training.best


def accuracy(bank: AdapterBank, name: str, rows: Rows, collate: Any) -> float:
    """Return the share of rows whose label an adapter finds."""
    found = answered(bank, name, rows, collate)
    return sum(label == row["label"] for row, label in zip(rows, found, strict=True)) / len(rows)


@torch.no_grad()
def answered(bank: AdapterBank, name: str, rows: Rows, collate: Any) -> Iterator[int]:
    """Yield the number of the label that an adapter finds for each row."""
    for first in range(0, len(rows), ROWS):
        batch = collate(rows[first : first + ROWS])
        names = [name] * len(batch.pop("labels"))
        yield from (int(one.logits.argmax()) for one in bank.answers(bank(**batch, adapter_names=names).logits, names))


def main() -> None:
    """Train the tenants of a file, write their adapters, and print what they score on held-out texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="for a folder of each tenant")
    parser.add_argument("--base", default=BASE, help="a folder or hub repository (%(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="of each LoRA (%(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--rate", type=float, default=0.004, help="of the LoRA; the head's is half of it (%(default)s)")
    parser.add_argument("--max-length", type=int, default=128, help="in tokens (%(default)s)")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(0)
    try:
        check_output(options.output, (options.file,), replace=False)
        file = pd.read_csv(options.file, dtype=str, keep_default_na=False)  # a label may be "None"
        folder, revision = locate({"base_model_name_or_path": options.base}, None)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
        tenants = read(file, tokenizer, options.max_length)
    except (OSError, ValueError) as error:
        parser.error(str(error).partition("\n")[0])

    def base(labels: int = 2) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(folder, revision=revision, num_labels=labels)

    bank, config = AdapterBank(base()), {"task_type": "SEQ_CLS", "r": options.rank, "lora_alpha": 2 * options.rank}
    for name, tenant in tenants.items():
        its = LoraConfig(**config, target_modules=["query", "value"])
        add(bank, name, tenant.labels, base(len(tenant.labels)), its)
    collate = DataCollatorWithPadding(tokenizer)
    best = fit(bank, tenants, collate, epochs=options.epochs, rate=options.rate, head_rate=options.rate / 2)
    for name, tenant in tenants.items():
        bank.write(name, options.output / name)
        print(f"{name}: {best[name]:.3f} of {len(tenant.held_out)} held-out texts, labels {', '.join(tenant.labels)}")


if __name__ == "__main__":
    main()
