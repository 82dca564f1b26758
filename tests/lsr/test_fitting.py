"""A tenant who comes later: by its labels, the mean of tenants with these labels; by some labeled texts, a regression.

The references are plain transformers and PEFT for each text alone, and the regressions of scikit-learn.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from peft import LoraConfig
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import PredefinedSplit, StratifiedKFold
from torch import nn
from transformers import AutoTokenizer

from lsr import AdapterBank
from tests import reference, rows, tiny
from tests.helpers import edit, printed, refused, write
from tests.lsr.server.asking import Request, files_of, fit, predict, put, put_labels, read_answers, read_fit, started

LENGTH = 28  # tokens that the tenants read
EXAMPLES = rows.examples(60)
TEXTS = [example["text"] for example in EXAMPLES]
TENANTS = {"acme": ["bad", "good"], "bolt": None, "corp": ["good", "bad"], "dora": ["a", "b", "c"], "eve": None}
PENALTIES = np.logspace(1, -4, 11)
ALLOWED = ["bad", "good"]


class Saved(NamedTuple):
    """A bank of tenants who share an adapter, and what plain PEFT makes of TEXTS."""

    base: Any
    bank: Any
    tokenizer: Any
    logits: dict[str, np.ndarray]  # (texts, outputs) by tenant
    features: np.ndarray  # (texts, width), which the last layer of the head reads
    has_bias: bool  # whether this layer has a bias


def save(folder, architecture, tenants=TENANTS, *, is_zero=False, kind="classes"):
    """Save a bank of tenants, whose head weights are zero on demand."""
    of_name = tiny.ARCHITECTURES[architecture]
    base = tiny.save_base(folder / "base", architecture, dtype=torch.float32, pad_token_id=tiny.SPECIAL.index("<pad>"))
    config = LoraConfig(task_type="SEQ_CLS", target_modules=of_name.targets, modules_to_save=of_name.heads)
    options = {"max_length": LENGTH, "tenant": "shop", "kind": kind}
    adapter = tiny.save_tenants(folder / "adapter", base, config, tenants, **options)
    if is_zero:
        edit(adapter / "adapter_model.safetensors", zero_head)
    printed("lsr", "bank", "--from", adapter, "-o", folder / "bank")
    sizes = [len(labels or "1") for labels in tenants.values()]
    tokenizer = AutoTokenizer.from_pretrained(base)
    logits, features = read(tiny.merged(adapter, base, sum(sizes)), tokenizer)
    parts = np.split(logits, np.cumsum(sizes)[:-1], axis=1)
    has_bias = architecture == "bert"
    return Saved(base, folder / "bank", tokenizer, dict(zip(tenants, parts, strict=True)), features, has_bias)


def read(model, tokenizer):
    """Return the logits of each text alone, and what the last layer of the head reads at its last token."""
    features = []
    last = [module for name, module in model.named_modules() if "modules_to_save" in name][-1]
    last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].flatten(0, -2)[-1]))
    model.config.pad_token_id = None
    logits = reference.logits_alone(model, tokenizer, [(text,) for text in TEXTS], LENGTH)
    return logits.numpy(), torch.stack(features).double().numpy()


def zero_head(tensors):
    """Set the head weights to zero, so that a fit begins there."""
    return {name: value if "lora" in name else torch.zeros_like(value) for name, value in tensors.items()}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def plain(request, tmp_path_factory):
    """Tenants on a base model whose head has a bias, or none."""
    return save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def zeros(tmp_path_factory):
    """Tenants whose head weights are zero, by the architecture of their base model."""
    tenants = {"sky": ["dry", "wet"], "size": ["low", "mid", "high"], "rating": None}
    names = ("bert", "gpt2")
    return {name: save(tmp_path_factory.mktemp(name), name, tenants, is_zero=True) for name in names}


@torch.no_grad()
def logits_of(saved, bank, name, texts=TEXTS):
    """Return the logits (texts, outputs) of a tenant for each text alone."""
    read = []
    for text in texts:
        inputs = reference.encoded(saved.tokenizer, (text,), LENGTH)
        [answer] = bank.answers(bank(**inputs, adapter_names=[name]).logits, [name])
        read.append(answer.logits.double().numpy())
    return np.stack(read)


def change(saved, folder, *words):
    """Return the bank that `lsr bank` makes with more options."""
    printed("lsr", "bank", "--from", saved.bank, "-o", folder / "out", "--force", *words)
    return AdapterBank.load(None, folder / "out")


def save_examples(folder, labels, texts=TEXTS):
    """Write labeled texts to a CSV file; return its path."""
    examples = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return write(folder / "few.csv", examples)


def fitted(saved, folder, name, labels, texts=TEXTS, options=()):
    """Return a bank in which a tenant is fitted to labeled texts by the command."""
    path = save_examples(folder, labels, texts)
    return change(saved, folder, "--fit", f"{name}={path}", *options)


# By labels


def means_of(saved):
    """Return the mean logits of the tenants of each label set, in an order that a new tenant has chosen."""
    logits = saved.logits
    return {
        ("good", "bad"): (logits["acme"][:, ::-1] + logits["corp"]) / 2,
        ("c", "a", "b"): logits["dora"][:, [2, 0, 1]],
        None: (logits["bolt"] + logits["eve"]) / 2,
    }


def test_a_tenant_without_texts_answers_by_the_mean_of_those_with_its_labels(plain, tmp_path):
    for labels, mean in means_of(plain).items():
        words = ("--labels", ",".join(labels)) if labels else ()
        bank = change(plain, tmp_path, "--add", "later", "other", *words)
        assert list(bank.names) == [*TENANTS, "later", "other"]
        for name in ("later", "other"):
            assert_allclose(logits_of(plain, bank, name, TEXTS[:4]), mean[:4], rtol=1e-4, atol=1e-5)
        for name in TENANTS:
            assert_allclose(logits_of(plain, bank, name, TEXTS[:2]), plain.logits[name][:2], rtol=1e-4, atol=1e-5)


def test_predict_answers_for_tenants_that_a_bank_does_not_have_by_their_labels(bert, tmp_path):
    means = means_of(bert)
    command = ("pipeline.predict", "--adapter", bert.bank, "--json")
    lines = printed(*command, "--tenant", "later", "--labels", "good,bad", *TEXTS[:3]).splitlines()
    found = [[json.loads(line)[f"p({label})"] for label in ("good", "bad")] for line in lines]
    assert_allclose(found, softmax(means["good", "bad"][:3], axis=1), atol=1e-4)
    asked = [{"shop": shop, "text": text} for shop, text in zip(("acme", "new", "dora"), TEXTS, strict=False)]
    lines = printed(*command, "--labels", "bad,good", "--file", write(tmp_path / "asked.csv", asked)).splitlines()
    expected = [bert.logits["acme"][0], means["good", "bad"][1], bert.logits["dora"][2]]
    assert_allclose([json.loads(line)["p"] for line in lines], [max(softmax(row)) for row in expected], atol=1e-4)


def test_predict_answers_with_the_mean_of_numbers(tmp_path):
    saved = save(tmp_path, "bert", {"bolt": None, "eve": None}, kind="number")
    words = ("--tenant", "later", "--labels", "", "--json")
    lines = printed("pipeline.predict", "--adapter", saved.bank, *words, *TEXTS[:3]).splitlines()
    numbers = [list(json.loads(line).values())[1] for line in lines]
    mean = (saved.logits["bolt"] + saved.logits["eve"]) / 2
    assert_allclose(numbers, mean[:3, 0], atol=1e-3)


# By labeled texts


def scaled(known, features, has_bias):
    """Return features with a mean squared norm of one in those that are known; with a bias, center and append ones."""
    center = known.mean(axis=0) if has_bias else 0
    unit = np.sqrt(((known - center) ** 2).sum(axis=1).mean())
    inputs = (features - center) / unit
    return np.column_stack([inputs, np.ones(len(inputs))]) if has_bias else inputs


def classify(inputs, labels, others, penalty):
    """Return the probabilities of other inputs by logistic regression."""
    vectors = 1 if len(set(labels)) == 2 else 2
    strength = penalty * len(labels) * vectors / 2  # of two classes it has one vector
    model = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-8, max_iter=2000)
    return model.fit(inputs, labels).predict_proba(others)


def estimate(inputs, numbers, others, penalty):
    """Return the numbers of other inputs by ridge regression."""
    model = Ridge(alpha=penalty * len(numbers), fit_intercept=False)
    return model.fit(inputs, numbers).predict(others)[:, None]


def losses_of(outputs, targets):
    """Return the negative logarithms of the probabilities of classes, or the squared errors of numbers."""
    if outputs.shape[1] == 1:
        return (outputs[:, 0] - targets) ** 2
    return -np.log(outputs[np.arange(len(targets)), targets])


REGRESSIONS = [  # the architecture, the column of labels, the regression, and the number of texts
    ("bert", "size", classify, 60),
    ("gpt2", "weather", classify, 60),
    ("bert", "rating", estimate, 12),  # fewer than the inputs of the head
    ("gpt2", "rating", estimate, 60),
]


@pytest.mark.parametrize(("architecture", "column", "regress", "count"), REGRESSIONS)
def test_a_tenant_with_labeled_texts_is_the_regression_that_cross_validation_chooses(
    architecture, column, regress, count, zeros, tmp_path
):
    zero = zeros[architecture]
    labels = [example[column] for example in EXAMPLES[:count]]
    bank = fitted(zero, tmp_path, "later", labels, TEXTS[:count])
    actual = logits_of(zero, bank, "later", TEXTS[:count])
    targets = np.array(labels)
    if regress is classify:
        actual = softmax(actual, axis=1)
        _, targets = np.unique(labels, return_inverse=True)
    features = zero.features[:count]

    def expect(known, asked, penalty):
        parts = [scaled(features[known], features[rows], zero.has_bias) for rows in (known, asked)]
        return regress(parts[0], targets[known], parts[1], penalty)

    every = np.arange(count)
    distances = [np.abs(expect(every, every, penalty) - actual).max() for penalty in PENALTIES]
    chosen = int(np.argmin(distances))
    assert distances[chosen] < 1e-3
    losses = np.empty((len(PENALTIES), count))
    order = targets.argsort(kind="stable").argsort()
    folds = PredefinedSplit(order % 10) if regress is estimate else StratifiedKFold(10)
    for known, held_out in folds.split(features, targets):
        for number, penalty in enumerate(PENALTIES):
            losses[number, held_out] = losses_of(expect(known, held_out, penalty), targets[held_out])
    best = int(losses.mean(axis=1).argmin())
    error = losses[best].std() / np.sqrt(count)
    assert losses[chosen].mean() <= losses[best].mean() + error / 2  # other folds might choose another one


def test_a_fit_deviates_from_the_mean_of_its_group_as_little_as_it_must(bert, tmp_path):
    mean = means_of(bert)["good", "bad"]
    labels = opposed(bert)
    bank = fitted(bert, tmp_path, "later", labels, options=("--labels", "good,bad"))
    actual = logits_of(bert, bank, "later")
    inputs = torch.from_numpy(scaled(bert.features, bert.features, has_bias=True))
    targets = torch.tensor([int(label == "bad") for label in labels])
    gradients = []
    for penalty in PENALTIES:
        deviation = torch.linalg.lstsq(inputs, torch.from_numpy(actual - mean)).solution.requires_grad_()
        logits = torch.from_numpy(mean.copy()) + inputs @ deviation
        loss = nn.functional.cross_entropy(logits, targets) + penalty * deviation.square().sum() / 2
        loss.backward()
        gradients.append(float(deviation.grad.abs().max()))
    assert min(gradients) < 1e-4  # at the minimum for the penalty that was chosen
    assert np.mean(actual.argmax(axis=1) == targets.numpy()) > 0.7


def opposed(saved):
    """Return labels that follow the features, and that the group of good and bad would not give."""
    mean = means_of(saved)["good", "bad"]
    centered = saved.features - saved.features.mean(axis=0)
    places = centered @ np.linalg.svd(centered, full_matrices=False)[2][0]
    of_group = mean[:, 0] - mean[:, 1]
    sign = -np.sign(np.corrcoef(places, of_group)[0, 1])
    return ["good" if place > 0 else "bad" for place in sign * (places - np.median(places))]


def drawn(shares, names=ALLOWED):
    """Return labels that are drawn by their probabilities."""
    generator = np.random.default_rng(5)
    return [str(generator.choice(names, p=row)) for row in shares]


def test_a_new_tenant_whose_fit_is_not_better_has_the_mean_of_its_group(bert, tmp_path):
    mean = means_of(bert)["good", "bad"]
    labels = drawn(softmax(mean, axis=1), ["good", "bad"])
    bank = fitted(bert, tmp_path, "later", labels, options=("--labels", "good,bad"))
    assert_allclose(logits_of(bert, bank, "later", TEXTS[:6]), mean[:6], rtol=1e-4, atol=1e-5)


def test_a_tenant_of_the_bank_whose_fit_is_not_better_stays_as_it_is(bert, tmp_path):
    bank = fitted(bert, tmp_path, "acme", drawn(softmax(bert.logits["acme"], axis=1)))
    assert_allclose(logits_of(bert, bank, "acme", TEXTS[:6]), bert.logits["acme"][:6], rtol=1e-4, atol=1e-5)
    bank = fitted(bert, tmp_path, "acme", opposed(bert))
    found = np.array(ALLOWED)[logits_of(bert, bank, "acme").argmax(axis=1)]
    assert np.mean(found == opposed(bert)) > 0.7


@pytest.mark.parametrize("seed", range(2))
def test_labels_by_chance_teach_nothing_though_each_text_occurs_twice(seed, zeros, tmp_path):
    generator = np.random.default_rng(seed)
    labels = [*generator.permutation(["dry", "wet"] * 12)]
    bank = fitted(zeros["bert"], tmp_path, "later", labels * 2, TEXTS[:24] * 2)
    assert not logits_of(zeros["bert"], bank, "later", TEXTS[:5]).any()


# Mistakes

FEW = ["text,label", "a,bad", "b,good", "c,bad", "d,good"]
MISTAKES = [  # options of the command, lines of few.csv, and what the line names
    (("--labels", "a,b"), FEW, "--labels"),
    (("--add", "acme", "--labels", "bad,good"), FEW, "acme"),
    (("--add", "later", "--labels", "bad,,good"), FEW, "--labels"),
    (("--add", "later", "--labels", "bad"), FEW, "bad, good"),
    (("--add", "later", "--labels", "Bad,Good"), FEW, "bad, good"),
    (("--add", "later", "--labels", "x,y"), FEW, "bad, good"),
    (("--fit", "later"), FEW, "--fit"),
    (("--fit", "later=there/is/none.csv"), FEW, "there/is/none.csv"),
    (("--fit", "later=few.csv", "--labels", "bad,worse"), FEW, "bad, worse"),
    (("--fit", "bolt=few.csv"), FEW, "'bad'"),
    (("--fit", "later=few.csv"), ["text,other", "a,bad"], "'label'"),
    (("--fit", "later=few.csv"), [*FEW, "e"], "line 6"),
    (("--fit", "acme=few.csv"), [*FEW, "e,Bad"], "'Bad'"),
    (("--fit", "later=few.csv"), [*FEW, "e,Bad"], "bad, good"),
    (("--fit", "later=few.csv"), [*FEW[:2], "b,bad", "c,bad", "d,bad"], "two different labels"),
    (("--fit", "later=few.csv"), [*FEW[:4], "A  ,good"], "at least 4"),
    (("--fit", "bolt=few.csv"), ["text,label", "a,1", "b,2", "c,3", "d,nan"], "nan"),
    (("--fit", "later=few.csv"), [*FEW, '"e,bad'], "few.csv"),
    (("--fit", "later=few.csv"), [*FEW, "\xe9,bad"], "UTF-8"),
]


@pytest.mark.parametrize(("options", "lines", "says"), MISTAKES)
def test_what_cannot_be_added_is_rejected_and_nothing_is_written(options, lines, says, bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoding = "latin-1" if says == "UTF-8" else "utf-8"
    write(tmp_path / "few.csv", "\n".join(lines).encode(encoding))
    refused("lsr", "bank", "--from", bert.bank, "-o", "out", *options, says=says)
    assert not (tmp_path / "out").exists()


def test_tenants_who_have_an_adapter_each_have_no_group(bert, tmp_path):
    adapter = tiny.save_adapter(tmp_path / "own", bert.base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    few = save_examples(tmp_path, ["yes", "no"] * 30)
    for options in (("--add", "later", "--labels", "no,yes"), ("--fit", f"later={few}")):
        refused("lsr", "bank", "--from", adapter, "-o", tmp_path / "out", *options, says="share")


UNKNOWN = [  # options of predict, and what the line names
    (("--tenant", "acme", "--labels", "bad,good"), "--labels"),
    (("--tenant", "new", "--labels", "Good,bad"), "bad, good"),
    (("--tenant", "new", "--labels", "bad,,good"), "--labels"),
    (("--tenant", "new"), "'new'"),
]


@pytest.mark.parametrize(("options", "says"), UNKNOWN)
def test_predict_rejects_a_tenant_that_it_cannot_answer_for(options, says, bert):
    refused("pipeline.predict", "--adapter", bert.bank, "a text", *options, says=says)


# Over HTTP


def fit_to(content, name="later", **headers):
    """Ask for a fit to a content that may be wrong."""
    more = fit(name, TEXTS, [])
    return Request(more.method, more.path, {"content": content, "headers": more.more["headers"] | headers})


CONTENT = {"texts": ["a", "b", "c", "d"], "labels": ["bad", "good", "bad", "good"]}
BAD = [  # requests, and the status and a word of the reason
    (put_labels("later", ["bad", "good"], headers={}), 401, "Bearer"),
    (put_labels("later", []), 422, "labels"),
    (put_labels("later", ["bad", "bad"]), 422, "once"),
    (put_labels("later", ["x"] * 10_001), 422, "10,000"),
    (put_labels("__base__", ["bad", "good"]), 422, "__base__"),
    (fit("later", **CONTENT | {"texts": ["a"]}), 422, "texts"),
    (fit("later", **CONTENT | {"labels": ["bad"] * 4}), 422, "two different labels"),
    (fit("acme", **CONTENT | {"labels": ["bad", "good", "bad", "Good"]}), 422, "Good"),
    (fit("later", **CONTENT | {"labels": ["bad", None, "bad", "good"]}), 422, "labels"),
    (fit("bolt", **CONTENT | {"labels": [1, 2, 3, 10**400]}), 422, "number"),
    (fit("later", **CONTENT | {"texts": ["a", " ", "c", "d"]}), 422, "text"),
    (fit("later", ["a"] * 1001, ["bad"] * 1001), 422, "1,000"),
    (fit_to(b'{"labels"'), 400, "JSON"),
    (fit_to(b" " * 1_048_577), 413, "bytes"),
]


@pytest.fixture(scope="module")
def server(bert, tmp_path_factory):
    with started(bert.bank, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.mark.parametrize(("request_", "status", "says"), BAD)
def test_what_cannot_be_added_over_http_has_a_reason(request_, status, says, server):
    [response] = server.ask(request_)
    assert response.status_code == status, response.text
    assert says in response.json()["error"]


def test_an_adapter_of_its_own_is_rejected_where_tenants_share_one(bert, server, tmp_path):
    AdapterBank.load(None, bert.bank).write("acme", tmp_path / "acme")
    [response] = server.ask(put("acme", files_of(tmp_path / "acme")))
    assert response.status_code == 422
    check_answers(server, "acme", bert.logits["acme"])


def test_tenants_come_later_over_http_and_others_answer_as_before(bert, server, tmp_path):
    means = means_of(bert)
    group = means["good", "bad"][:, ::-1]
    labels = opposed(bert)
    by_command = logits_of(bert, fitted(bert, tmp_path, "fitted", labels), "fitted")
    [of_chance] = server.ask(fit("chance", TEXTS, drawn(softmax(group, axis=1))))
    of_fit, during = server.ask(fit("fitted", TEXTS, labels), predict("acme", *TEXTS[:4]))
    check_response(during, bert.logits["acme"])
    for request in (put_labels("later", ["bad", "good"]), put_labels("number", None)):
        [response] = server.ask(request)
        assert response.status_code == 200, response.text
    is_fitted, score, before = read_fit(of_fit)
    is_right = np.array(labels) == np.array(ALLOWED)[group.argmax(axis=1)]
    assert before == pytest.approx(is_right.mean())
    assert is_fitted
    assert score > 0.7 > before
    assert not read_fit(of_chance)[0]
    check_answers(server, "chance", group)
    check_answers(server, "fitted", by_command)
    check_answers(server, "acme", bert.logits["acme"])
    check_answers(server, "number", means[None])
    check_answers(server, "bolt", bert.logits["bolt"])
    later = (sum([bert.logits["acme"], bert.logits["corp"][:, ::-1], group, by_command])) / 4
    check_answers(server, "later", later)


def check_answers(server, name, logits):
    """Check a tenant's predictions over HTTP by its logits: of a number, or of bad and good."""
    [response] = server.ask(predict(name, *TEXTS[:4]))
    check_response(response, logits)


def check_response(response, logits):
    """Check the predictions of a response by their logits."""
    answers = read_answers(response)
    if logits.shape[1] == 1:
        assert_allclose(answers, logits[:4, 0], atol=1e-3)
    else:
        shares = [[answer[label] for label in ALLOWED] for answer in answers]
        assert_allclose(shares, softmax(logits[:4], axis=1), atol=1e-4)


@settings(derandomize=True)
@given(content=st.data())
def test_whatever_is_sent_has_an_answer_or_a_reason(content, server):
    values = st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from([*CONTENT.values()])
    body = content.draw(st.fixed_dictionaries({"texts": values, "labels": st.lists(values, max_size=5) | values}))
    responses = server.ask(fit_to(json.dumps(body)), fit_to(json.dumps(body)[:-1]))
    assert {response.status_code for response in responses} <= {200, 400, 422}
