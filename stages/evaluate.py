"""Score the trained adapter on the test split.

Reads artifacts/tokens and artifacts/adapter. Writes reports/evaluate/, and into artifacts/exports/ the forms that
`evaluate.export` asks for, with parity.json, which says how far their logits are from the adapter's.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from pyarrow import parquet
from torch import Tensor
from torch.nn import functional as F

from pipeline import artifacts, console, params, stage
from pipeline.data import tokens
from pipeline.evaluation import inference, plots, scores
from pipeline.methods import adapters, base_models, device, exports, task
from pipeline.params.rows import DatasetRow, Number

GROUPS = 10  # equal parts of a regression's range, for the plot of actual against predicted


@dataclass(frozen=True)
class Outcome:
    """What the model said of the test split."""

    logits: Tensor  # (examples, labels)
    labels: Tensor  # (examples,)
    merge_difference: float  # largest |logit of the merged model - logit of the adapter beside its base|


def evaluate(outcome: Outcome, dataset: DatasetRow, resamples: int) -> dict[str, float]:
    """Return the official metrics with 95 % intervals, the loss and the calibration error.

    `score` is the first metric; `loss` is in nats per example, or the mean squared error of a regression.
    """
    labels = outcome.labels.numpy()
    predicted = inference.predicted(outcome.logits.numpy(), dataset)
    found = scores.score(dataset.metrics, predicted, labels)
    bounds = scores.intervals(dataset.metrics, predicted, labels, resamples)
    metrics = {"score": found[dataset.metrics[0]], **found, "merge_difference": outcome.merge_difference}
    for name, (low, high) in bounds.items():
        metrics |= {f"{name}_low": low, f"{name}_high": high}
    if dataset.is_regression:
        return metrics | {"loss": float(F.mse_loss(outcome.logits[:, 0], outcome.labels.float()))}
    probabilities = outcome.logits.softmax(dim=1).numpy()
    return metrics | {
        "loss": float(F.cross_entropy(outcome.logits, outcome.labels)),
        "calibration_error": scores.calibration_error(probabilities, labels),
    }


def outcome_of(model: PeftModel, view: params.EvaluateView) -> Outcome:
    """Run the model over the test split, once with the adapter beside its base and once merged into it."""
    test = tokens.load_tokens("test")
    collate = tokens.collator(base_models.load_tokenizer(view.base_model))
    with console.progress("evaluate", 2 * len(test), "examples") as advance:
        beside = inference.logits(model, test, collate, view.evaluate.batch_size, advance)
        model.merge_adapter()
        merged = inference.logits(model, test, collate, view.evaluate.batch_size, advance)
    return Outcome(beside, torch.tensor(test["label"]), float((beside - merged).abs().max()))


def load_model(view: params.EvaluateView, *, trainable: bool = False) -> PeftModel:
    """Return the trained adapter beside its base."""
    base = base_models.load_base_model(view.base_model, view.dataset)
    return adapters.load_adapter(base, artifacts.ADAPTER, trainable=trainable)


def export(view: params.EvaluateView, logits: Tensor) -> dict[str, float]:
    """Write the forms that are asked for; return how far each, loaded again, is from the adapter's logits at most."""
    test, collate = tokens.load_tokens("test"), tokens.collator(base_models.load_tokenizer(view.base_model))
    differences: dict[str, float] = {}
    with artifacts.replacing(artifacts.EXPORTS) as folder:
        folder.mkdir()
        for form in view.evaluate.export:
            exports.write(form, load_model(view), folder / form, view.base_model)
            if form == "lora":  # a checkpoint has its own place for this
                shutil.copy(artifacts.ADAPTER / task.FILE, folder / form)
            loaded = exports.load(form, folder / form, base_models.load_base_model(view.base_model, view.dataset))
            with console.progress(f"compare {form}", len(test), "examples") as advance:
                found = inference.logits(loaded, test, collate, view.evaluate.batch_size, advance)
            differences[form] = float((found - logits).abs().max())
        artifacts.write_metrics(folder / artifacts.PARITY, differences)
    return differences


def main(view: params.EvaluateView) -> None:
    model = device.place(load_model(view, trainable=True))  # nothing trains, but it is counted
    outcome = outcome_of(model, view)
    differences = export(view, outcome.logits)
    metrics = {
        **evaluate(outcome, view.dataset, view.evaluate.resamples),
        **adapters.count_parameters(model, view.base_model),
        "adapter_bytes": (artifacts.ADAPTER / adapters.WEIGHTS).stat().st_size,
        "examples": len(outcome.labels),
    }
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, metrics)
    write_predictions(outcome, view.dataset)
    write_picture(outcome, view)
    report(metrics, differences, view)


def report(metrics: Mapping[str, float], differences: Mapping[str, float], view: params.EvaluateView) -> None:
    """Print the closing table, and one of the exports if there are any."""
    names = view.dataset.metrics
    rows = [(name, metrics[name], f"{metrics[f'{name}_low']:.4f} to {metrics[f'{name}_high']:.4f}") for name in names]
    rest = [(name, value, "") for name, value in metrics.items() if not name.startswith(("score", *names))]
    console.table(f"evaluate: {view.data}", ["metric", "value", "95 % interval"], [*rows, *rest])
    if differences:
        exported = [(form, value, str(artifacts.EXPORTS / form)) for form, value in differences.items()]
        console.table("exports, loaded again", ["form", "largest difference of logits", "folder"], exported)


def write_predictions(outcome: Outcome, dataset: DatasetRow) -> None:
    """Write one line an example: the text, the label, the prediction, and both as groups that a plot can count."""
    path = artifacts.tokens("test")
    texts = [name for name in parquet.read_schema(path).names if name in ("text", "text_pair")]
    table = parquet.read_table(path, columns=texts)
    predicted = inference.predicted(outcome.logits.numpy(), dataset)
    columns: dict[str, Sequence[artifacts.Value]] = {name: table[name].to_pylist() for name in texts}
    if isinstance(dataset.label, Number):
        columns |= {"actual": outcome.labels.tolist(), "predicted": predicted.tolist()}
        for name in ("actual", "predicted"):
            columns[f"{name}_group"] = groups(np.asarray(columns[name]), dataset.label)
    else:
        names = dataset.label.names
        columns |= {"actual": [names[i] for i in outcome.labels], "predicted": [names[i] for i in predicted]}
        columns |= {"actual_group": columns["actual"], "predicted_group": columns["predicted"]}
        columns["confidence"] = outcome.logits.softmax(dim=1).amax(dim=1).tolist()
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))


def groups(values: np.ndarray, label: Number) -> list[str]:
    """Return for each value the part of the label's range that it is in, named so that the names sort as the parts."""
    edges = np.linspace(label.low, label.high, GROUPS + 1)
    positions = np.clip(np.digitize(values, edges) - 1, 0, GROUPS - 1)
    return [f"{position}: {edges[position]:g} to {edges[position + 1]:g}" for position in positions]


def write_picture(outcome: Outcome, view: params.EvaluateView) -> None:
    """Draw the confusion matrix, or the scatter plot of a regression."""
    predicted, label = inference.predicted(outcome.logits.numpy(), view.dataset), view.dataset.label
    title = f"{view.model} on {view.data}, test split"
    if isinstance(label, Number):
        plots.scatter(
            artifacts.EVALUATE_PICTURE, outcome.labels.tolist(), predicted.tolist(), label.low, label.high, title
        )
    else:
        plots.confusion_matrix(
            artifacts.EVALUATE_PICTURE, outcome.labels.tolist(), predicted.tolist(), label.names, title
        )


if __name__ == "__main__":
    stage.run(main, params.EvaluateView)
