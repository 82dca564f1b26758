"""Score the model on tenants that training has not seen: with no labeled text, and with a few.

Without labels, a tenant answers by the head rows of its group: the training tenants with the same labels. With a few,
its rows are fitted as by `lsr bank --fit`, and the group's stay where the fit is not better. Next to it is a regression
of the tenant's own, by scikit-learn, on the frozen base model and the same labeled texts: logistic for classes, and a
ridge regression for numbers.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch import nn

from lsr.serve import fitting
from lsr.serve.bank import AdapterBank
from lsr.serve.fitting import compute_logits, fit_if_better, rows_of
from lsr.serve.groups import make_member
from lsr_onnx.errors import some_of
from pipeline import regression
from pipeline.core import artifacts, console
from pipeline.core.console import Advance
from pipeline.data import base_models, tokens
from pipeline.data.held_out import HELD_OUT
from pipeline.methods import banks
from pipeline.methods.banks import HeadInputs
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.params import EvaluateView
from pipeline.regression import STEPS, STRENGTHS, USUAL, Options, Part, Pooled
from pipeline.tasks import Facts, Outcome, Task, label_curve, scores
from pipeline.tasks.cells import place_of
from pipeline.tasks.classes import ClassificationScoring
from pipeline.tasks.held_out import name_metric, name_regression_metric
from pipeline.tasks.label_curve import DRAWS, Mean, Scored
from pipeline.tasks.number import RegressionScoring
from pipeline.tasks.scoring import Scoring, collect_predictions
from pipeline.tasks.task import Numbers, Scores, name_interval
from pipeline.tasks.tenants import entry_of_tenant

MAX_TENANTS = 16  # scored tenants, so that a run stays short; the first ones by hash
MAX_TEXTS = 260  # texts per tenant
MAX_RESAMPLES = 1000  # resamples of the texts in each draw, for intervals without a formula
FOLDS = 5  # folds of the regression's cross-validation
SHOWN = 5  # tenants in a message
OF_HELD_OUT = ("labels", "method", "score", "low", "high", "tenants")
MODEL = "adapter, rows of the group or fitted"
REGRESSION = "own regression, frozen encoder"

Cell = str | int | float
Key = tuple[int, str]  # the number of labeled texts, and the method
Curve = dict[Key, list[Scored]]  # a tenant each


class Report(NamedTuple):
    """The results for held-out tenants."""

    metrics: Scores
    rows: list[tuple[Cell, ...]]  # rows of OF_HELD_OUT


class LabelKind(NamedTuple):
    """How labels of one kind, classes or numbers, are scored, fitted and regressed."""

    scoring: type[Scoring]
    form: fitting.Form
    fit_regression: regression.Fit
    choose_penalty: Callable[[Numbers, Numbers], float]  # for features and labels


class Later(NamedTuple):
    """A held-out tenant: its labeled texts as features, and the head rows of its group."""

    name: str
    kind: LabelKind
    scoring: Scoring
    adapted: Numbers  # (texts, width), the inputs of the head's last layer
    frozen: Numbers  # (texts, width of the base model)
    labels: Numbers  # (texts,)
    start: Numbers  # (labels, width), or with the bias as last column


def report(view: EvaluateView, task: Task) -> Report:
    """Score the held-out tenants that share their labels with a training tenant; empty if none are held out."""
    held_out = task.facts.held_out
    if not held_out:
        return Report({}, [])
    names = choose_scored(task.facts)
    counts: Scores = {
        "held_out_tenants": len(held_out),
        "held_out_scored": len(names),
    }
    if not names:
        return Report(counts, [])
    metric = view.dataset.metrics[0]
    resamples = min(MAX_RESAMPLES, view.evaluate.resamples)
    tenants = read_tenants(view, task, names)
    curve = score_tenants(tenants, metric, resamples)
    means = dict[Key, Mean]()
    for key in sorted(curve):
        means[key] = label_curve.average(metric, curve[key])
    print_means(metric, means)
    metrics = counts | name_metrics(means)
    rows = list(list_rows(means))
    return Report(metrics, rows)


def choose_scored(facts: Facts) -> Sequence[str]:
    """Return the held-out tenants to score: with the labels of a training tenant, and at most MAX_TENANTS by hash.

    Others are listed in a line.
    """
    groups = {frozenset(tenant.labels or ()) for tenant in facts.tenants.values()}
    scored = list[str]()
    without = list[str]()
    for name, tenant in facts.held_out.items():
        if frozenset(tenant.labels or ()) in groups:
            scored.append(name)
        else:
            without.append(name)
    count = len(facts.held_out)
    if without:
        reason = "not scored, as no training tenant has their labels"
        shown = some_of(without, SHOWN)
        console.line(f"evaluate: {len(without)} of {count} held-out tenants are {reason}: {shown}")
    if len(scored) > MAX_TENANTS:
        console.line(f"evaluate: of {len(scored)} held-out tenants, {MAX_TENANTS} are scored, chosen by hash")
    by_hash = sorted(scored, key=place_of)
    return by_hash[:MAX_TENANTS]


def read_tenants(view: EvaluateView, task: Task, names: Sequence[str]) -> list[Later]:
    """Return held-out tenants with the features of their texts, by the bank's shared adapter and by the base model."""
    held_out = task.facts.held_out
    later = task.with_facts(Facts(tenants=held_out))
    examples = select_texts(later, names)
    bank = AdapterBank.load(banks.base_of(view.base_model), artifacts.BANK)
    groups = {name: make_member(bank, name, held_out[name].labels) for name in names}
    with console.progress("evaluate, texts of held-out tenants", 2 * len(examples), "texts") as advance:
        adapted = read_part(view, later, bank.model, HeadInputs(bank), examples, advance)
        base = base_models.load_base_model(view.base_model, later)
        encoder = Pooled(base.base_model, "mean")  # as for the regression baseline of a run
        frozen = read_part(view, later, base, encoder, examples, advance)
    kind = NUMBERS if task.entry.predicts_number else CLASSES
    tenants = list[Later]()
    for name in names:
        features, labels = adapted.of(name)
        of_base, _ = frozen.of(name)
        entry = entry_of_tenant(task.entry, held_out[name])
        later_tenant = Later(
            name=name,
            kind=kind,
            scoring=kind.scoring(entry, Facts()),
            adapted=features.astype(np.float64),
            frozen=of_base.astype(np.float64),
            labels=labels,
            start=rows_of(groups[name], features.shape[1]),
        )
        tenants.append(later_tenant)
    return tenants


def select_texts(later: Task, names: Sequence[str]) -> Dataset:
    """Return at most MAX_TEXTS examples of each of these tenants; their order by hash is random."""
    examples = tokens.load_tokens(HELD_OUT)
    rows = later.facts.rows_of_parts(len(examples), tokens.groups_of(examples))
    kept = [rows[name][:MAX_TEXTS] for name in names]
    return examples.select(np.concatenate(kept))


def read_part(
    view: EvaluateView,
    later: Task,
    base: Any,
    model: nn.Module,
    examples: Dataset,
    advance: Advance,
) -> Part:
    """Return the features of the examples, which are the `logits` of a model; the tokenizer pads for `base` inside."""
    collate = later.head.collator(tokenizer_of(base, view.base_model))
    splits = {HELD_OUT: examples}
    parts = regression.read_parts(later, model.to(fastest()), splits, collate, view.evaluate.batch_size, advance)
    return parts[HELD_OUT]


def score_tenants(tenants: Sequence[Later], metric: str, resamples: int) -> Curve:
    """Return the scores of all tenants by number of labels and method."""
    total = 0
    for tenant in tenants:
        counts = label_curve.choose_counts(len(tenant.labels))
        total += DRAWS * len(counts)
    curve = Curve()
    with console.progress("evaluate, labels of held-out tenants", total, "fits") as advance:
        for tenant in tenants:
            scored = score_tenant(tenant, metric, resamples, advance)
            for key, of_draws in scored.items():
                curve.setdefault(key, []).append(of_draws)
    return curve


def score_tenant(tenant: Later, metric: str, resamples: int, advance: Advance) -> dict[Key, Scored]:
    """Return a tenant's scores in each draw by number of labels and method."""
    counts = label_curve.choose_counts(len(tenant.labels))
    most = counts[-1]
    measured = defaultdict[Key, list[tuple[float, float, float]]](list)
    for draw in range(DRAWS):
        order = label_curve.order_texts(tenant.labels, tenant.name, draw)
        unseen = order[most:]
        for count in counts:
            for method, logits in answer(tenant, order[:count], unseen):
                outcome = Outcome(torch.from_numpy(logits), tenant.labels[unseen])
                measures = score(tenant.scoring, outcome, metric, resamples)
                measured[count, method].append(measures)
            advance(1)
    scored = dict[Key, Scored]()
    for key, of_draws in measured.items():
        values, lows, highs = np.array(of_draws).T
        scored[key] = Scored(values, lows, highs)
    return scored


def answer(tenant: Later, known: Numbers, unseen: Numbers) -> Iterator[tuple[str, Numbers]]:
    """Yield each method with its logits for unseen texts, (texts, labels), given the labels of known texts."""
    if not len(known):
        yield MODEL, compute_logits(tenant.adapted[unseen], tenant.start)
        return
    yield MODEL, predict_by_fit(tenant, known, unseen)
    yield REGRESSION, predict_by_regression(tenant, known, unseen)


def predict_by_fit(tenant: Later, known: Numbers, unseen: Numbers) -> Numbers:
    """Return the logits of head rows that are fitted to known texts.

    The group's rows stay where the fit is not better, or all known texts have one label.
    """
    labels = tenant.labels[known]
    width = tenant.adapted.shape[1]
    weight, bias = np.split(tenant.start, [width], axis=1)  # bias (labels, 0) if the head has none
    basis = find_basis(np.concatenate([tenant.adapted[known], weight]))
    features = tenant.adapted[known] @ basis
    rows = np.column_stack([weight @ basis, bias])
    if len(np.unique(labels)) > 1:
        rows, _ = fit_if_better(features, labels, rows, tenant.kind.form)
    return compute_logits(tenant.adapted[unseen] @ basis, rows)


def predict_by_regression(tenant: Later, known: Numbers, unseen: Numbers) -> Numbers:
    """Return the outputs of a regression on the frozen base model's standardized features."""
    labels = tenant.labels[known]
    scaler = StandardScaler().fit(tenant.frozen[known])
    standardized = scaler.transform(tenant.frozen[known])
    basis = find_basis(standardized)
    features = standardized @ basis
    options = Options(
        outputs=len(tenant.start),
        strength=tenant.kind.choose_penalty(features, labels),
        has_bias=True,
    )
    layer = tenant.kind.fit_regression(features, labels, options)
    return layer.outputs(scaler.transform(tenant.frozen[unseen]) @ basis).numpy()


def find_basis(vectors: Numbers) -> Numbers:
    """Return an orthonormal basis, (width, n), of the span of vectors (n, width).

    A fit with a penalty on its norm lies in the span of its features, so it is the same in fewer dimensions.
    """
    basis, _ = np.linalg.qr(vectors.T)
    return basis


def choose_penalty_of_classes(features: Numbers, labels: Numbers) -> float:
    """Return the strength with the least log loss by cross-validation; the usual one if a label has a single text."""
    _, counts = np.unique(labels, return_counts=True)
    folds = min(FOLDS, int(counts.min()))
    if len(counts) < 2 or folds < 2:
        return USUAL
    search = GridSearchCV(
        LogisticRegression(max_iter=STEPS),
        {"C": STRENGTHS},
        scoring="neg_log_loss",
        cv=StratifiedKFold(folds),
        refit=False,
    )
    search.fit(features, labels)
    return float(search.best_params_["C"])


def choose_penalty_of_numbers(features: Numbers, labels: Numbers) -> float:
    """Return the strength with the least squared error by cross-validation."""
    search = GridSearchCV(
        Ridge(),
        {"alpha": [1 / strength for strength in STRENGTHS]},
        scoring="neg_mean_squared_error",
        cv=KFold(min(FOLDS, len(labels))),
        refit=False,
    )
    search.fit(features, labels)
    return 1 / float(search.best_params_["alpha"])


CLASSES = LabelKind(
    ClassificationScoring,
    fitting.CLASSES,
    regression.fit_classes,
    choose_penalty_of_classes,
)
NUMBERS = LabelKind(
    RegressionScoring,
    fitting.NUMBERS,
    regression.fit_number,
    choose_penalty_of_numbers,
)


def score(scoring: Scoring, outcome: Outcome, metric: str, resamples: int) -> tuple[float, float, float]:
    """Return a metric with its interval over texts."""
    predictions = collect_predictions(scoring, outcome)
    value, low, high = scores.score_with_intervals([metric], *predictions, resamples).values()
    return value, low, high


def name_metrics(means: Mapping[Key, Mean]) -> Scores:
    """Return the means and their intervals by the names of metrics."""
    metrics = Scores()
    for (count, method), mean in means.items():
        name = name_regression_metric(count) if method == REGRESSION else name_metric(count)
        metrics[name] = mean.score
        metrics |= name_interval(name, (mean.low, mean.high))
    return metrics


def list_rows(means: Mapping[Key, Mean]) -> Iterator[tuple[Cell, ...]]:
    """Yield a row of OF_HELD_OUT per number of labels and method."""
    for (count, method), mean in means.items():
        yield count, method, mean.score, mean.low, mean.high, mean.tenants


def print_means(metric: str, means: Mapping[Key, Mean]) -> None:
    """Print a table with a row per number of labels and method."""
    rows = list[tuple[object, ...]]()
    for (count, method), mean in means.items():
        interval = f"{mean.low:.4g} to {mean.high:.4g}"
        rows.append((count, method, mean.score, interval, mean.tenants))
    columns = ("labels", "method", metric, "95 % interval", "tenants")
    console.table("held-out tenants", columns, rows)
