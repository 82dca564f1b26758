"""What happens while the Trainer runs: progress, an early end, and the choice among equals."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import UserError

LOSSES = {"loss": "loss", "eval_loss": "validation loss", "train_loss": "mean loss"}  # in the Trainer's log


class DivergedError(UserError):
    """A training whose loss or weights are no numbers any more."""


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
    """Ends a run whose loss or weights are no numbers any more: nothing would bring them back."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Look at the losses: of some steps, of the validation split, and at the end of all steps.

        Raises:
            DivergedError: if one is infinite or NaN.
        """
        for key, name in LOSSES.items():
            loss = (logs or {}).get(key, 0.0)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"train: the {name} is {loss} after {state.global_step} steps: lower the learning rate"
                )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Look at what has trained, as it will be saved.

        Raises:
            DivergedError: if a value is infinite or NaN.
        """
        for name, parameter in model.named_parameters() if model is not None else ():
            if parameter.requires_grad and not parameter.isfinite().all():
                raise DivergedError(
                    f"train: {name} holds values that are not finite after {state.global_step} steps: lower the "
                    "learning rate"
                )


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
