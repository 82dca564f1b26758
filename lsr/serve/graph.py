"""Export a bank as one ONNX graph: the shared model, and a last layer with the rows of all tenants.

The folder is as in `lsr.convert.graph`, with tenants.json in place of task.json: it has the range of outputs and the
task info of each tenant.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lsr.convert.graph import (
    TEXTS,
    Comparison,
    Differences,
    check_exportable,
    check_installed,
    check_size,
    encode_texts,
    fast_tokenizer,
    limit_length,
    run_model,
    write_graphs,
)
from lsr.convert.writing import check_output, replace_folder
from lsr.errors import InputError
from lsr.loading.padding import prepare_batches
from lsr.serve.bank import AdapterBank
from lsr_onnx.folder import TENANTS, Tenant, tenants_as_json

COMPARED = 16  # number of tenants whose logits are compared with the bank's
MAX_ROUNDING = 1e-4  # largest accepted difference of a logit, relative to the largest logit if that is above 1


def export_bank_graphs(
    bank: str | Path,
    folder: str | Path,
    *,
    base: str | None = None,
    force: bool = False,
) -> Differences:
    """Write a bank of classifiers and regressions as graphs with the outputs of all tenants, and verify them.

    Arguments and inputs are as in `export_graphs`; the tokenizer truncates to the largest limit of a tenant.

    Raises:
        InputError: as `AdapterBank.load` and `export_graphs`; if tenants own more than rows of the last layer.
    """
    source = Path(bank)
    folder = Path(folder)
    check_output(folder, (source, base), replace=force)
    check_installed()
    loaded = AdapterBank.load(base, source)
    check_exportable(loaded.base_fields.get("task_type"), {}, source)
    layer = _find_common_layer(loaded, source)
    tokenizer = fast_tokenizer(loaded.base_fields, source, base)
    prepare_batches(tokenizer, loaded.model.config, source)
    limit_length(tokenizer, _longest(loaded))
    inputs = encode_texts(tokenizer)
    tenants = _tenants(loaded)
    expected = _logits_of_bank(loaded, inputs)
    _widen(loaded, layer)
    check_size(loaded.model, source)
    logits = run_model(loaded.model, inputs)
    _check_logits(logits, tenants, expected, source)
    comparison = Comparison(inputs, logits, lambda values: _probabilities(values, tenants))
    with replace_folder(folder) as new:
        (new / TENANTS).write_text(tenants_as_json(tenants), encoding="utf-8")
        return write_graphs(new, loaded.model, tokenizer, comparison)


def _longest(bank: AdapterBank) -> int | None:
    """Return the largest limit of tokens per text of all tenants; None if a tenant has no limit."""
    longest = 0
    for task_info in bank.task_infos.values():
        length = task_info.get("max_length")
        if length is None:
            return None
        longest = max(longest, length)
    return longest


def _find_common_layer(bank: AdapterBank, folder: Path) -> str:
    """Return the last layer, the only one in which tenants have rows of their own.

    Raises:
        InputError: if they have rows of other layers, or the bank is empty.
    """
    if bank.layers:
        first = next(iter(bank.layers))
        reason = f"its adapters have updates of their own, as of {first}, which one graph cannot have for each"
        raise InputError(f"{folder}: {reason}; needed: a bank of tenants that share one adapter")
    if len(bank.heads) != 1:
        names = ", ".join(bank.heads) or "none"
        raise InputError(f"{folder}: needed: adapters that differ in the last layer alone, got {names}")
    (layer,) = bank.heads
    if not isinstance(bank.of_base[layer], nn.Linear):
        raise InputError(f"{folder}: {layer}: needed: a linear layer, with rows for each tenant")
    return layer


def _tenants(bank: AdapterBank) -> dict[str, Tenant]:
    """Return the range of outputs and the task info of each tenant, in order."""
    tenants = dict[str, Tenant]()
    first = 0
    for name, task_info in bank.task_infos.items():
        end = first + bank.outputs(name)
        tenants[name] = Tenant(first, end, task_info)
        first = end
    return tenants


@torch.no_grad()
def _logits_of_bank(bank: AdapterBank, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the bank's logits (texts, labels) of some tenants by name."""
    names = bank.names
    step = max(1, len(names) // COMPARED)
    logits = dict[str, np.ndarray]()
    for name in {*names[::step], names[-1]}:
        owners = [name] * len(TEXTS)
        values = bank(**inputs, adapter_names=owners).logits
        logits[name] = values[:, : bank.outputs(name)].numpy()
    return logits


def _widen(bank: AdapterBank, layer: str) -> None:
    """Replace a layer of a bank's base model by one with the concatenated rows of all its adapters."""
    states = [bank.contents(name).heads for name in bank.names]
    rows = dict[str, Tensor]()
    for key in bank.of_base[layer].state_dict():
        parts = [state[f"{layer}.{key}"] for state in states]
        rows[key] = torch.cat(parts).float()
    outputs, width = rows["weight"].shape
    wide = nn.Linear(width, outputs, bias="bias" in rows)
    wide.load_state_dict(rows)
    bank.model.set_submodule(layer, wide.eval())
    bank.model.config.num_labels = outputs
    if hasattr(bank.model, "num_labels"):
        bank.model.num_labels = outputs


def _check_logits(
    logits: np.ndarray,
    tenants: dict[str, Tenant],
    expected: dict[str, np.ndarray],
    folder: Path,
) -> None:
    """Check that the model's logits of some tenants equal the bank's.

    Raises:
        InputError: if not; names the first such tenant.
    """
    for name, values in expected.items():
        tenant = tenants[name]
        own = logits[:, tenant.first : tenant.end]
        difference = float(np.abs(own - values).max())
        largest = float(np.abs(values).max())
        if not difference <= MAX_ROUNDING * max(1.0, largest):
            raise InputError(f"{folder}: {name}: the graph differs by {difference:.2g} from the bank in its logits")


def _probabilities(logits: np.ndarray, tenants: dict[str, Tenant]) -> np.ndarray | None:
    """Return the probabilities (texts, ...) of all tenants with labels; None if all tasks are regression."""
    parts = []
    for first, end, task_info in tenants.values():
        own = torch.from_numpy(logits[:, first:end]).double()
        if task_info.get("thresholds"):
            parts.append(own.sigmoid())
        elif end - first > 1:
            parts.append(own.softmax(-1))
    return torch.cat(parts, dim=1).numpy() if parts else None
