"""The table of an evaluation's predictions, and their hash."""

import hashlib
from collections.abc import Sequence

from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.tasks import Outcome, Task
from pipeline.tasks.task import Numbers


def write_predictions(task: Task, outcome: Outcome) -> None:
    """Write one line per example: the text, the label, the prediction, and both as groups that a plot can count."""
    texts = {name: tokens.load_column("test", name) for name in ("text", "text_pair")}
    columns: dict[str, Sequence[artifacts.Value]] = {name: found for name, found in texts.items() if found is not None}
    columns |= task.table(outcome)
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))


def sha256(predicted: Numbers) -> str:
    """Return the hash of answers, one a line: indices as they are, numbers with two decimals.

    Processors differ in the last bits of a float, so more decimals would differ too; so would the sign of a zero.
    """
    lines = (f"{value:z.2f}" if isinstance(value, float) else str(value) for value in predicted.tolist())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
