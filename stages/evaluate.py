"""Score the trained adapter on the test split.

Reads artifacts/tokens, artifacts/adapter and, if there are tenants, artifacts/bank. Writes reports/evaluate/, and
artifacts/card.md: the adapter's card with its test score, to be published with it. Prints pipeline.summary at its end.
"""

from collections.abc import Mapping
from dataclasses import replace

from peft import PeftModel
from torch import nn

from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, held_out, params, regression, stage
from pipeline.core import artifacts, console
from pipeline.data import base_models, tokens
from pipeline.methods import adapter_task, adapters, banks, cards
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.tasks import Outcome, Task, paired, reliability, reported
from pipeline.tasks.completion import Generated
from pipeline.tasks.prompts import Prompts
from pipeline.tasks.scores import BY_CLASS
from pipeline.tasks.task import Scores

Answered = tuple[Outcome, Scores]  # outputs of a model, and its sizes
SHOWN = ("data", "score", "loss", "adapter_trained")  # metrics in DVC's tables, besides those of the data
LENGTHS = f"{base_models.LENGTH} and evaluate.max_new_tokens"
OF_TENANTS = ("tenant", "texts", "score", "low", "high", "baseline")


def main(view: params.EvaluateView) -> None:
    task = task_of(view)
    outcome, sizes = task.scoring.answers(Run(view, task))
    whole, parts = task.scoring.parts(outcome, view.evaluate.resamples)
    metrics = sizes | whole | compare(view, task, outcome)
    metrics |= reported.report(task, outcome, view.evaluate.resamples)
    metrics |= write_reliability(task, outcome, view.evaluate.resamples)
    metrics |= write_held_out(view, task)
    write_metrics(view, metrics)
    write_predictions(task, outcome)
    write_parts(view.dataset.metrics[0], parts)
    with artifacts.replace_atomically(artifacts.CARD) as temporary:
        card = cards.of_evaluation(view, task, metrics, artifacts.ADAPTER)
        temporary.write_text(card, encoding="utf-8")


def compare(view: params.EvaluateView, task: Task, outcome: Outcome) -> Scores:
    """Return the differences of the outputs' scores vs. the constant baseline and a regression."""
    resamples = view.evaluate.resamples
    metrics = paired.over_constant(task.scoring, outcome, resamples)
    baseline = regression.of_task(view, task)
    if baseline is None:
        return metrics
    metrics |= paired.over_regression(task.scoring, outcome, baseline.scoring, baseline.outcome, resamples)
    return metrics | {"regression_examples": baseline.examples}


def task_of(view: params.EvaluateView) -> Task:
    """Return the task with the facts of its data, and the thresholds and temperatures of its training."""
    own = adapter_task.read(artifacts.ADAPTER)
    task = tokens.load_task(view.dataset)
    return task.with_fitted(thresholds=own.tuned_thresholds, temperatures=own.temperatures)


class Run:
    """The last training run; its adapter is evaluated on the test split."""

    def __init__(self, view: params.EvaluateView, task: Task) -> None:
        self.view = view
        self.task = task
        self.test = tokens.load_tokens("test")
        self.base = base_models.load_base_model(view.base_model, task)

    def by_outputs(self) -> Answered:
        """Return the outputs of the adapter and its head."""
        trained = self.load_trained()
        outcome = self.outcome(self.base, trained)
        return outcome, self.sizes_of(trained)

    def by_bank(self) -> Answered:
        """Return the outputs of the bank of its tenants."""
        sizes = self.sizes_of(self.load_trained())
        base = banks.base_of(self.view.base_model)
        bank = AdapterBank.load(base, artifacts.BANK)
        sizes["bank_bytes"] = (artifacts.BANK / FILE).stat().st_size
        served = banks.BankModel(bank, list(self.task.facts.tenants))
        return self.outcome(bank.model, served), sizes

    def by_texts(self) -> Answered:
        """Return the texts that the model generates with the adapter and without it."""
        lengths = self.test["length"][:]
        longest = max(lengths) + self.view.evaluate.max_new_tokens
        base_models.check_positions(self.base, longest, LENGTHS)
        # Before the adapter is loaded: PiSSA, OLoRA and trained biases change weights of the base model itself.
        without_adapter = self.generate(self.base, "evaluate, without the adapter")
        trained = self.load_trained()
        sizes = self.sizes_of(trained)
        written = self.generate(trained, "evaluate, with the adapter")
        base_outputs = without_adapter.outputs
        outcome = replace(written, base_outputs=base_outputs, base_texts=without_adapter.texts)
        return outcome, sizes

    def load_trained(self) -> PeftModel:
        """Load the base model with the adapter; parameters are marked trainable only to count them."""
        return adapters.load_adapter(self.base, artifacts.ADAPTER, trainable=True)

    def sizes_of(self, trained: PeftModel) -> Scores:
        """Return the numbers of parameters of the trained adapter, and the size of its file."""
        counts = adapters.count_parameters(trained, self.view.base_model)
        return {**counts, "adapter_bytes": (artifacts.ADAPTER / WEIGHTS).stat().st_size}

    def outcome(self, base: nn.Module, model: nn.Module) -> Outcome:
        """Return the outputs of a model for the test split; the tokenizer pads for `base`, the model inside it."""
        head = self.task.head
        tokenizer = tokenizer_of(base, self.view.base_model)
        collate = head.collator(tokenizer)
        size = self.view.evaluate.batch_size
        with console.progress("evaluate", len(self.test), "examples") as advance:
            model.to(fastest())
            outputs = evaluation.outputs(head, model, self.test, collate, size, advance)
        return evaluation.outcome(outputs, self.test)

    def generate(self, model: nn.Module, title: str) -> Generated:
        """Return the texts of a language model for the prompts of the test split.

        The model runs on the fastest device, and is moved back: initializations that are recomputed when an adapter is
        loaded, such as PiSSA's, are reproducible to the byte only on one device.
        """
        chosen = self.view.evaluate
        tokenizer = tokenizer_of(model, self.view.base_model)
        prompts = Prompts(tokenizer, self.task.entry.template)
        device = next(model.parameters()).device
        with console.progress(title, len(self.test), "prompts") as advance:
            model.to(fastest())
            written = evaluation.evaluate_generation(
                self.task,
                model,
                self.test,
                prompts,
                chosen.max_new_tokens,
                chosen.batch_size,
                advance,
            )
        model.to(device)
        return written


def write_metrics(view: params.EvaluateView, metrics: Scores) -> None:
    """Write the metrics, and the details that are not columns of DVC's tables."""
    # As a metric is named so too, DVC's tables call the param params.yaml:data, and do not mix it up with the dep data.
    named: dict[str, artifacts.Value] = {"data": view.data, **metrics}
    shown = {*SHOWN, *view.dataset.metrics}
    artifacts.write_metrics(artifacts.EVALUATE_METRICS, named, shown)


def write_predictions(task: Task, outcome: Outcome) -> None:
    """Write one row per text, and one row per class."""
    scoring = task.scoring
    columns = {**tokens.load_texts("test"), **scoring.table(outcome)}
    rows = zip(*columns.values(), strict=True)
    artifacts.write_csv(artifacts.EVALUATE_PREDICTIONS, list(columns), rows)
    artifacts.write_csv(artifacts.EVALUATE_CLASSES, BY_CLASS, scoring.by_class(outcome))


def write_reliability(task: Task, outcome: Outcome, resamples: int) -> Scores:
    """Write how well probabilities agree with frequencies, and return the metrics of that."""
    report = reliability.report(task, outcome, resamples)
    artifacts.write_csv(artifacts.EVALUATE_RELIABILITY, reliability.RELIABILITY, report.reliability)
    artifacts.write_csv(artifacts.EVALUATE_COVERAGE, reliability.COVERAGE, report.coverage)
    return report.metrics


def write_held_out(view: params.EvaluateView, task: Task) -> Scores:
    """Write how held-out tenants score by their number of labels, no rows if there are none, and return the metrics."""
    report = held_out.report(view, task)
    artifacts.write_csv(artifacts.EVALUATE_HELD_OUT, held_out.OF_HELD_OUT, report.rows)
    return report.metrics


def write_parts(metric: str, parts: Mapping[str, Scores]) -> None:
    """Write one row per separately scored part: a tenant, or all examples."""
    rows = list[list[artifacts.Value]]()
    for name, scored in parts.items():
        row: list[artifacts.Value] = [name, scored["examples"], scored[metric]]
        for end in ("low", "high", "baseline"):
            row.append(scored[f"{metric}_{end}"])
        rows.append(row)
    artifacts.write_csv(artifacts.EVALUATE_TENANTS, OF_TENANTS, rows)


if __name__ == "__main__":
    stage.run(
        main,
        params.EvaluateView,
        "Score the trained adapter on the test split and print the summary of the run. Writes reports/evaluate/ and "
        "the model card artifacts/card.md.",
        then="pipeline.summary",
    )
