"""Score the trained adapter on the test split.

Reads artifacts/tokens and artifacts/adapter. Writes reports/evaluate/, and artifacts/card.md: the adapter's card with
its test score, to be published with it.
"""

from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, params, stage, tasks
from pipeline.core import artifacts, console
from pipeline.data import base_models, tokens
from pipeline.methods import adapters, cards, device


def main(view: params.EvaluateView) -> None:
    task = tasks.of(view.dataset)
    collate = task.collator(base_models.load_tokenizer(view.base_model))
    test = tokens.load_tokens("test")
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.ADAPTER, trainable=True)  # not to train it, but to count parameters
    counts = adapters.count_parameters(model, view.base_model)
    with console.progress("evaluate", len(test), "examples") as advance:
        outputs = evaluation.outputs(task, device.place(model), test, collate, view.evaluate.batch_size, advance)
    outcome = evaluation.outcome(outputs, test)
    metrics: dict[str, float] = {
        **task.metrics(outcome, view.evaluate.resamples),
        **counts,
        "adapter_bytes": (artifacts.ADAPTER / WEIGHTS).stat().st_size,
        "examples": len(test),
    }
    # As a metric is named so too, DVC's tables call the param params.yaml:data, and do not mix it up with the dep data.
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, {"data": view.data, **metrics})
    columns = {**tokens.load_texts("test"), **task.table(outcome)}
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))
    with artifacts.replacing(artifacts.CARD) as temporary:
        temporary.write_text(cards.of_evaluation(view, metrics, artifacts.ADAPTER), encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, params.EvaluateView)
