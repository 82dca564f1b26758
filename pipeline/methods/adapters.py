"""The chosen adapter section becomes a PEFT model: the only module that knows both params and PEFT's configs."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import peft
from peft import LoraConfig, PeftConfig, PeftModel, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from transformers import PreTrainedModel

import lsr
from lsr.init.factorize import Start
from lsr.tuner.layer import LsrLayer
from lsr.tuner.model import check_names, collect_statistics, start_factors
from pipeline.errors import UserError, first_line
from pipeline.methods.base_models import public_name
from pipeline.params import AdapterParams, FullParams, LoraParams, LsrParams, Targets
from pipeline.params.rows import ModelRow

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def add_adapter(base: PreTrainedModel, section: AdapterParams, row: ModelRow, seed: int) -> PeftModel:
    """Return the base model with a fresh adapter; LSR factors are random until `start` is exhausted.

    Raises:
        UserError: if the section does not fit the model.
    """
    try:
        config = _config(base, section, row, seed)
        if isinstance(section, LoraParams):  # LSR checks this itself
            check_names(config, [name for name, _ in base.named_modules() if name])
        return peft.get_peft_model(base, config)
    except (ValueError, TypeError) as error:
        raise UserError(f"params.yaml: {section_name(section)}: {error}") from None


def start(
    model: PeftModel, section: LsrParams, batches: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[str, LsrLayer, Start]]:
    """Give the factors their start, layer by layer; yield each layer's name, the layer and what it started from.

    `batches` of labelled examples are read where the start looks at data, before the first layer.

    Raises:
        UserError: if a weight or the examples do not allow it.
    """
    try:
        statistics = collect_statistics(model, batches) if section.reads_examples else None
        yield from start_factors(model, statistics=statistics)
    except ValueError as error:
        raise UserError(f"params.yaml: lsr.init: {error}") from None


def learning_rate(parameter: str, section: AdapterParams) -> float | None:
    """Return the peak learning rate of an adapter's parameter by its name; None where the section has none."""
    rate: float | None = getattr(section, "learning_rate", None)
    if rate is None or not isinstance(section, LsrParams):
        return rate
    factor = re.search(r"lsr_([AB])(\d+)", parameter)
    if factor is None:
        return rate
    side, position = factor.groups()
    return rate * (section.b_rate if side == "B" else 1.0) * (section.frame_rate if position != "1" else 1.0)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merge LSR adapters into their base model for a while: outputs then cost what the base model's cost.

    Other methods stay beside it. Their update is subtracted again afterwards, which would leave the base model changed
    by rounding after each look at the validation split; LSR puts the very weights back.
    """
    if not (isinstance(model, PeftModel) and any(isinstance(module, LsrLayer) for module in model.modules())):
        yield
        return
    model.merge_adapter()
    try:
        yield
    finally:
        model.unmerge_adapter()


def section_name(section: AdapterParams) -> str:
    """Return the word that chooses this section: lsr, lora, full or head."""
    return type(section).__name__.removesuffix("Params").lower()


def _config(base: PreTrainedModel, section: AdapterParams, row: ModelRow, seed: int) -> PeftConfig:
    head = list(row.head)
    if isinstance(section, LsrParams):
        return lsr.LsrConfig(
            task_type=TaskType.SEQ_CLS,
            rank_shape=section.rank_shape,
            separation_rank=section.separation_rank,
            budget=None if section.budget == "none" else section.budget,
            alpha=section.alpha,
            rank_stabilized=section.rank_stabilized,
            in_shape=None if section.in_shape == "auto" else section.in_shape,
            out_shape=None if section.out_shape == "auto" else section.out_shape,
            aspect=section.aspect,
            init_weights=section.init,
            deferred=True,
            residual=section.residual,
            frames=section.frames,
            align=section.align,
            dropout=section.dropout,
            seed=seed,
            target_modules=_targets(section.target_modules, row),
            modules_to_save=head,
        )
    if isinstance(section, LoraParams):
        return LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=section.r,
            lora_alpha=section.lora_alpha,
            lora_dropout=section.lora_dropout,
            target_modules=_targets(section.target_modules, row),
            modules_to_save=head,
        )
    # PEFT has no method "everything" or "the head": an adapter of no layers that saves whole modules is just that.
    whole = [name for name, _ in base.named_children()] if isinstance(section, FullParams) else head
    return LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=DUMMY_TARGET_MODULES, modules_to_save=whole)


def _targets(targets: Targets, row: ModelRow) -> list[str] | str:
    if targets == "default":
        return list(row.target_modules)
    return targets if isinstance(targets, str) else list(targets)


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
    """Return the base model with the adapter of a folder on it.

    Raises:
        UserError: if the folder is no adapter, or is one for another base model.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no adapter here ({CONFIG} is missing); run the stage before, or dvc repro")
    try:
        # The factors are about to be loaded: drawing or decomposing them first would be for nothing.
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder}: does not fit the base model: {first_line(error)}") from None
    # The folder names a hub repository. PEFT would ask the hub about it whenever the Trainer saves a checkpoint.
    model.peft_config["default"].base_model_name_or_path = base.name_or_path
    return model


def count_parameters(model: PeftModel, row: ModelRow) -> dict[str, int]:
    """Return how many numbers the adapter trains, stores and works with, and those of the head and the frozen base."""
    counts = {"adapter_parameters": 0, "head_parameters": 0, "base_parameters": 0}
    prefix = str(model.base_model.prefix)
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        saved_whole = "modules_to_save" in parts
        if any(head in parts for head in row.head):
            # The base model's own head, never trained, is replaced by the saved one: it counts nowhere.
            counts["head_parameters"] += parameter.numel() if saved_whole else 0
        elif saved_whole or any(part.startswith(prefix) for part in parts):
            counts["adapter_parameters"] += parameter.numel()
        else:
            counts["base_parameters"] += parameter.numel()
    sizes = [module.sizes("default") for module in model.modules() if isinstance(module, LsrLayer)]
    trained = counts["adapter_parameters"]
    counts["adapter_stored"] = trained + sum(size.stored - size.trained for size in sizes)
    counts["adapter_effective"] = trained + sum(size.effective - size.trained for size in sizes)
    return counts
