"""What is left of an evaluation for people: the table of predictions, a picture, and the closing tables."""

from collections.abc import Iterable, Mapping

from pipeline import artifacts, console
from pipeline.data import tokens
from pipeline.evaluation import plots
from pipeline.evaluation.outcome import Outcome, groups
from pipeline.params import EvaluateView
from pipeline.params.rows import Number

GROUPS = 10  # equal parts of a regression's range, for the plot of actual against predicted


def write_predictions(outcome: Outcome) -> None:
    """Write one line an example: the text, the label, the prediction, and both as groups that a plot can count."""
    columns: dict[str, Iterable[artifacts.Value]] = {**tokens.load_texts("test")}
    both = {"actual": outcome.labels.tolist(), "predicted": outcome.predicted.tolist()}
    names, label = outcome.dataset.names, outcome.dataset.label
    if isinstance(label, Number) and not names:
        grouped = {f"{name}_group": groups(values, label.low, label.high, GROUPS) for name, values in both.items()}
        columns |= {**both, **grouped}
    else:
        named = {name: [names[number] for number in numbers] for name, numbers in both.items()}
        columns |= {**named, **{f"{name}_group": values for name, values in named.items()}}
        columns["confidence"] = outcome.probabilities.amax(dim=1).tolist()
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))


def draw(outcome: Outcome, title: str) -> None:
    """Draw the confusion matrix, or the scatter plot of a regression."""
    names, label = outcome.dataset.names, outcome.dataset.label
    both = outcome.labels.tolist(), outcome.predicted.tolist()
    if isinstance(label, Number) and not names:
        plots.scatter(artifacts.EVALUATE_PICTURE, *both, label.low, label.high, title)
    else:
        plots.confusion_matrix(artifacts.EVALUATE_PICTURE, *both, names, title)


def show(metrics: Mapping[str, float], differences: Mapping[str, float], view: EvaluateView) -> None:
    """Print the closing table, and one of the exports if there are any."""
    names = view.dataset.metrics
    rows = [(name, metrics[name], f"{metrics[f'{name}_low']:.4f} to {metrics[f'{name}_high']:.4f}") for name in names]
    rest = [(name, value, "") for name, value in metrics.items() if not name.startswith(("score", *names))]
    console.table(f"evaluate: {view.data}", ["metric", "value", "95 % interval"], [*rows, *rest])
    if differences:
        exported = [(form, value, str(artifacts.EXPORTS / form)) for form, value in differences.items()]
        console.table("exports, loaded again", ["form", "largest difference of logits", "folder"], exported)
