"""The history of a training run: losses and scores by step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, cast

from datasets import Dataset
from transformers import Trainer


class History(NamedTuple):
    """Losses and scores of a training run, with its length."""

    log: Sequence[Mapping[str, Any]]  # `loss`, or `eval_loss` and `eval_score`, of a `step`
    read: int  # examples read, over all epochs
    best_step: int  # the step whose score is the best
    steps: int  # number of optimizer steps
    best_score: float  # score on the validation split

    @classmethod
    def of(cls, trainer: Trainer) -> Self:
        """Collect the history that a Trainer has logged."""
        state = trainer.state
        return cls(
            state.log_history,
            read=count_read(trainer),
            best_step=cast("int", state.best_global_step),
            steps=state.global_step,
            best_score=cast("float", state.best_metric),
        )

    def add_run(self, trainer: Trainer) -> Self:
        """Return this history with the length of a second training run, which has no scores, added."""
        return self._replace(
            read=self.read + count_read(trainer),
            steps=self.steps + trainer.state.global_step,
        )

    @property
    def best_epoch(self) -> int:
        """The number of the epoch whose score is the best, from 1."""
        scored = [entry["step"] for entry in self.log if "eval_score" in entry]
        return 1 + scored.index(self.best_step)


def count_read(trainer: Trainer) -> int:
    """Return the number of examples that a finished Trainer has read, over all epochs."""
    epochs = round(trainer.state.epoch)
    return epochs * len(cast("Dataset", trainer.train_dataset))
