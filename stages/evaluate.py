"""Score the trained adapter on the test split and on the further sets of the row.

Reads artifacts/tokens and artifacts/adapter. Writes reports/evaluate/, and into artifacts/exports/: the forms listed in
`evaluate.export`; parity.json, how far their logits are from the adapter's; README.md, the adapter's card with its test
score, to be published with it; and, with `evaluate.submission`, the files of predictions for the benchmark's server.
"""

import shutil
from collections.abc import Callable, Mapping

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.data import tokens
from pipeline.evaluation import inference, report, submission
from pipeline.evaluation.outcome import Outcome
from pipeline.methods import adapters, base_models, cards, device, exports, task
from pipeline.params.rows import INDEX, Examples


def main(view: params.EvaluateView) -> None:
    tokenizer = base_models.load_tokenizer(view.base_model)
    test, collate = tokens.load_tokens("test"), tokens.collator(tokenizer)

    def logits(model: nn.Module, what: str, split: Dataset | None = None) -> Tensor:
        examples = test if split is None else split
        with console.progress(what, len(examples), "examples") as advance:
            return inference.logits(model, examples, collate, view.evaluate.batch_size, advance)

    def outcome_of(examples: Examples, what: str, split: Dataset) -> Outcome:
        return Outcome.of(logits(model, what, split), split["label"][:], examples, tokens.groups_of(split))

    model = device.place(load_model(view, trainable=True))  # not to train it, but to count trainable parameters
    counts = adapters.count_parameters(model, view.base_model)
    outcome = outcome_of(view.dataset, "evaluate beside the base", test)
    beside = outcome.logits
    further = {
        word: outcome_of(examples, f"evaluate {word}", tokens.load_tokens(word))
        for word, examples in view.dataset.scored.items()
    }
    asked = view.dataset.hidden if view.evaluate.submission else {}
    hidden = {split: logits(model, f"predict {split}", tokens.load_tokens(split)) for split in asked}
    merged = logits(model, "evaluate merged") if adapters.merge(model) else None
    metrics = {
        **outcome.metrics(view.evaluate.resamples),
        **counts,
        "adapter_bytes": (artifacts.ADAPTER / adapters.WEIGHTS).stat().st_size,
        "examples": len(beside),
        **({} if merged is None else {"merge_difference": inference.largest_difference(beside, merged)}),
    }
    for word, found in further.items():
        inner = {**found.metrics(view.evaluate.resamples), "examples": len(found.labels)}
        metrics |= {f"{word}_{key}": value for key, value in inner.items()}
    differences = export(view, tokenizer, logits, beside, metrics)
    if hidden:
        submit(view, hidden)
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, metrics)
    report.write_predictions(outcome)
    first = view.dataset.metrics[0]
    report.draw(outcome, f"{view.model} on {view.data}, test split: {first} {metrics[first]:.3f}")
    report.show(metrics, differences, view)
    for name, found in {view.data: outcome, **further}.items():
        report.warn_of_one_answer(name, found)


def load_model(view: params.EvaluateView, *, trainable: bool = False) -> PeftModel:
    """Return the trained adapter on its base model."""
    base = base_models.load_base_model(view.base_model, view.dataset)
    return adapters.load_adapter(base, artifacts.ADAPTER, trainable=trainable)


def export(
    view: params.EvaluateView,
    tokenizer: PreTrainedTokenizerBase,
    logits: Callable[[nn.Module, str], Tensor],
    expected: Tensor,  # (examples, labels)
    metrics: Mapping[str, float],  # for the cards
) -> dict[str, float]:
    """Write the configured forms; return the largest difference of each, loaded again, from the expected logits."""
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


def submit(view: params.EvaluateView, hidden: Mapping[str, Tensor]) -> None:
    """Write the predictions for each hidden split, next to the exported forms."""
    with artifacts.replacing(artifacts.EXPORTS / artifacts.SUBMISSION) as folder:
        folder.mkdir()
        for split, found in hidden.items():
            groups, index = tokens.groups_of(tokens.load_tokens(split)), tokens.load_column(split, INDEX)
            submission.write(folder, view.dataset.hidden[split], found, groups, index)
    files = ", ".join(sorted(path.name for path in (artifacts.EXPORTS / artifacts.SUBMISSION).iterdir()))
    console.line(f"predictions for the server: {files} in {artifacts.EXPORTS / artifacts.SUBMISSION}")


if __name__ == "__main__":
    stage.run(main, params.EvaluateView)
