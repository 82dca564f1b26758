"""The learning rates of an adapter's parameters."""

from typing import Any

from torch import nn

from lsr.tuner.lookup import layers_of


def parameter_groups(
    model: nn.Module,
    learning_rate: float = 0.006,
    head_learning_rate: float = 0.002,
    adapter_name: str = "default",
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model as groups for a `torch.optim` optimizer, each with its `lr`.

    `learning_rate` is for the adapter; the defaults suit `alpha=24`, and `alpha=16` with 0.004 suits Kronecker factors
    without a core. Among those, A2 and B2 get `learning_rate` / sqrt(separation rank), see `rate_factor`. All other
    trained parameters, such as a classification head, get `head_learning_rate`.

    Raises:
        ValueError: if there is no such adapter, or it has no trainable parameters.
    """
    rates = {}
    for layer in layers_of(model, adapter_name).values():
        adapter = layer.adapter(adapter_name)
        for name, parameter in adapter.named_parameters():
            factor = rate_factor(name, adapter.form.separation_rank)
            rates[parameter] = learning_rate * factor
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if rates.keys().isdisjoint(trainable):
        raise ValueError(f"no parameter of the adapter {adapter_name!r} is trainable: is another one active?")
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in trainable:
        rate = rates.get(parameter, head_learning_rate)
        group = groups.setdefault(rate, [])
        group.append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def rate_factor(name: str, terms: int) -> float:
    """Return the learning rate of a parameter by its name, relative to the adapter's: 1 / sqrt(terms) for A2 and B2.

    A2 and B2 have entries of the size 1 / sqrt(terms), and a step of Adam has the same size for every entry, so at one
    rate they would turn sqrt(terms) times faster than A1.
    """
    if name.endswith(("factor_A2", "factor_B2")):
        return 1 / terms**0.5
    return 1.0
