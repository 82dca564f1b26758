"""Score the trained adapter on the test split.

Reads artifacts/tokens, artifacts/adapter and, if there are tenants, artifacts/bank. Writes reports/evaluate/, and
artifacts/card.md: the adapter's card with its test score, to be published with it.
"""

from dataclasses import replace
from typing import cast

from torch import nn

from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, params, stage, tasks
from pipeline.core import artifacts, console
from pipeline.data import base_models, tokens
from pipeline.methods import adapter_task, adapters, banks, cards
from pipeline.methods.device import fastest
from pipeline.tasks import CompletionTask, Outcome, TenantsTask
from pipeline.tasks.classes import ClassesTask
from pipeline.tasks.scores import BY_CLASS, by_class


def main(view: params.EvaluateView) -> None:
    task = tasks.of(view.dataset)
    tokenizer, size = base_models.load_tokenizer(view.base_model), view.evaluate.batch_size
    test = tokens.load_tokens("test")
    base = base_models.load_base_model(view.base_model, view.dataset)
    trained = adapters.load_adapter(base, artifacts.ADAPTER, trainable=True)  # not to train it, but to count parameters
    counts, model = adapters.count_parameters(trained, view.base_model), cast("nn.Module", trained)
    metrics: dict[str, float] = {**counts, "adapter_bytes": (artifacts.ADAPTER / WEIGHTS).stat().st_size}
    task.thresholds = adapter_task.read(artifacts.ADAPTER).thresholds
    if isinstance(task, TenantsTask):  # what is scored is what is served
        bank = AdapterBank.load(banks.base_of(view.base_model), artifacts.BANK)
        model = banks.Served(bank, list(task.tenants))
        metrics["bank_bytes"] = (artifacts.BANK / FILE).stat().st_size
    if isinstance(task, CompletionTask):
        longest = max(test["length"][:]) + view.evaluate.new_tokens
        base_models.check_positions(base, longest, f"{base_models.LENGTH} and evaluate.new_tokens")
        prompts, count = task.prompts(tokenizer), view.evaluate.new_tokens
        with console.progress("evaluate, with and without the adapter", 2 * len(test), "prompts") as advance:
            asked = task, trained.to(fastest()), test, prompts, count, size, advance
            written = evaluation.written(*asked)
            with trained.disable_adapter():
                base_written = evaluation.written(*asked)
        outcome: Outcome = replace(written, base_outputs=base_written.outputs, base_said=base_written.said)
    else:
        with console.progress("evaluate", len(test), "examples") as advance:
            outputs = evaluation.outputs(task, model.to(fastest()), test, task.collator(tokenizer), size, advance)
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
        temporary.write_text(cards.of_evaluation(view, metrics, artifacts.ADAPTER), encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, params.EvaluateView)
