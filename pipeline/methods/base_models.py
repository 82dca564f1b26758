"""Base models with their heads for a row of pipeline/models.yaml, and the layers to adapt in them."""

import warnings
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from lsr import LsrModel
from lsr.loading import base_models as loading
from lsr.tuner.mistakes import InputError
from lsr.tuner.targets import linear_layers
from pipeline import tasks
from pipeline.core.errors import UserError, nearest
from pipeline.data import pretrained
from pipeline.data.pretrained import public_name
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.model_row import ModelRow
from pipeline.tasks.loss import use_loss

POSITIONS = ("position_embeddings", "embed_positions", "wpe")  # what transformers calls tables of learned positions
# About a renamed attribute, which concerns PEFT.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load_base_model(row: ModelRow, dataset: DatasetRow) -> PreTrainedModel:
    """Return the pretrained model with a fresh head for the task of a data set, and its loss; seed torch before.

    Its configuration gets the tokenizer's padding token: a decoder classifies the last token before the padding.

    Raises:
        UserError: if the model is missing, is not what the row pins, or lacks the head or the layers to adapt.
    """
    path, revision = pretrained.source(row)
    task = tasks.of(dataset)
    try:
        model = loading.load_model(task.auto_class(), path, revision, shown=public_name(row)[0], **task.head())
    except InputError as error:
        raise UserError(f"{row.where}: {error}") from None
    pretrained.pad(pretrained.load_tokenizer(row), row.where, model)
    _check_names(row, model)
    if loss := task.loss():
        use_loss(model, loss)
    return model


def outline(row: ModelRow, dataset: DatasetRow) -> PreTrainedModel:
    """Return the model that config.json describes, with a head and without weights: its layers have names and shapes.

    Raises:
        UserError: if the model is not there, is not what the row pins, or has no such head or layers to adapt.
    """
    task = tasks.of(dataset)
    config = pretrained.load_config(row, task)
    try:
        model = loading.outline(task.auto_class(), config, public_name(row)[0])
    except InputError as error:
        raise UserError(f"{row.where}: {error}") from None
    _check_names(row, model)
    return model


def _check_names(row: ModelRow, model: PreTrainedModel) -> None:
    modules = dict(model.named_children())
    if unknown := [name for name in row.head or () if name not in modules]:
        raise UserError(f"{row.where}: head: the model has no module {unknown[0]}; it has {', '.join(modules)}")
    layers = [name for name, module in model.named_modules() if getattr(module, "weight", None) is not None]
    for ending in row.target_modules or ():
        if not any(f".{name}".endswith(f".{ending}") for name in layers):
            linear = linear_layers(model.base_model)
            raise UserError(
                f"{row.where}: target_modules: the model has no layer {ending!r}{nearest(ending, linear)}; its linear "
                f"layers: {', '.join(linear)}"
            )


def targets_of(row: ModelRow, model: PreTrainedModel) -> Sequence[str] | str:
    """Return name suffixes of the layers to adapt, or a regular expression: from the row, or from PEFT's table.

    Raises:
        UserError: if the row names none and PEFT does not know the architecture; lists the linear layers.
    """
    if row.target_modules is not None:
        return row.target_modules
    kind = model.config.model_type
    usual = LsrModel.target_module_mapping.get(kind)
    if usual is None:
        linear = ", ".join(linear_layers(model.base_model))
        raise UserError(
            f"{row.where}: {public_name(row)[0]}: it is not known which layers of the architecture {kind} are usually "
            f"adapted; name them by target_modules of a row; its linear layers: {linear}"
        )
    return usual


def head_of(row: ModelRow, model: nn.Module) -> list[str]:
    """Return the modules of the head: from the row, or all modules with parameters outside the backbone."""
    if row.head is not None:
        return list(row.head)
    beside = {name: module for name, module in model.named_children() if name != model.base_model_prefix}
    return [name for name, module in beside.items() if any(True for _ in module.parameters())]


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Refuse texts that are longer than a table of learned positions reaches, whatever the tokenizer says.

    Raises:
        UserError: if `max_length` is above that.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITIONS:
            before = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            said = getattr(model.config, "max_position_embeddings", None) or module.num_embeddings
            pretrained.check_length(min(said, module.num_embeddings - before), max_length)
