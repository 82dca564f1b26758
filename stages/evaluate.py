"""Score the trained adapter on the test split.

Reads artifacts/tokens and artifacts/adapter. Writes reports/evaluate/, and into artifacts/exports/ the forms that
`evaluate.export` asks for, with parity.json, which says how far their logits are from the adapter's, and README.md: the
adapter's card with its test score, to be published with it.
"""

import shutil
from collections.abc import Callable, Mapping

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline import artifacts, console, params, stage
from pipeline.data import tokens
from pipeline.evaluation import inference, report
from pipeline.evaluation.outcome import Outcome
from pipeline.methods import adapters, base_models, cards, device, exports, task


def main(view: params.EvaluateView) -> None:
    tokenizer = base_models.load_tokenizer(view.base_model)
    test, collate = tokens.load_tokens("test"), tokens.collator(tokenizer)

    def logits(model: nn.Module, what: str) -> Tensor:
        with console.progress(what, len(test), "examples") as advance:
            return inference.logits(model, test, collate, view.evaluate.batch_size, advance)

    model = device.place(load_model(view, trainable=True))  # nothing trains, but it is counted
    counts = adapters.count_parameters(model, view.base_model)
    beside = logits(model, "evaluate beside the base")
    model.merge_adapter()
    merged = logits(model, "evaluate merged")
    outcome = Outcome.of(beside, test["label"], view.dataset)
    metrics = {
        **outcome.metrics(view.evaluate.resamples),
        **counts,
        "adapter_bytes": (artifacts.ADAPTER / adapters.WEIGHTS).stat().st_size,
        "examples": len(test),
        "merge_difference": inference.largest_difference(beside, merged),
    }
    differences = export(view, tokenizer, logits, beside, metrics)
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, metrics)
    report.write_predictions(outcome)
    report.draw(outcome, f"{view.model} on {view.data}, test split")
    report.show(metrics, differences, view)


def load_model(view: params.EvaluateView, *, trainable: bool = False) -> PeftModel:
    """Return the trained adapter beside its base."""
    base = base_models.load_base_model(view.base_model, view.dataset)
    return adapters.load_adapter(base, artifacts.ADAPTER, trainable=trainable)


def export(
    view: params.EvaluateView,
    tokenizer: PreTrainedTokenizerBase,
    logits: Callable[[nn.Module, str], Tensor],
    expected: Tensor,  # (examples, labels)
    metrics: Mapping[str, float],  # for the cards
) -> dict[str, float]:
    """Write the forms that are asked for; return how far each, loaded again, is from the expected logits at most."""
    differences: dict[str, float] = {}
    with artifacts.replacing(artifacts.EXPORTS) as folder:
        folder.mkdir()
        for form in view.evaluate.export:
            exports.write(form, load_model(view), folder / form, view.base_model, tokenizer)
            if form == "lora":  # a checkpoint has its own place for this
                shutil.copy(artifacts.ADAPTER / task.FILE, folder / form)
                cards.of_evaluation(view, metrics, artifacts.ADAPTER, folder / form, as_lora=True)
            found = logits(exports.load(form, folder / form, view.base_model, view.dataset), f"compare {form}")
            differences[form] = inference.largest_difference(expected, found)
        artifacts.write_metrics(folder / artifacts.PARITY, differences)
        cards.of_evaluation(view, metrics, artifacts.ADAPTER, folder)
    return differences


if __name__ == "__main__":
    stage.run(main, params.EvaluateView)
