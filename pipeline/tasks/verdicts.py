"""State in words whether a model is better than a baseline: for the run summary and the model card."""

from collections.abc import Iterator, Mapping

from pipeline.tasks.description import Description, Line

REGRESSION = "a regression on the mean of the frozen model's states"


def verdicts(metric: str, metrics: Mapping[str, float], description: Description) -> Iterator[Line]:
    """Yield a name and a line for each baseline with which the stage evaluate has compared a metric."""
    if f"{metric}_over_baseline" in metrics:
        yield "constant", _verdict(description.baseline_name, "", f"{metric}_over_baseline", metrics)
    if f"{metric}_over_regression" in metrics:
        score = f", {metrics[f'{metric}_regression']:.4g},"
        words = _verdict(REGRESSION, score, f"{metric}_over_regression", metrics)
        yield "regression", f"{words}; fitted to {metrics['regression_examples']:,} training examples"


def _verdict(baseline: str, score: str, key: str, metrics: Mapping[str, float]) -> str:
    """Return whether a difference is above 0, below 0 or neither, by its interval."""
    mean = metrics[key]
    low = metrics[f"{key}_low"]
    high = metrics[f"{key}_high"]
    interval = f"(95 % interval {low:.4g} to {high:.4g})"
    if low > 0:
        return f"better than {baseline}{score} by {mean:.4g} {interval}"
    if high < 0:
        return f"worse than {baseline}{score} by {-mean:.4g} {interval}"
    return f"not better than {baseline}{score.rstrip(',')}: the difference is {mean:.4g} {interval}"
