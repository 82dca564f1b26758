"""What a bank says of each row of a batch, and the loss by which its adapters are trained together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Answer(NamedTuple):
    """The result of a row: as many logits as its adapter has labels; a number if `labels` is None."""

    adapter: str
    labels: tuple[str, ...] | None
    logits: Tensor  # (labels,), or (1,)

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label; none of a number."""
        return dict(zip(self.labels or (), self.logits.double().softmax(dim=0).tolist(), strict=False))


def losses_of_rows(
    logits: Tensor,  # (rows, most)
    labels: Tensor,  # (rows,): the index of a label, or a number
    counts: Sequence[int],  # of each row's outputs; one is a number's
) -> Tensor:  # (rows,)
    """Return the cross-entropy of each row in nats, or the squared error of a number.

    Raises:
        ValueError: if the logits are not those of one label or number per row.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"one label per row is needed, got logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        )
    is_number = torch.tensor([count == 1 for count in counts], device=logits.device)
    squares = (logits[:, 0] - labels).square()
    entropies = F.cross_entropy(logits, labels.long().masked_fill(is_number, 0), reduction="none")
    return torch.where(is_number, squares, entropies)


def mean_of_means(
    logits: Tensor,  # (rows, most)
    labels: Tensor,  # (rows,)
    names: Sequence[str],  # of each row's adapter
    outputs: Mapping[str, int],  # by adapter
) -> Tensor:  # ()
    """Return the mean over adapters of the mean loss of their rows: an adapter with few rows counts as much."""
    losses, rows = losses_of_rows(logits, labels, [outputs[name] for name in names]), Counter(names)
    shares = torch.tensor([1 / (rows[name] * len(rows)) for name in names], dtype=losses.dtype, device=losses.device)
    return (losses * shares).sum()
