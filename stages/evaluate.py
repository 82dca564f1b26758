"""Score the trained adapter on the test split.

Reads artifacts/tokens and artifacts/adapter. Writes reports/evaluate/, and into artifacts/exports/: the forms listed in
`evaluate.export`; parity.json, how far their logits are from the adapter's; and README.md, the adapter's card with its
test score, to be published with it.
"""

import os
import shutil
from collections.abc import Callable, Mapping

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pipeline import params, stage, summary
from pipeline.core import artifacts, console
from pipeline.data import pretrained, tokens
from pipeline.evaluation import answers, inference, report
from pipeline.evaluation.outcome import Outcome
from pipeline.methods import adapter_task, adapters, base_models, cards, device, exports


def main(view: params.EvaluateView) -> None:
    tokenizer = pretrained.load_tokenizer(view.base_model)
    test, collate = tokens.load_tokens("test"), tokens.collator(tokenizer)

    def logits(model: nn.Module, what: str) -> Tensor:
        with console.progress(what, len(test), "examples") as advance:
            return inference.logits(model, test, collate, view.evaluate.batch_size, advance)

    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.ADAPTER, trainable=True)  # not to train it, but to count parameters
    counts = adapters.count_parameters(model, view.base_model)
    beside = logits(device.place(model), "evaluate beside the base")
    outcome = Outcome.of(beside, test["label"][:], view.dataset, tokens.groups_of(test))
    metrics: dict[str, float] = {
        **outcome.metrics(view.evaluate.resamples),
        **counts,
        "adapter_bytes": (artifacts.ADAPTER / adapters.WEIGHTS).stat().st_size,
        "examples": len(beside),
    }
    differences = export(view, model, tokenizer, logits, beside, metrics)
    if "merged" in differences:
        metrics["merge_difference"] = differences["merged"]
    digest = answers.sha256(outcome.answers.predicted)
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, {**metrics, "outputs_sha256": digest})
    report.write_predictions(outcome)


def export(
    view: params.EvaluateView,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    logits: Callable[[nn.Module, str], Tensor],
    expected: Tensor,  # (examples, labels)
    metrics: Mapping[str, float],  # for the cards
) -> dict[str, float]:
    """Write the configured forms; return the largest difference of each, loaded again, from the expected logits.

    The model is consumed: its base model, which is loaded once, serves the exported LoRA too. Where a method can be
    merged, the difference of the merged model is always among those returned.
    """
    differences: dict[str, float] = {}

    def compare(form: str, found: nn.Module) -> None:
        differences[form] = float((expected - logits(found, f"compare {form}")).abs().max())

    with artifacts.replacing(artifacts.EXPORTS) as folder:
        folder.mkdir()
        if "lora" in view.evaluate.export:
            exports.write("lora", model, folder / "lora", view.base_model, tokenizer)
            shutil.copy(
                artifacts.ADAPTER / adapter_task.FILE, folder / "lora"
            )  # a checkpoint has its own place for this
            cards.of_evaluation(view, metrics, artifacts.ADAPTER, folder / "lora", as_lora=True)
            plain = adapters.load_adapter(model.unload(), folder / "lora", trainable=False)
            compare("lora", plain)
            model = adapters.load_adapter(plain.unload(), artifacts.ADAPTER, trainable=False)
        if "merged" in view.evaluate.export:
            exports.write("merged", model, folder / "merged", view.base_model, tokenizer)
            compare("merged", exports.load_merged(folder / "merged"))
        elif adapters.merge(model):
            compare("merged", model)
        artifacts.write_metrics(folder / artifacts.PARITY, {form: differences[form] for form in view.evaluate.export})
        cards.of_evaluation(view, metrics, artifacts.ADAPTER, folder)
    return differences


if __name__ == "__main__":
    stage.run(main, params.EvaluateView)
    if os.environ.get("LSR_SUMMARY") != "later":  # `make repro` prints it below all that DVC says
        summary.main([])
