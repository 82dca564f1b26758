"""What happens while the Trainer runs: progress, an early end, and the choice among equals."""

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import UserError


class Progress(TrainerCallback):
    """Advances a progress bar by each optimizer step."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the steps of a resumed run that were done before."""
        self.advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count one step."""
        self.advance(1)


class StopAtDivergence(TrainerCallback):
    """Ends a run whose loss is no number any more: nothing would bring it back."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Look at the loss.

        Raises:
            UserError: if it is infinite or NaN.
        """
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise UserError(f"train: the loss is {loss} after {state.global_step} steps: lower the learning rate")


class LaterOfEquals(TrainerCallback):
    """Of checkpoints with the best score, keeps the one with the lowest validation loss, and of these the last.

    The Trainer keeps the first. It compares right after an evaluation, so a best score that should give way is
    forgotten then; step and loss of the best are in its state, which a resumed run reads.
    """

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Compare with the best evaluation before."""
        if metrics is None or metrics["eval_score"] != state.best_metric:
            return
        losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
        if state.best_global_step is not None and metrics["eval_loss"] <= losses[state.best_global_step]:
            state.best_metric = None
