"""Score the trained adapter on the test split.

Reads artifacts/tokens, artifacts/adapter and, if there are tenants, artifacts/bank. Writes reports/evaluate/, and
artifacts/card.md: the adapter's card with its test score, to be published with it.
"""

from dataclasses import replace
from typing import cast

from datasets import Dataset
from torch import nn

from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, params, stage
from pipeline.core import artifacts, console
from pipeline.data import base_models, tokens
from pipeline.methods import adapter_task, adapters, banks, cards
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.tasks import CompletionTask, Outcome, TenantsTask
from pipeline.tasks.classes import ClassesTask
from pipeline.tasks.completion import Written
from pipeline.tasks.scores import BY_CLASS, by_class


def written_by(task: CompletionTask, model: nn.Module, view: params.EvaluateView, test: Dataset, title: str) -> Written:
    """Return what a language model writes for the prompts of a split; it runs on the fastest device, and is moved back.

    An initialization that is computed again when its adapter is loaded, as that of PiSSA, is the same to the byte only
    on one device.
    """
    prompts = task.prompts(tokenizer_of(model, view.base_model))
    size, new_tokens = view.evaluate.batch_size, view.evaluate.new_tokens
    device = next(model.parameters()).device
    with console.progress(title, len(test), "prompts") as advance:
        written = evaluation.written(task, model.to(fastest()), test, prompts, new_tokens, size, advance)
    model.to(device)
    return written


def main(view: params.EvaluateView) -> None:
    trained_task = adapter_task.read(artifacts.ADAPTER)
    task = tokens.load_task(view.dataset)
    task = task.with_facts(task.facts.model_copy(update={"thresholds": trained_task.thresholds}))
    size = view.evaluate.batch_size
    test = tokens.load_tokens("test")
    base = base_models.load_base_model(view.base_model, task)
    if isinstance(task, CompletionTask):
        longest = max(test["length"][:]) + view.evaluate.new_tokens
        base_models.check_positions(base, longest, f"{base_models.LENGTH} and evaluate.new_tokens")
        # Before the adapter is loaded: PiSSA, OLoRA and trained biases change weights of the base model itself.
        of_base = written_by(task, base, view, test, "evaluate, without the adapter")
    trained = adapters.load_adapter(base, artifacts.ADAPTER, trainable=True)  # not to train it, but to count parameters
    counts, model = adapters.count_parameters(trained, view.base_model), cast("nn.Module", trained)
    metrics: dict[str, float] = {**counts, "adapter_bytes": (artifacts.ADAPTER / WEIGHTS).stat().st_size}
    scored_base = base
    if isinstance(task, TenantsTask):  # what is scored is what is served
        bank = AdapterBank.load(banks.base_of(view.base_model), artifacts.BANK)
        scored_base = bank.model
        model = banks.Served(bank, list(task.tenants))
        metrics["bank_bytes"] = (artifacts.BANK / FILE).stat().st_size
    if isinstance(task, CompletionTask):
        written = written_by(task, trained, view, test, "evaluate, with the adapter")
        outcome: Outcome = replace(written, base_outputs=of_base.outputs, base_said=of_base.said)
    else:
        collate = task.collator(tokenizer_of(scored_base, view.base_model))
        with console.progress("evaluate", len(test), "examples") as advance:
            outputs = evaluation.outputs(task, model.to(fastest()), test, collate, size, advance)
        outcome = evaluation.outcome(outputs, test)
    whole, parts = task.parts(outcome, view.evaluate.resamples)
    metrics |= whole
    # As a metric is named so too, DVC's tables call the param params.yaml:data, and do not mix it up with the dep data.
    shown = {"data", "score", "loss", "adapter_trained", *view.dataset.metrics}
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, {"data": view.data, **metrics}, shown)
    columns = {**tokens.load_texts("test"), **task.table(outcome)}
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))
    classes = isinstance(task, ClassesTask) and by_class(task.names, task.of_examples(outcome), outcome.labels)
    artifacts.write_csv(artifacts.EVALUATE_CLASSES, BY_CLASS, classes or ())
    first = view.dataset.metrics[0]
    keys = "examples", first, f"{first}_low", f"{first}_high", f"{first}_baseline"
    rows: list[list[artifacts.Value]] = [[name, *(its[key] for key in keys)] for name, its in parts.items()]
    artifacts.write_csv(artifacts.EVALUATE_TENANTS, ("tenant", "texts", "score", "low", "high", "baseline"), rows)
    with artifacts.replacing(artifacts.CARD) as temporary:
        temporary.write_text(cards.of_evaluation(view, task, metrics, artifacts.ADAPTER), encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, params.EvaluateView, then="pipeline.summary")
