"""Score the trained adapter on the test split.

Reads artifacts/tokens and artifacts/adapter. Writes reports/evaluate/, and artifacts/card.md: the adapter's card with
its test score, to be published with it.
"""

from lsr.tuner.files import WEIGHTS
from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.data import pretrained, tokens
from pipeline.evaluation import inference, report
from pipeline.evaluation.outcome import Outcome
from pipeline.methods import adapters, base_models, cards, device


def main(view: params.EvaluateView) -> None:
    collate = tokens.collator(pretrained.load_tokenizer(view.base_model))
    test = tokens.load_tokens("test")
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.ADAPTER, trainable=True)  # not to train it, but to count parameters
    counts = adapters.count_parameters(model, view.base_model)
    with console.progress("evaluate", len(test), "examples") as advance:
        logits = inference.logits(device.place(model), test, collate, view.evaluate.batch_size, advance)
    outcome = Outcome.of(logits, test["label"][:], view.dataset, tokens.groups_of(test))
    metrics: dict[str, float] = {
        **outcome.metrics(view.evaluate.resamples),
        **counts,
        "adapter_bytes": (artifacts.ADAPTER / WEIGHTS).stat().st_size,
        "examples": len(logits),
    }
    # As a metric is named so too, DVC's tables call the param params.yaml:data, and do not mix it up with the dep data.
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, {"data": view.data, **metrics})
    report.write_predictions(outcome)
    with artifacts.replacing(artifacts.CARD) as temporary:
        temporary.write_text(cards.of_evaluation(view, metrics, artifacts.ADAPTER).text(), encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, params.EvaluateView)
