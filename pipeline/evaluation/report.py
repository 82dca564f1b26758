"""The table of an evaluation's predictions."""

from collections.abc import Sequence

from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.evaluation.outcome import Outcome, groups
from pipeline.params.dataset_row import Number

GROUPS = 10  # equal parts of a regression's range, for the plot of actual against predicted


def write_predictions(outcome: Outcome) -> None:
    """Write one line per example: the text, the label, the prediction, and both as bins that a plot can count."""
    texts = {name: tokens.load_column("test", name) for name in ("text", "text_pair")}
    columns: dict[str, Sequence[artifacts.Value]] = {name: found for name, found in texts.items() if found is not None}
    predicted = [float(f"{value:.3g}") if isinstance(value, float) else value for value in outcome.predicted.tolist()]
    both = {"actual": outcome.labels.tolist(), "predicted": predicted}
    names, label = outcome.examples.names, outcome.examples.label
    if isinstance(label, Number) and not names:
        grouped = {f"{name}_group": groups(values, label.low, label.high, GROUPS) for name, values in both.items()}
        columns |= {**both, **grouped}
    else:
        named = {name: [names[number] for number in numbers] for name, numbers in both.items()}
        columns |= {**named, **{f"{name}_group": values for name, values in named.items()}}
        # Two digits are what a confidence means; more of them differ between processors.
        columns["confidence"] = [round(value, 2) for value in outcome.probabilities.amax(dim=1).tolist()]
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))
