"""The readable results of an evaluation: the table of predictions and the closing tables."""

from collections.abc import Mapping, Sequence

from pipeline.core import artifacts, console
from pipeline.data import tokens
from pipeline.evaluation.outcome import Outcome, groups
from pipeline.params import EvaluateView
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


def show(metrics: Mapping[str, float], differences: Mapping[str, float], view: EvaluateView) -> None:
    """Print the metrics with intervals and the score of a constant answer, and a table of the exports if any."""
    names = view.dataset.metrics
    rows: list[tuple[str, float, str, float | str]] = [
        (name, metrics[name], _interval(metrics, name), metrics[f"{name}_baseline"]) for name in names
    ]
    rows.append(("loss", metrics["loss"], "", metrics["loss_baseline"]))
    rows += [(name, value, "", "") for name, value in metrics.items() if not name.startswith(("score", "loss", *names))]
    console.table(f"evaluate: {view.data}", ["metric", "value", "95 % interval", "one answer for all"], rows)
    if view.evaluate.export:
        exported = [(form, differences[form], str(artifacts.EXPORTS / form)) for form in view.evaluate.export]
        console.table("exports, loaded again", ["form", "largest difference of logits", "folder"], exported)


def _interval(metrics: Mapping[str, float], name: str) -> str:
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return f"{low:.4f} to {high:.4f}" if low < high else "none: every resample scores the same"
