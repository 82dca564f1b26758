"""The modules of a base model to adapt and the modules of its head: as named by its row, or the usual ones."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from lsr import LsrModel
from pipeline.core.errors import UserError
from pipeline.data.pretrained import public_name
from pipeline.methods.base_models import linear_layers
from pipeline.params.rows import ModelRow


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
        raise UserError(
            f"{row.where}: {public_name(row)[0]}: it is not known which layers of the architecture {kind} are usually "
            f"adapted; name them by target_modules of a row; its linear layers: {', '.join(linear_layers(model))}"
        )
    return usual


def head_of(row: ModelRow, model: nn.Module) -> list[str]:
    """Return the modules of the head: from the row, or all modules with parameters outside the backbone."""
    if row.head is not None:
        return list(row.head)
    beside = {name: module for name, module in model.named_children() if name != model.base_model_prefix}
    return [name for name, module in beside.items() if any(True for _ in module.parameters())]
