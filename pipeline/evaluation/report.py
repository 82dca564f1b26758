"""The table of an evaluation's predictions."""

from collections.abc import Sequence

from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.tasks import Outcome, Task


def write_predictions(task: Task, outcome: Outcome) -> None:
    """Write one line per example: the text, the label, the prediction, and both as groups that a plot can count."""
    texts = {name: tokens.load_column("test", name) for name in ("text", "text_pair")}
    columns: dict[str, Sequence[artifacts.Value]] = {name: found for name, found in texts.items() if found is not None}
    columns |= task.table(outcome)
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))
