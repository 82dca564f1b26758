"""Adapters on a base model: create from the selected section, initialize, merge, save, load and count."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import cast

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsr.algebra.spectrum import Matrix
from lsr.init import INITIALIZATIONS, READERS
from lsr.init.allocation import MOST, allocate
from lsr.init.examples import widths
from lsr.loading.adapters import load_onto
from lsr.loading.files import InputError
from lsr.tuner import targets
from lsr.tuner.config import OWN, LsrConfig
from lsr.tuner.factors import entries
from lsr.tuner.family import Family, read_family
from lsr.tuner.model import check_forms
from lsr.tuner.start import Started, initialize_factors
from lsr.tuner.targets import check_indices, check_names
from pipeline.core.errors import UserError, first_line, nearest
from pipeline.data.pretrained import public_name
from pipeline.methods import architecture, device, placement, subtracted, table
from pipeline.params import PARAMS, LsrParams, MethodParams, PeftParams
from pipeline.params.rows import ModelRow

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MISFIT = (ValueError, TypeError)  # raised by a configuration or method if a value does not fit a model
# Methods of PEFT that have no section of their own may raise anything: they have not been vetted.
ANY_MISFIT = (*MISFIT, KeyError, AttributeError, IndexError, RuntimeError, AssertionError, ImportError)


def target_names(base: PreTrainedModel, section: MethodParams, row: ModelRow, seed: int) -> list[str]:
    """Return the layers of a base model that a section adapts, checked to be adaptable.

    Raises:
        UserError: if the section does not fit the model.
    """
    try:
        config = cast("LsrConfig", table.config_of(section, base, row, seed))
        names = targets.target_names(base, config)
        if isinstance(section, LsrParams):
            _check_lsr(base, names, section, config)
        return names
    except (ValueError, TypeError) as error:
        raise UserError(f"{PARAMS}: {section.word}: {error}") from None


def _check_lsr(base: PreTrainedModel, names: Sequence[str], section: LsrParams, config: LsrConfig) -> None:
    """Check that LSR can adapt layers. A budget chooses their ranks later, from 1 on.

    Raises:
        ValueError: if it cannot, the rank or the budget is above what the layers hold, or other frames do not fit;
            TypeError if a layer is of another class.
    """
    check_forms(base, names, config if section.budget == "none" else replace(config, rank_shape=(1,)), _family(config))
    sides = {name: min(widths(base.get_submodule(name))) for name in names}
    most = sum(min(MOST, side) for side in sides.values())
    if section.budget != "none" and section.budget > most:
        raise ValueError(
            f"budget: must be at most {most} on these layers, the sum of {MOST} or the smaller side of each, "
            f"got {section.budget}"
        )
    # The library allows more for Kronecker sums, such as those of adapters, but a start cannot be measured then.
    rank = prod(section.rank_shape) if section.budget == "none" else 1
    for name, side in sides.items():
        if rank > side:
            raise ValueError(f"rank_shape: the rank, {rank}, is above {side}, the smaller side of {name}")


def _family(config: LsrConfig) -> Family | None:
    """Return the frames of another adapter if they are in a folder; from a hub they come with the adapter.

    Raises:
        ValueError: if the folder holds none, or the name is that of no folder and can be no repository.
    """
    if config.frames == OWN or Path(config.frames).is_dir():
        return read_family(config)
    if "/" not in config.frames:
        allowed = f"{OWN}, or the folder or hub repository, owner/name, of an adapter"
        raise ValueError(f"frames: no folder {config.frames!r}{nearest(config.frames, [OWN])}; allowed are {allowed}")
    return None


def check_section(base: PreTrainedModel, section: MethodParams, row: ModelRow) -> None:
    """Find out whether a section fits a base model by names and shapes alone: it may have no weights.

    What a method of `peft` makes of its options is known once the adapter is there.

    Raises:
        UserError: if the section does not fit the model.
    """
    if isinstance(section, LsrParams):
        target_names(base, section, row, seed=0)
    else:
        with _explaining(section):
            _checked_config(base, section, row, seed=0)


def _checked_config(base: PreTrainedModel, section: MethodParams, row: ModelRow, seed: int) -> PeftConfig:
    """Return the configuration of a method other than LSR, which checks its layers itself."""
    config = table.config_of(section, base, row, seed)
    if placement.adapts_layers(section):
        check_layers(base, section, config)
    return config


def add_adapter(
    base: PreTrainedModel,
    section: MethodParams,
    row: ModelRow,
    seed: int,
    gradients: Sequence[Mapping[str, Matrix]] = (),  # by which a budget is allocated
) -> PeftModel:
    """Return the base model with a fresh adapter; its own LSR factors are random until `start` is exhausted.

    Raises:
        UserError: if the section does not fit the model.
    """
    with _explaining(section):
        if isinstance(section, LsrParams):  # LSR checks its layers itself
            config = table.config_of(section, base, row, seed)
            if section.budget != "none":
                config = cast("LsrConfig", config).with_ranks(allocate(gradients, section.budget, seed))
        else:
            config = _checked_config(base, section, row, seed)
        model = peft.get_peft_model(base, config)
        if isinstance(section, PeftParams):
            try_out(model)
    if subtracted.starts(config):
        subtracted.remember(model)
    return model


@contextmanager
def _explaining(section: MethodParams) -> Iterator[None]:
    """Turn what a method raises where a value does not fit into one line.

    Raises:
        UserError: in place of it.
    """
    explained = ANY_MISFIT if isinstance(section, PeftParams) else MISFIT
    try:
        yield
    except explained as error:
        raise UserError(f"{PARAMS}: {section.word}: {_explained(error, section)}") from None


def _explained(error: Exception, section: MethodParams) -> str:
    """Return an error's message in one line, after PEFT's name of the method if it does not begin with a key."""
    line = first_line(error)
    key = line.partition(":")[0].partition(".")[0]
    if isinstance(section, PeftParams) and key not in type(section).model_fields:
        return f"{section.type}: {line}"
    return line


def check_layers(base: PreTrainedModel, section: MethodParams, config: PeftConfig) -> None:
    """Check that a section's method can adapt all the layers it names, before the model is modified.

    Raises:
        ValueError: names the key and the first layer that cannot be adapted.
    """
    modules = {name: module for name, module in base.named_modules() if name}
    check_names(config, list(modules))
    opened = _maybe_include_all_linear_layers(copy.copy(config), base)
    adapted = [name for name in modules if check_target_module_exists(opened, name)]
    check_indices(config, adapted)
    if not isinstance(section, PeftParams):
        for name in adapted:
            table.check_layer(section, name, modules[name])


def try_out(model: PeftModel) -> None:
    """Run a model once, so that a method that cannot work on it fails before training.

    Raises:
        RuntimeError: or whatever the method raises.
    """
    with torch.no_grad():
        model.eval()(**cast("PreTrainedModel", model.get_base_model()).dummy_inputs)


def gradients(
    base: PreTrainedModel,
    names: Sequence[str],
    batches: Iterable[Mapping[str, Tensor]],
    row: ModelRow,
    init: str,
    head_steps: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,  # called with the numbers of batches done and in total
) -> dict[str, Matrix]:
    """Return the gradients of a base model's layers, or the updates of a short training run, for an initialization.

    The head is fitted to the examples first, and restored unless the initialization goes on from training. The model
    runs on the fastest device and is moved back afterwards, because decompositions are reproducible to the byte only on
    one device.

    Raises:
        ValueError: if the examples or the head are not suitable.
    """
    layers = {name: base.get_submodule(name) for name in names}
    head = [base.get_submodule(name) for name in architecture.head_of(row, base)]
    with device.placed(base):
        examples = device.moved(batches, device.device_of(base))
        initialization = INITIALIZATIONS[init]
        kept = {"keep_head": True} if initialization.goes_on else {}
        read = READERS[initialization.reads]
        return read(base, layers, examples, head, steps=head_steps, seed=seed, progress=progress, **kept)


def start(model: PeftModel, section: LsrParams, gradients: Sequence[Mapping[str, Matrix]] = ()) -> Iterator[Started]:
    """Initialize the factors, per layer or, if shared, per kind of layers; yield each when done.

    `gradients` holds the gradients or updates that the initialization reads, one mapping per data set.

    Raises:
        UserError: if the initialization fails on a weight or a gradient.
    """
    if section.frames != OWN:
        return  # frames from another adapter are already loaded
    try:
        yield from initialize_factors(model, init_weights=section.init, gradients=gradients)
    except ValueError as error:
        raise UserError(f"{PARAMS}: {section.init_key}: {error}") from None


def merge(model: PeftModel) -> bool:
    """Merge an adapter into its base model, and return whether its method supports that."""
    try:
        model.merge_adapter()
    except (NotImplementedError, AttributeError):  # raised by PEFT for methods that cannot be merged
        return False
    return True


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merge an adapter temporarily if unmerging is exact, so that inference costs no more than the base model.

    Most methods stay unmerged: unmerging subtracts their update, so rounding would change the base model a little at
    every evaluation. LSR restores the original weights.
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
    """Write adapter_config.json and adapter_model.safetensors to an existing folder, deterministically."""
    config = model.peft_config["default"]
    kept = config.base_model_name_or_path, config.revision
    config.base_model_name_or_path, config.revision = public_name(row)
    try:
        # Not "auto", which would ask the hub whether the vocabulary has changed.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        config.base_model_name_or_path, config.revision = kept
    (folder / "README.md").unlink()  # PEFT's empty model card
    path = folder / CONFIG
    fields = json.loads(path.read_text(encoding="utf-8"))
    for name, value in vars(config).items():
        if isinstance(value, set):  # PEFT writes it in hash order, which differs between processes
            fields[name] = sorted(value)
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Return the base model with the adapter in a folder, on the device of the base model.

    Raises:
        UserError: if the folder is not an adapter, is incomplete, or does not fit the base model.
    """
    try:
        model = load_onto(base, folder, trainable=trainable)
    except InputError as error:
        raise UserError(str(error)) from None
    # The folder names a hub repository, which PEFT would query whenever the Trainer saves a checkpoint.
    model.peft_config["default"].base_model_name_or_path = base.name_or_path
    return model


def heads(model: PeftModel, row: ModelRow) -> dict[str, nn.Module]:
    """Return the modules of the head by full name."""
    base = model.get_base_model()
    return {f"base_model.model.{name}": base.get_submodule(name) for name in architecture.head_of(row, base)}


def head_parameters(model: PeftModel, row: ModelRow) -> set[int]:
    """Return the ids of the head's parameters: the trainable copy and the original that it replaces."""
    return {id(parameter) for head in heads(model, row).values() for parameter in head.parameters()}


def count_parameters(model: PeftModel, row: ModelRow) -> dict[str, int]:
    """Return the number of parameters of the adapter, counted in three ways, of the head and of the frozen base.

    `adapter_trained` require grad; `adapter_stored` are in the adapter's file, without the head; `adapter_effective`
    form the update, including frozen ones. The base model's own head, which the trained one replaces, is not counted.

    Raises:
        ValueError: if nothing requires grad, as in an adapter loaded for inference.
    """
    in_head, names = head_parameters(model, row), tuple(f"{name}." for name in heads(model, row))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("nothing requires grad: load the adapter with trainable=True to count trained parameters")
    adapter = sum(parameter.numel() for parameter in trained if id(parameter) not in in_head)
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return {
        "adapter_trained": adapter,
        "adapter_stored": sum(entries(value) for name, value in saved.items() if not name.startswith(names)),
        "adapter_effective": adapter + table.method_of(model).frozen(model),
        "head_parameters": sum(parameter.numel() for parameter in trained if id(parameter) in in_head),
        "base_parameters": sum(parameter.numel() for parameter in frozen if id(parameter) not in in_head),
    }
