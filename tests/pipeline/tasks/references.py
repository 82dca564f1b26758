"""What numpy, scipy, scikit-learn and plain transformers make of the answers of a tiny model, for each task type."""

import re
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

RESAMPLES = 200
CONFIDENCE = 0.95
EXACT = ("accuracy", "f1", "exact_match")  # metrics with intervals of Clopper and Pearson


@dataclass
class Part:
    """What is scored by itself: all examples of a split, or those of a tenant."""

    actual: np.ndarray  # what is right: of each example, or of each group
    predicted: np.ndarray
    outputs: np.ndarray  # of each example
    loss: float
    constant_loss: float  # of the best constant output
    constants: list  # all constant predictions


def f1(average):
    return lambda actual, predicted: sklearn_metrics.f1_score(actual, predicted, average=average, zero_division=0)


def macro_f1(actual, predicted):
    """The mean over the classes or labels that occur: scikit-learn counts labels that nothing has."""
    occurring = None
    if actual.ndim > 1:
        occurring = np.flatnonzero((actual + predicted).any(axis=0))
    return sklearn_metrics.f1_score(actual, predicted, average="macro", zero_division=0, labels=occurring)


SCORES = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": f1("binary"),
    "macro_f1": macro_f1,
    "micro_f1": f1("micro"),
    "pearson": lambda actual, predicted: stats.pearsonr(actual, predicted).statistic,
    "spearman": lambda actual, predicted: stats.spearmanr(actual, predicted).statistic,
    "exact_match": lambda actual, predicted: predicted.mean(),
    "rouge_l": lambda actual, predicted: predicted.mean(),
}


def of_classes(actual, outputs):
    """A part whose outputs are logits of classes, one of which is right."""
    shares = np.bincount(actual, minlength=outputs.shape[1]) / len(actual)
    classes = np.arange(outputs.shape[1])
    constant = np.tile(shares, (len(actual), 1))
    return Part(
        actual,
        outputs.argmax(axis=1),
        outputs,
        sklearn_metrics.log_loss(actual, special.softmax(outputs, axis=1), labels=classes),
        sklearn_metrics.log_loss(actual, constant, labels=classes),
        [np.full(len(actual), number) for number in classes],
    )


def of_choices(actual, outputs, groups):
    """A part in which examples share an answer, the one that is likeliest right; `groups` are their places."""
    of_examples = of_classes(actual, outputs)
    odds = outputs[:, 1] - outputs[:, 0]
    predicted = np.array([odds[places].argmax() for places in groups])
    right = np.array([actual[places].argmax() for places in groups])
    constants = [np.full(len(right), number) for number in range(len(groups[0]))]
    loss, constant_loss = of_examples.loss, of_examples.constant_loss
    return Part(right, predicted, outputs, loss, constant_loss, constants)


def of_labels(actual, outputs, thresholds):
    """A part whose outputs are logits of labels, any number of which are right."""
    shares = special.expit(outputs)
    constant = np.tile(actual.mean(axis=0), (len(actual), 1))
    labels = range(actual.shape[1])
    losses = []
    for given in (shares, constant):
        each = [sklearn_metrics.log_loss(actual[:, label], given[:, label], labels=[0, 1]) for label in labels]
        losses.append(np.mean(each))
    constants = [np.tile(chosen, (len(actual), 1)) for chosen in product((0, 1), repeat=actual.shape[1]) if any(chosen)]
    return Part(actual, (shares >= thresholds).astype(int), outputs, *losses, constants)


def of_numbers(actual, outputs):
    """A part whose outputs are numbers."""
    predicted = outputs[:, 0]
    loss = sklearn_metrics.mean_squared_error(actual, predicted)
    return Part(actual, predicted, outputs, loss, np.var(actual), [])


def metric_of(name, part):
    return SCORES[name](part.actual, part.predicted)


def baseline_of(name, part):
    """The best score of a constant; a correlation with one is 0."""
    return max([SCORES[name](part.actual, constant) for constant in part.constants], default=0.0)


def interval_of(name, part):
    """The ends of an interval: exact where a score is a share, otherwise those of scipy's bootstrap."""
    if name in ("accuracy", "exact_match"):
        right = part.predicted if name == "exact_match" else part.predicted == part.actual
        return share(right.sum(), len(right))
    if name == "f1":
        is_either = (part.predicted == 1) | (part.actual == 1)
        low, high = share((part.predicted * part.actual).sum(), is_either.sum())
        return 2 * low / (1 + low), 2 * high / (1 + high)
    return resampled(SCORES[name], part.actual, part.predicted)


def share(count, total):
    bounds = stats.binomtest(int(count), int(total)).proportion_ci(CONFIDENCE, method="exact")
    return bounds.low, bounds.high


def resampled(score, actual, predicted):
    """The percentiles of scores of resamples, drawn of the examples in an order of their own."""
    keys = (*np.atleast_2d(predicted.T), *np.atleast_2d(actual.T))
    order = np.lexsort(keys)

    def scored(drawn):
        rows = order[drawn]
        return score(actual[rows], predicted[rows])

    bounds = stats.bootstrap(
        (np.arange(len(order)),),
        scored,
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return bounds.low, bounds.high


def interval_of_mean(values, intervals, least):
    """The ends of the interval of the mean over tenants: Student's, but not within that of these tenants."""
    values = np.array(values)
    low, high = np.array(intervals).T
    mean = values.mean()
    of_tenants = stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    below = np.sqrt(((values - low) ** 2).sum()) / len(values)
    above = np.sqrt(((high - values) ** 2).sum()) / len(values)
    return max(least, mean - max(of_tenants, below)), min(1.0, mean + max(of_tenants, above))


def logits_alone(plain, tokenizer, texts, max_length):
    """What plain transformers says of each text, or pair of texts, by itself."""
    rows = []
    with torch.no_grad():
        for text in texts:
            batch = tokenizer(*text, truncation=True, max_length=max_length, return_tensors="pt")
            rows.append(plain(**batch).logits[0].numpy())
    return np.array(rows)


def written_alone(plain, tokenizer, prompt, max_new_tokens):
    """The text that plain transformers generates after a prompt of the user, by itself."""
    turns = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = given["input_ids"]
    generated = plain.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0
    )
    return tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)


def loss_alone(plain, tokenizer, prompt, answer):
    """The sum of the losses of the tokens of an answer and of its end token, and their number."""
    turns = [{"role": "user", "content": prompt}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    answered = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        logs = plain(torch.tensor([[*asked, *answered]])).logits[0].log_softmax(dim=-1)
    of_answer = logs[len(asked) - 1 : -1][torch.arange(len(answered)), torch.tensor(answered)]
    return -float(of_answer.double().sum()), len(answered)


def rouge_l(text, expected):
    """The F-measure of the longest common subsequence of words, by its table."""
    first, second = (re.findall(r"\w+", words.casefold()) for words in (text, expected))
    longest = np.zeros((len(first) + 1, len(second) + 1), int)
    for row, word in enumerate(first):
        for column, other in enumerate(second):
            if word == other:
                longest[row + 1, column + 1] = longest[row, column] + 1
            else:
                longest[row + 1, column + 1] = max(longest[row, column + 1], longest[row + 1, column])
    total = len(first) + len(second)
    return 2 * longest[-1, -1] / total if total else 0.0
