"""Adapters on a base model: made from the chosen section, started, merged, saved, loaded and counted."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import peft
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsr.init.initialization import Start
from lsr.tuner.layer import LsrLayer
from lsr.tuner.start import collect_gradients, initialize_factors
from lsr.tuner.targets import check_names
from pipeline.errors import UserError, first_line
from pipeline.methods import device, table
from pipeline.methods.base_models import public_name
from pipeline.params import LsrParams, MethodParams
from pipeline.params.rows import ModelRow

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def add_adapter(base: PreTrainedModel, section: MethodParams, row: ModelRow, seed: int) -> PeftModel:
    """Return the base model with a fresh adapter; LSR factors are random until `start` is exhausted.

    Raises:
        UserError: if the section does not fit the model.
    """
    try:
        config = table.config_of(section, base, row, seed)
        if table.adapts_layers(section):  # LSR checks this itself
            check_names(config, [name for name, _ in base.named_modules() if name])
        return peft.get_peft_model(base, config)
    except (ValueError, TypeError) as error:
        raise UserError(f"params.yaml: {section.word}: {error}") from None


def start(
    model: PeftModel, section: LsrParams, batches: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[str, LsrLayer, Start]]:
    """Give the factors their start, layer by layer; yield each layer's name, the layer and what it started from.

    `batches` of labelled examples are read where the start looks at data, before the first layer: by the model on the
    fastest device. The model is then where it was, for decompositions have the same bytes on one device only.

    Raises:
        UserError: if a weight or the examples do not allow it.
    """
    try:
        gradients = None
        if section.reads_examples:
            with device.placed(model):
                gradients = collect_gradients(model, device.moved(batches, device.device_of(model)))
        yield from initialize_factors(model, init_weights=section.init, gradients=gradients)
    except ValueError as error:
        raise UserError(f"params.yaml: lsr.init: {error}") from None


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merge an adapter into its base model for a while, if that is exact: outputs then cost what the base model's cost.

    Most methods stay beside it. Their update is subtracted again afterwards, which would leave the base model changed
    by rounding after each look at the validation split; LSR puts the very weights back.
    """
    if not (isinstance(model, PeftModel) and table.method_of(model).merges_exactly):
        yield
        return
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()


def save_adapter(model: PeftModel, folder: Path, row: ModelRow) -> None:
    """Write adapter_config.json and adapter_model.safetensors into an existing folder, the same bytes every time."""
    config = model.peft_config["default"]
    kept = config.base_model_name_or_path, config.revision
    config.base_model_name_or_path, config.revision = public_name(row)
    try:
        # Not "auto": that would ask the hub whether the vocabulary has changed.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        config.base_model_name_or_path, config.revision = kept
    (folder / "README.md").unlink()  # PEFT's empty model card
    path = folder / CONFIG
    fields = json.loads(path.read_text(encoding="utf-8"))
    # PEFT writes sets in hash order, which differs between processes.
    for name in ("target_modules", "exclude_modules"):
        if isinstance(fields.get(name), list):
            fields[name] = sorted(fields[name])
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Return the base model with the adapter of a folder on it, all of it on the device of the base model.

    Raises:
        UserError: if the folder is no adapter, or is one for another base model.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no adapter here ({CONFIG} is missing); run the stage before, or dvc repro")
    try:
        model = PeftModel.from_pretrained(
            base,
            folder,
            is_trainable=trainable,
            low_cpu_mem_usage=True,  # drawing or decomposing factors that are about to be loaded would be for nothing
            torch_device=str(base.device),  # else PEFT takes an accelerator, wherever the base model is
        )
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: does not fit the base model: {first_line(error)}") from None
    # The folder names a hub repository. PEFT would ask the hub about it whenever the Trainer saves a checkpoint.
    model.peft_config["default"].base_model_name_or_path = base.name_or_path
    return model


def heads(model: PeftModel, row: ModelRow) -> dict[str, nn.Module]:
    """Return the modules that a model row names as the head, by their full names."""
    return {f"base_model.model.{name}": model.get_base_model().get_submodule(name) for name in row.head}


def head_parameters(model: PeftModel, row: ModelRow) -> set[int]:
    """Return the ids of the parameters of the head: what trains, and what that replaces."""
    return {id(parameter) for head in heads(model, row).values() for parameter in head.parameters()}


def count_parameters(model: PeftModel, row: ModelRow) -> dict[str, int]:
    """Return how many parameters the adapter has, in three ways, and how many the head and the frozen base have.

    `adapter_trained` require grad; `adapter_stored` are in the adapter's file, the head left out; `adapter_effective`
    shape the update, frozen ones included. The base model's own head, which the trained one replaces, counts nowhere.

    Raises:
        ValueError: if nothing requires grad, as in an adapter that was loaded for inference.
    """
    in_head, names = head_parameters(model, row), tuple(f"{name}." for name in heads(model, row))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("nothing requires grad: load the adapter with trainable=True to count what trains")
    adapter = sum(parameter.numel() for parameter in trained if id(parameter) not in in_head)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return {
        "adapter_trained": adapter,
        "adapter_stored": sum(value.numel() for name, value in saved.items() if not name.startswith(names)),
        "adapter_effective": adapter + table.method_of(model).frozen(model),
        "head_parameters": sum(parameter.numel() for parameter in trained if id(parameter) in in_head),
        "base_parameters": sum(parameter.numel() for parameter in frozen if id(parameter) not in in_head),
    }
