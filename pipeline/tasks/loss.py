"""A loss of one's own, in place of that of a model of transformers."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


def use_loss(model: PreTrainedModel, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Have a model compute a loss from its logits and the labels.

    The model's own `forward` changes, not a Trainer: what reads gradients of the model without one has the same loss.
    PEFT calls `forward` past all hooks.
    """
    forward = model.forward

    @wraps(forward)  # the Trainer reads from its signature which columns the model takes
    def with_loss(*args: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
        output = forward(*args, **inputs)
        if labels is not None:
            output["loss"] = loss(output["logits"], labels)
        return output

    model.forward = with_loss
