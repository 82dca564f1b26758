"""What happens while the Trainer runs: progress, and an early end."""

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
