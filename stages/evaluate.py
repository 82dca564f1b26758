"""Score the trained adapter on the test split.

Reads artifacts/tokens, artifacts/adapter and, if there are tenants, artifacts/bank. Writes reports/evaluate/, and
artifacts/card.md: the adapter's card with its test score, to be published with it. Prints pipeline.summary at its end.
"""

from collections.abc import Mapping
from dataclasses import replace

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, params, stage
from pipeline.core import artifacts, console
from pipeline.data import base_models, tokens
from pipeline.methods import adapter_task, adapters, banks, cards
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.tasks import CompletionTask, Outcome, Task
from pipeline.tasks.completion import Written
from pipeline.tasks.scores import BY_CLASS


def main(view: params.EvaluateView) -> None:
    task = task_of(view)
    test = tokens.load_tokens("test")
    base = base_models.load_base_model(view.base_model, task)
    if isinstance(task, CompletionTask):
        check_room(view, base, test)
        # Before the adapter is loaded: PiSSA, OLoRA and trained biases change weights of the base model itself.
        without_adapter = write(task, view, base, test, "evaluate, without the adapter")
    trained = adapters.load_adapter(base, artifacts.ADAPTER, trainable=True)  # not to train it, but to count parameters
    sizes = sizes_of(trained, view)
    if isinstance(task, CompletionTask):
        written = write(task, view, trained, test, "evaluate, with the adapter")
        outcome: Outcome = replace(written, base_outputs=without_adapter.outputs, base_texts=without_adapter.texts)
    elif task.facts.tenants:  # what is scored is what is served
        bank = AdapterBank.load(banks.base_of(view.base_model), artifacts.BANK)
        sizes["bank_bytes"] = (artifacts.BANK / FILE).stat().st_size
        outcome = answer(task, view, bank.model, banks.Served(bank, list(task.facts.tenants)), test)
    else:
        outcome = answer(task, view, base, trained, test)
    write_reports(view, task, outcome, sizes)


def task_of(view: params.EvaluateView) -> Task:
    """Return the task with the facts of its data, and the thresholds that its training chose."""
    thresholds = adapter_task.read(artifacts.ADAPTER).thresholds
    return tokens.load_task(view.dataset).with_thresholds(thresholds)


def check_room(view: params.EvaluateView, base: PreTrainedModel, test: Dataset) -> None:
    """Refuse prompts with whose answers the model would run out of positions."""
    longest = max(test["length"][:]) + view.evaluate.new_tokens
    base_models.check_positions(base, longest, f"{base_models.LENGTH} and evaluate.new_tokens")


def sizes_of(trained: PeftModel, view: params.EvaluateView) -> dict[str, float]:
    """Return the parameters of the trained adapter, and the bytes of its file."""
    counts = adapters.count_parameters(trained, view.base_model)
    return {**counts, "adapter_bytes": (artifacts.ADAPTER / WEIGHTS).stat().st_size}


def write(task: CompletionTask, view: params.EvaluateView, model: nn.Module, test: Dataset, title: str) -> Written:
    """Return what a language model writes for the prompts of a split; it runs on the fastest device, and is moved back.

    An initialization that is computed again when its adapter is loaded, as that of PiSSA, is the same to the byte only
    on one device.
    """
    size, new_tokens = view.evaluate.batch_size, view.evaluate.new_tokens
    prompts = task.prompts(tokenizer_of(model, view.base_model))
    device = next(model.parameters()).device
    with console.progress(title, len(test), "prompts") as advance:
        written = evaluation.written(task, model.to(fastest()), test, prompts, new_tokens, size, advance)
    model.to(device)
    return written


def answer(task: Task, view: params.EvaluateView, base: nn.Module, model: nn.Module, test: Dataset) -> Outcome:
    """Return the outputs of a model for a split; the tokenizer pads as `base`, the model inside it, reads."""
    collate = task.collator(tokenizer_of(base, view.base_model))
    size = view.evaluate.batch_size
    with console.progress("evaluate", len(test), "examples") as advance:
        outputs = evaluation.outputs(task, model.to(fastest()), test, collate, size, advance)
    return evaluation.outcome(outputs, test)


def write_reports(view: params.EvaluateView, task: Task, outcome: Outcome, sizes: Mapping[str, float]) -> None:
    """Write the metrics, the predictions, what there is of each class and each tenant, and the card."""
    whole, parts = task.parts(outcome, view.evaluate.resamples)
    metrics = {**sizes, **whole}
    # As a metric is named so too, DVC's tables call the param params.yaml:data, and do not mix it up with the dep data.
    shown = {"data", "score", "loss", "adapter_trained", *view.dataset.metrics}
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, {"data": view.data, **metrics}, shown)
    columns = {**tokens.load_texts("test"), **task.table(outcome)}
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), zip(*columns.values(), strict=True))
    artifacts.write_csv(artifacts.EVALUATE_CLASSES, BY_CLASS, task.by_class(outcome))
    first = view.dataset.metrics[0]
    keys = ("examples", first, f"{first}_low", f"{first}_high", f"{first}_baseline")
    rows = list[list[artifacts.Value]]()
    for name, scored in parts.items():
        rows.append([name, *(scored[key] for key in keys)])
    artifacts.write_csv(artifacts.EVALUATE_TENANTS, ("tenant", "texts", "score", "low", "high", "baseline"), rows)
    with artifacts.replacing(artifacts.CARD) as temporary:
        temporary.write_text(cards.of_evaluation(view, task, metrics, artifacts.ADAPTER), encoding="utf-8")


if __name__ == "__main__":
    stage.run(main, params.EvaluateView, then="pipeline.summary")
