"""Tenants without an adapter over HTTP: by labels, or by a few labeled texts, against plain transformers and PEFT."""

import asyncio
import csv
import io
import json
import time

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer

from lsr import AdapterBank
from lsr.serve.tenant_runner import TenantRunner
from lsr_onnx.examples import Example
from lsr_server import tenants
from lsr_server.rests import REST
from lsr_server.tenants import FitClock
from tests.lsr.serve.asking import ask_passes, files, predict
from tests.lsr.serve.tenants import save_writers
from tests.lsr.serve.test_fitting import TENANTS, TEXTS, logits_alone, logits_of_group, save_tenants, states_alone

ALLOWED = {"Authorization": "Bearer secret"}
OTHERS = tuple(TENANTS)
FEW = {"texts": ["a", "b", "c", "d"], "labels": ["bad", "good"] * 2}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def plain(request, tmp_path_factory):
    return save_tenants(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_tenants(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("LSR_TOKEN", "secret")


def passes_of(folder):
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    return TenantRunner(bank, AutoTokenizer.from_pretrained(folder / "base"), 28, 1)


def check_answers(response, labels, logits):
    """Check the answers of a tenant by its logits of plain PEFT: (texts, labels)."""
    assert response.status_code == 200, response.text
    answers = response.json()["answers"]
    for answer, row in zip(answers, logits, strict=True):
        if labels is None:
            assert answer["number"] == pytest.approx(float(row[0]), abs=1e-3)
            continue
        chances = dict(zip(labels, row.double().softmax(dim=0).tolist(), strict=True))
        assert answer["probabilities"] == pytest.approx(chances, abs=1e-4)


async def ask_for(client, name, texts):
    path, body = predict(name, *texts)
    return await client.post(path, json=body)


async def check_others(client, expected, texts):
    """Check that all tenants who were there answer as with PEFT."""
    for name in OTHERS:
        check_answers(await ask_for(client, name, texts), TENANTS[name], expected[name][: len(texts)])


def test_a_tenant_that_is_put_by_its_labels_answers_by_the_mean_of_its_group_and_others_as_before(plain):
    folder, model, tokenizer = plain
    texts = TEXTS[:6]
    expected = logits_alone(model, tokenizer, texts)
    means = {
        ("good", "bad"): (expected["acme"][:, [1, 0]] + expected["corp"]) / 2,
        None: (expected["bolt"] + expected["eve"]) / 2,
        ("c", "a", "b"): expected["dora"][:, [2, 0, 1]],
    }
    counts = {("good", "bad"): 2, None: 2, ("c", "a", "b"): 1}

    async def call(client):
        for number, (labels, mean) in enumerate(means.items()):
            name = f"later {number}"
            sent = {"labels": None if labels is None else list(labels)}
            put = await client.put(f"/v1/tenants/{name}", json=sent, headers=ALLOWED)
            assert put.json() == {"adapter": name, "tenants": counts[labels]}
            check_answers(await ask_for(client, name, texts), labels, mean)
        await check_others(client, expected, texts)
        again = await client.put("/v1/tenants/acme", json={"labels": ["bad", "good"]}, headers=ALLOWED)
        assert again.json()["tenants"] == 2  # corp and later 0
        mean = (expected["corp"] + means["good", "bad"])[:, [1, 0]] / 2
        check_answers(await ask_for(client, "acme", texts), ("bad", "good"), mean)
        assert (await client.get("/health")).json()["adapters"] == len(TENANTS) + 3

    ask_passes(passes_of(folder), call)


def as_csv(texts, labels):
    file = io.StringIO()
    csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    return file.getvalue().encode()


def test_a_few_labels_teach_a_question_that_differs(plain):
    folder, model, tokenizer = plain
    states = states_alone(model, tokenizer, TEXTS)
    centered = states - states.mean(axis=0)
    places = centered @ np.linalg.svd(centered, full_matrices=False)[2][0]
    group = logits_of_group(model, tokenizer)
    of_group = group[:, 1] - group[:, 0]
    places = (places - np.median(places)) * -np.sign(np.corrcoef(places, of_group)[0, 1])
    is_clear = np.abs(places) > np.quantile(np.abs(places), 0.3)
    texts = [text for text, clear in zip(TEXTS, is_clear, strict=True) if clear]
    labels = ["good" if place > 0 else "bad" for place in places[is_clear]]
    expected = logits_alone(model, tokenizer, TEXTS[:4])

    async def call(client):
        fit = {"url": "/v1/tenants/later/fit", "headers": ALLOWED}
        posted = await client.post(**fit, json={"texts": texts, "labels": labels})
        answers = await ask_for(client, "later", texts)
        await check_others(client, expected, TEXTS[:4])
        return posted.json(), answers

    fitted, answers = ask_passes(passes_of(folder), call)
    assert (fitted["adapter"], fitted["texts"], fitted["metric"]) == ("later", len(texts), "accuracy")
    assert (fitted["answers"], fitted["contradictory"]) == ("fit", 0)
    is_good = np.array(labels) == "good"
    is_right_by_group = (of_group[is_clear] > 0) == is_good
    assert fitted["group_score"] == pytest.approx(is_right_by_group.mean())
    assert fitted["score"] > 0.7 > fitted["group_score"]
    interval = stats.binomtest(round(fitted["score"] * len(texts)), len(texts)).proportion_ci(0.95, "wilson")
    assert fitted["interval"] == [interval.low, interval.high]
    # Logits are linear in the states of plain PEFT, as is any head, and have learned the labels.
    shares = np.array([answer["probabilities"]["good"] for answer in answers.json()["answers"]])
    logits = np.log(shares / (1 - shares))
    inputs = np.column_stack([states[is_clear], np.ones(len(texts))])
    solution = np.linalg.lstsq(inputs, logits, rcond=None)[0]
    assert inputs @ solution == pytest.approx(logits, abs=0.02)
    assert ((logits > 0) == is_good).mean() > 0.7


def test_csv_and_json_give_the_same_fit(bert):
    folder, *_ = bert
    texts, labels = [*TEXTS[:7], "cat " * 40], ["bad", "good"] * 4
    typed = ALLOWED | {"Content-Type": "Text/CSV; charset=utf-8"}

    async def call(client):
        address = "/v1/tenants/acme/fit"
        of_json = await client.post(address, headers=ALLOWED, json={"texts": texts, "labels": labels})
        of_csv = await client.post(address, headers=typed, content=as_csv(texts, labels))
        return of_json.json(), of_csv.json()

    of_json, of_csv = ask_passes(passes_of(folder), call)
    assert of_json == of_csv
    assert (of_json["texts"], of_json["truncated"]) == (8, 1)


def test_a_fit_that_is_not_better_leaves_the_rows_of_the_group_or_those_that_the_tenant_had(bert):
    folder, model, tokenizer = bert
    group = torch.from_numpy(logits_of_group(model, tokenizer))
    each = logits_alone(model, tokenizer, TEXTS)

    async def fit_to_labels_of(client, name, logits):
        """Fit a tenant to labels drawn by the probabilities of its group, (texts, 2), and return what answers then."""
        random = np.random.default_rng(5)
        chances = logits.softmax(dim=1)[:, 1].numpy()
        labels = ["good" if random.random() < chance else "bad" for chance in chances]
        sent = {"texts": TEXTS, "labels": labels}
        return (await client.post(f"/v1/tenants/{name}/fit", json=sent, headers=ALLOWED)).json()["answers"]

    async def call(client):
        assert await fit_to_labels_of(client, "x", group) == "group"
        check_answers(await ask_for(client, "x", TEXTS), ("bad", "good"), group)
        await client.delete("/v1/adapters/x", headers=ALLOWED)
        others_of_acme = each["corp"][:, [1, 0]]
        assert await fit_to_labels_of(client, "acme", others_of_acme) == "before"
        check_answers(await ask_for(client, "acme", TEXTS), TENANTS["acme"], each["acme"])

    ask_passes(passes_of(folder), call)


def test_an_adapter_on_the_plain_base_is_refused_where_the_shared_one_would_be_added_to_it(bert, tmp_path):
    folder, model, tokenizer = bert
    expected = logits_alone(model, tokenizer, TEXTS[:6])
    passes = passes_of(folder)
    passes.bank.write("acme", tmp_path / "acme")  # with the shared adapter, for the plain base

    async def call(client):
        put = await client.put("/v1/adapters/acme", files=files(tmp_path / "acme"), headers=ALLOWED)
        await check_others(client, expected, TEXTS[:6])
        return put

    put = ask_passes(passes, call)
    assert put.status_code == 422
    assert "acme: the tenants of this bank share an adapter" in put.json()["error"]


@pytest.mark.parametrize("name", ["acme", "zoe"])
@pytest.mark.parametrize("is_late", [True, False], ids=["before the fit", "after it"])
def test_a_fit_that_is_not_better_keeps_what_others_have_put_or_adds_what_they_have_removed(name, is_late, bert):
    passes = passes_of(bert[0])
    bank = passes.bank
    examples = [Example(text, ("bad", "good")[number % 2]) for number, text in enumerate(TEXTS[:8])]
    prepared = passes.prepare_fit(name, examples)
    parts = [prepared.read(batch) for batch in prepared.batches]
    if not is_late:
        prepared.finish(parts, lambda: None)
    if name == "acme":
        bank.remove(name)
    else:
        bank.add(name, bank.contents("corp"))
    before = bank.versions.get(name)
    if is_late:
        prepared.finish(parts, lambda: None)
    assert prepared.add() == {"acme": "group", "zoe": "before"}[name]
    assert name in bank.versions
    assert before in (None, bank.versions[name])


def test_a_tenant_of_numbers_is_fitted_by_its_errors(bert):
    folder, model, tokenizer = bert
    states = states_alone(model, tokenizer, TEXTS)
    numbers = [*map(float, 50 + 10 * (states - states.mean(axis=0))[:, 0] / states[:, 0].std())]
    each = logits_alone(model, tokenizer, TEXTS)
    errors = ((each["bolt"] + each["eve"]) / 2).double().numpy()[:, 0] - numbers

    async def call(client):
        sent = {"texts": TEXTS, "labels": numbers}
        fitted = (await client.post("/v1/tenants/later/fit", json=sent, headers=ALLOWED)).json()
        answers = (await ask_for(client, "later", TEXTS[:10])).json()["answers"]
        return fitted, [answer["number"] for answer in answers]

    fitted, answered = ask_passes(passes_of(folder), call)
    assert (fitted["metric"], fitted["answers"]) == ("rmse", "fit")
    assert fitted["group_score"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-4)
    assert answered == pytest.approx(numbers[:10], abs=3)


def test_others_and_health_are_answered_during_a_fit_and_none_gets_another_answer(bert):
    folder, model, tokenizer = bert
    expected = logits_alone(model, tokenizer, TEXTS[:2])
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    sent = {"texts": texts, "labels": ["bad", "good"] * (len(texts) // 2)}
    counts = {"predicted": 0, "healthy": 0}

    async def call(client):
        fit = asyncio.create_task(client.post("/v1/tenants/later/fit", json=sent, headers=ALLOWED))
        slowest = 0
        while not fit.done():
            begin = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            slowest = max(slowest, time.monotonic() - begin)
            counts["healthy"] += 1
            name = OTHERS[counts["predicted"] % len(OTHERS)]
            check_answers(await ask_for(client, name, TEXTS[:2]), TENANTS[name], expected[name])
            counts["predicted"] += 1
        assert (await fit).status_code == 200
        return slowest

    assert ask_passes(passes_of(folder), call) < 0.5
    assert counts["predicted"] > 10


def fit(changed=None, name="later", content=None, **headers):
    """A request to fit a tenant to FEW, with changes, or to another content."""
    content = content or json.dumps(FEW | (changed or {})).encode()
    return "POST", f"/v1/tenants/{name}/fit", content, ALLOWED | headers


def put(labels=None, name="later", content=None, **headers):
    """A request to add a tenant by labels, or with another content."""
    content = content or json.dumps({"labels": labels}).encode()
    return "PUT", f"/v1/tenants/{name}", content, ALLOWED | headers


def of_csv(content):
    return "POST", "/v1/tenants/later/fit", content, ALLOWED | {"Content-Type": "text/csv"}


NEEDED = 'needed: {"labels": [NAME, ...]}, or null for a number'
MISTAKES = [
    (put(["bad", "good"], Authorization="Bearer secreu"), 401, "Bearer"),
    (fit(Authorization=""), 401, "Bearer"),
    (put([]), 422, NEEDED),
    (put(content=b'["bad", "good"]'), 422, NEEDED),
    (put(content=b'{"labels": ["bad", "good"], "more": 1}'), 422, NEEDED),
    (put("bad"), 422, "labels: must be a list of names"),
    (put(["bad", 1]), 422, "labels: must be a list of names"),
    (put(["bad", "bad"]), 422, "labels: 'bad, bad': each must be given once"),
    (put(["Bad", "Good"]), 422, "did you mean bad, good?"),
    (put(["bad"]), 422, "labels: 'bad': only some of those of other tenants, bad, good; name all of them"),
    (put(["x"] * 10_001), 422, "labels: has 10,001 names; at most 10,000 are allowed"),
    (put(["x" * 201]), 422, "of 201 characters; at most 200 are allowed"),
    (put([f"{number:0200}" for number in range(321)]), 422, "64,200 bytes together, in UTF-8; at most 64,000"),
    (put(content=rb'{"labels": ["\ud800"]}'), 422, "lone surrogate"),
    (put(["bad", "good"], name="__base__"), 422, "an adapter's name must be non-empty, not '__base__'"),
    (put(["bad", "good"], name="x" * 256), 422, "an adapter's name must have at most 255 bytes"),
    (put(content=b'{"labels"'), 400, "not JSON"),
    (put(content=b"[" * 60_000), 422, "over 50,000 JSON values"),
    (put(content=b" " * 1_048_577), 413, "at most 1,048,576 bytes"),
    (fit({"more": 1}), 422, 'needed: {"texts": [TEXT, ...], "labels": [LABEL, ...]}, or a body of text/csv'),
    (fit({"texts": "a"}), 422, "needed: a list of texts and one of as many labels, of at most 1,000"),
    (fit({"texts": ["a"]}), 422, "needed: a list of texts and one of as many labels"),
    (fit({"texts": ["a"] * 1001, "labels": ["bad"] * 1001}), 422, "of at most 1,000"),
    (fit({"texts": [], "labels": []}), 422, "needed: at least 4 different texts, of two different labels; got 0 of 0"),
    (fit({"labels": ["bad"] * 4}), 422, "needed: at least 4 different texts, of two different labels; got 4 of 1"),
    (fit({"labels": ["bad", "good", "bad", "Good"]}), 422, "labels: no tenant of the bank has"),
    (fit({"labels": ["bad", "good", "bad", "Good"]}, name="acme"), 422, "label 'Good': is not one of 'bad, good'"),
    (fit({"labels": ["a", "b", "a", "b"]}), 422, "labels: 'a, b': only some of those of other tenants, a, b, c"),
    (fit({"labels": ["bad", None, "bad", "good"]}), 422, "labels[1]: needed: a label, a list of labels, or a number"),
    (fit({"labels": ["bad", True, "bad", "good"]}), 422, "labels[1]: needed: a label"),
    (fit({"labels": [["bad"], ["good"], [1], []]}), 422, "labels[2]: needed: a label"),
    (fit({"labels": [["bad"], ["good"], ["bad"], []]}, name="acme"), 422, "is not one of 'bad, good'"),
    (fit({"labels": [1, 2, 3, "x"]}, name="bolt"), 422, "label 'x': needed: a number from -1e+30 to 1e+30"),
    (fit({"labels": [1, 2, 3, 10**400]}, name="bolt"), 422, "needed: a number from -1e+30 to 1e+30"),
    (fit(content=b'{"texts": ["a", "b", "c", "d"], "labels": [1, 2, NaN, 3]}'), 422, "label nan: needed: a number"),
    (fit({"texts": ["a", " ", "c", "d"]}), 422, "texts[1]: needed: a text"),
    (fit({"texts": ["a", ["b", "c"], "c", "d"]}), 422, "texts[1]: needed: a text"),
    (fit({"texts": ["a", {"b": [[]] * 9}, "c", "d"]}), 422, "texts[1]: needed: a text"),
    (fit({"texts": ["a", "b", "c", "a" * 1_000_000]}), 422, "texts: over 35,840 characters together"),
    (fit({"texts": ["a"] * 65 + [" "], "labels": ["bad", "good"] * 33}), 422, "texts[65]: needed: a text"),
    (fit(content=b"[" * 40_000), 400, "not JSON"),
    (fit(content=b" " * 1_048_577), 413, "at most 1,048,576 bytes"),
    (of_csv(b""), 422, "the body: no column 'text'; needed: text, label; columns: none"),
    (of_csv(b"text,label\na,bad\nb\n"), 422, "the body: line 3: needed: 2 cells, as in the header"),
    (of_csv(b"text,label\n\xe9,bad\n"), 422, "the body: 'utf-8' codec can't decode"),
    (of_csv(b'text,label\n"a,bad\n'), 422, "the body: unexpected end of data"),
    (of_csv(b"text,label\n" + b"a" * 100_001 + b",bad\n"), 422, "the body: field larger than field limit"),
    (of_csv(b"text,label\n" + b"a,bad\n" * 1001), 422, "the body: more than 1,000 texts"),
    (of_csv(b"," * 500_000 + b"\na\n"), 422, "the body: no column 'text'"),
]


def test_what_cannot_be_added_has_a_reason_and_changes_nothing(bert):
    folder, model, tokenizer = bert
    expected = logits_alone(model, tokenizer, TEXTS[:2])
    passes = passes_of(folder)

    async def call(client):
        for (method, path, content, headers), status, reason in MISTAKES:
            response = await client.request(method, path, content=content, headers=headers)
            assert (response.status_code, list(response.json())) == (status, ["error"]), (reason, response.text)
            assert reason in response.json()["error"]
        await check_others(client, expected, TEXTS[:2])

    ask_passes(passes, call)
    assert passes.bank.names == list(TENANTS)


def test_the_work_of_a_fit_is_limited(bert, monkeypatch):
    folder, *_ = bert
    sent = {"texts": TEXTS, "labels": ["bad", "good"] * 30}

    async def post(client):
        return await client.post("/v1/tenants/later/fit", json=sent, headers=ALLOWED)

    passes = passes_of(folder)
    for limit, most, reason in (
        ("MAX_OUTPUTS", 119, "at most 59 texts with 2 labels"),
        ("MAX_TOKENS", 60, "tokens together; at most 60 are allowed"),
        ("MAX_SECONDS", 0, "the fit takes over 0 seconds of a processor; send fewer texts"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(tenants, limit, most)
            response = ask_passes(passes, post)
        assert (response.status_code, response.json()["error"][-len(reason) :]) == (422, reason)
    assert passes.bank.names == list(TENANTS)


def test_a_bank_without_a_shared_adapter_and_one_that_writes_add_no_tenants(there, tmp_path):
    async def call(client):
        put = await client.put("/v1/tenants/later", json={"labels": ["bad", "good"]}, headers=ALLOWED)
        fit = await client.post("/v1/tenants/later/fit", json=FEW, headers=ALLOWED)
        return put, fit

    for bank, folder, reason in (
        (AdapterBank.load(None, there / "bank"), there, "only a bank whose adapters share one has rows for a tenant"),
        (save_writers(tmp_path, "a"), tmp_path, "the base model of this bank writes"),
    ):
        passes = TenantRunner(bank, AutoTokenizer.from_pretrained(folder / "base"), 28, 4)
        for response in ask_passes(passes, call):
            assert response.status_code == 422
            assert reason in response.json()["error"]


@pytest.mark.parametrize(("is_busy", "rests"), [(True, [REST * 0.25, REST * 0.5]), (False, [])])
def test_a_fit_rests_after_each_step_while_others_are_asked(is_busy, rests):
    computed = iter([1.0, 1.25, 1.25, 1.75, 1.75])  # when it begins, and before and after each rest
    slept = []
    clock = FitClock(lambda: is_busy, lambda: next(computed), slept.append)
    clock.check_time()
    clock.check_time()
    assert slept == rests
    assert REST * clock.count_rested() == sum(rests)
