"""What a bank says of each row of a batch."""

from typing import Any, NamedTuple

from torch import Tensor


class Answer(NamedTuple):
    """The result of a row: as many logits as its adapter has labels; a number if `labels` is None."""

    adapter: str
    labels: tuple[str, ...] | None
    logits: Tensor  # (labels,), or (1,)

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label; none of a number."""
        return dict(zip(self.labels or (), self.logits.double().softmax(dim=0).tolist(), strict=False))


def labels_in(note: Any) -> Any:
    """Return what an adapter's note says of its labels; None if nothing."""
    return note.get("labels") if isinstance(note, dict) else None
