"""The history of a training run: losses and scores by step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

from datasets import Dataset
from transformers import Trainer


class History(NamedTuple):
    """Losses and scores of a training run, with its length."""

    log: Sequence[Mapping[str, Any]]  # `loss`, or `eval_loss` and `eval_score`, of a `step`
    examples: int  # examples per epoch
    best_step: int  # the step whose weights are kept
    steps: int  # number of optimizer steps
    best_score: float  # score on the validation split

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """Collect the history that a Trainer has logged."""
        state = trainer.state
        return cls(
            state.log_history,
            examples=len(cast("Dataset", trainer.train_dataset)),
            best_step=cast("int", state.best_global_step),
            steps=state.global_step,
            best_score=cast("float", state.best_metric),
        )
