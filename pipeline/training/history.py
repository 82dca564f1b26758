"""What a training run reports: losses and scores by step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

from datasets import Dataset
from transformers import Trainer


class History(NamedTuple):
    """Losses and scores of a training run, with how long it was."""

    log: Sequence[Mapping[str, Any]]  # `loss`, or `eval_loss` and `eval_score`, of a `step`
    examples: int  # of an epoch
    best_step: int  # whose weights are kept
    steps: int  # of the optimizer
    best_score: float  # on validation

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """Return what a Trainer has logged."""
        state = trainer.state
        return cls(
            state.log_history,
            examples=len(cast("Dataset", trainer.train_dataset)),
            best_step=cast("int", state.best_global_step),
            steps=state.global_step,
            best_score=cast("float", state.best_metric),
        )
