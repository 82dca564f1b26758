"""What an adapter's file holds, compared with what its model has: PEFT skips what is missing and what is too much."""

from collections.abc import Mapping, Sequence

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_saved(model: PeftModel, found: Mapping[str, Sequence[int]]) -> None:
    """Check that a file holds the tensors of a model's adapter of any method, its head and biases, and no others.

    `found` are the shapes of the file's tensors by their names there. A model that takes the file's own tensors has
    whatever shapes these have, so what differs there has been refused by PEFT.

    Raises:
        ValueError: names the first tensor that is missing, is too much, or has another shape.
    """
    expected: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(expected.keys() ^ found.keys()):
        raise ValueError(
            f"{name} {'is missing' if name in expected else 'is no part of this adapter on this base model'}"
        )
    for name, tensor in expected.items():
        if tuple(tensor.shape) != tuple(found[name]):
            raise ValueError(
                f"{name} is {tuple(found[name])}, and the adapter's configuration says {tuple(tensor.shape)}"
            )


def misfit(error: BaseException) -> str:
    """Return what PEFT says when it loads a file that does not fit: a KeyError is a head's tensor that is missing."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "a tensor is missing"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
