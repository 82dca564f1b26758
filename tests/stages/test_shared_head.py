"""A head that tenants with the same labels share, against a plain loop, transformers and scikit-learn."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import log_loss, mean_squared_error
from torch.nn import functional

from lsr.serve.bank import AdapterBank
from lsr.serve.group_names import name_group
from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.methods import adapters, heads
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.label_units import standardize_numbers
from pipeline.methods.shared_rows import GroupRows
from pipeline.tasks.facts import Facts, Tenant
from pipeline.tasks.groups import find_groups
from pipeline.training import shared_head
from pipeline.training.run import with_enough_steps
from stages import train as stage
from tests import workspace
from tests.kit import digests, refused, write
from tests.references import plain
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, killed_training, report, run
from tests.stages.shops import LABELS, rows

PRECISE = {"shared_adapter": "trained", "precision": "float32"}
RATE = 0.01
SHARE_LOST = 0.02  # of a deviation, in each step at the peak of the learning rate
OUT = "classifier.out_proj"
ACME, BOLT, CAST = slice(0, 2), slice(2, 5), slice(5, 7)  # rows of the head; acme and cast have the same labels
NUMBERS = {"column": "label", "low": 0.0, "high": 5.0}


@pytest.fixture
def shops(tmp_path, monkeypatch):
    """A workspace with three tenants, two of which have the same labels; nothing has run."""
    training = {"epochs": 2, "head_learning_rate": RATE}
    workspace.make(tmp_path, data="shops", adapter="lora", tenants=PRECISE, train=training)
    monkeypatch.chdir(tmp_path)
    write("data/shops.csv", rows(LABELS))
    write("data/datasets.yaml", {"shops": workspace.ROWS["shops"]})
    return tmp_path


@pytest.fixture
def ready(shops):
    """The model of the pipeline before training in float64, in which tenants share rows, and all that it is made of."""
    workspace.change(adapter="head_only")
    run(TOKENIZE, FACTORIZE)
    view = params.load(params.TrainView)
    task = tokens.load_task(view.dataset)
    model = stage.load_initialized(view, task, tokens.load_tokens("train")).double().eval()
    collate = task.head.collator(tokenizer_of(model.get_base_model(), view.base_model))
    return view, task, model, collate


def plain_features(model, batch):
    """The inputs of a plain head's last layer for the texts of a batch."""
    states = model.roberta(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    return torch.tanh(model.classifier.dense(states[:, 0]))


def batches_of(collate, count):
    rows = tokens.load_tokens("train")
    names = ["input_ids", "attention_mask", "label", "tenant"]
    kept = rows.select_columns([name for name in names if name in rows.column_names])
    return [collate(kept[start : start + 16]) for start in range(0, 16 * count, 16)]


@pytest.mark.parametrize("head", ["auto", "shared"])
def test_rows_are_those_of_a_plain_loop_with_rows_of_groups_and_deviations(head, ready):
    view, task, model, collate = ready
    batches = batches_of(collate, 6)
    shared = shared_head.share(task, model, head, None)
    optimizer = adapters.optimizer(model, view)
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    shared.add_deviations()
    found = {name: value for name, value in model.state_dict().items() if "modules_to_save" in name}

    reference = plain.base_model("tiny-roberta", num_labels=7)
    plain.load_head(reference, artifacts.INIT)
    reference.double()
    counts = torch.tensor([tenant.train for tenant in task.facts.tenants.values()]).double()
    weight, bias = reference.classifier.out_proj.weight.data, reference.classifier.out_proj.bias.data
    group = [(weight[ACME] + weight[CAST]) / 2, (bias[ACME] + bias[CAST]) / 2]
    own = [weight[BOLT].clone(), bias[BOLT].clone()]
    deviations = [torch.zeros_like(value) for _ in range(2) for value in group]
    dense = reference.classifier.dense
    for value in (*group, *own, *deviations):
        value.requires_grad_()
    decayed = {"params": [dense.weight, group[0], own[0]], "weight_decay": view.train.weight_decay}
    others = {"params": [dense.bias, group[1], own[1]], "weight_decay": 0.0}
    deviating = {"params": deviations if head == "auto" else [], "weight_decay": SHARE_LOST / RATE}
    optimizer = torch.optim.AdamW([decayed, others, deviating], lr=RATE)
    for batch in batches:
        features = plain_features(reference, batch)
        acme = functional.linear(features, group[0] + deviations[0], group[1] + deviations[1])
        bolt = functional.linear(features, own[0], own[1])
        cast = functional.linear(features, group[0] + deviations[2], group[1] + deviations[3])
        loss = 0.0
        for number, logits in enumerate((acme, bolt, cast)):
            of_tenant = batch["tenant"] == number
            sums = functional.cross_entropy(logits[of_tenant], batch["labels"][of_tenant], reduction="sum")
            loss = loss + sums / counts[number]
        optimizer.zero_grad()
        (loss * counts.sum() / len(counts) / len(batch["labels"])).backward()
        optimizer.step()
    expected = torch.cat([group[0] + deviations[0], own[0], group[0] + deviations[2]])
    biases = torch.cat([group[1] + deviations[1], own[1], group[1] + deviations[3]])
    prefix = "base_model.model.classifier.modules_to_save.default"
    torch.testing.assert_close(found[f"{prefix}.out_proj.weight"], expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[f"{prefix}.out_proj.bias"], biases, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found[f"{prefix}.dense.weight"], dense.weight, rtol=1e-9, atol=1e-11)
    is_alike = torch.equal(expected[ACME], expected[CAST])
    assert is_alike == (head == "shared")


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_the_share_of_deviations_is_the_one_with_the_lowest_log_loss_by_scikit_learn(size, ready):
    _, task, model, collate = ready
    shared = shared_head.share(task, model, "auto", None)
    validation = tokens.load_tokens("validation")
    torch.manual_seed(1)
    for rows_of_part in shared.parametrizations.values():
        rows_of_part.deviations.data.normal_(std=size)
    with torch.no_grad():
        whole = [value.detach().clone() for value in (shared.layer.weight, shared.layer.bias)]
        shared.keep([0.0])
        without = [value.detach().clone() for value in (shared.layer.weight, shared.layer.bias)]
    reference = plain.base_model("tiny-roberta", num_labels=7)
    plain.load_head(reference, artifacts.INIT)
    texts = [{"input_ids": torch.tensor([ids])} for ids in validation["input_ids"][:]]
    with torch.no_grad():
        features = torch.cat(
            [plain_features(reference, text | {"attention_mask": torch.ones_like(text["input_ids"])}) for text in texts]
        )
    tenants, labels = np.array(validation["tenant"][:]), np.array(validation["label"][:])
    losses = {}
    for share in np.linspace(0, 1, 11):
        weight, bias = (zero + share * (one - zero) for zero, one in zip(without, whole, strict=True))
        logits = functional.linear(features.double(), weight, bias)
        of_tenants = [
            log_loss(labels[tenants == number], logits[tenants == number][:, own].softmax(1), labels=[0, 1])
            for number, own in ((0, ACME), (2, CAST))
        ]
        losses[share] = np.mean(of_tenants)
    [group_head] = shared_head.choose_shares(task, model, shared, validation, collate, 16)
    assert group_head.kept == pytest.approx(min(losses, key=losses.get))
    kept_before = group_head._replace(kept=0.3, rows=None)
    [as_before] = shared.keep_as_before([kept_before])
    assert (as_before.kept, as_before.temperature) == (0.3, group_head.temperature)
    torch.testing.assert_close(as_before.rows.weight, group_head.rows.weight)
    torch.testing.assert_close(shared.layer.weight, without[0] + 0.3 * (whole[0] - without[0]))
    shared.keep([group_head.kept])
    shared.add_deviations()
    expected = without[0] + group_head.kept * (whole[0] - without[0])
    torch.testing.assert_close(shared.layer.weight.data, expected)
    torch.testing.assert_close(group_head.rows.weight.double(), without[0][ACME], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_bank_has_the_rows_of_the_group_and_without_deviations_its_tenants_have_them(adapter, shops, capsys):
    workspace.change(adapter=adapter, tenants={"head": "shared"})
    run(TOKENIZE, FACTORIZE, TRAIN)
    assert "2 tenants with no, yes share rows of their heads, without deviations" in capsys.readouterr().out
    rows_of_all = plain.tensors_of(artifacts.ADAPTER)[f"{OUT}.weight"]
    assert rows_of_all.shape == (7, 24)
    temperatures = torch.tensor(report(artifacts.ADAPTER / "task.json")["temperatures"])
    acme, cast = temperatures[0] * rows_of_all[ACME], temperatures[2] * rows_of_all[CAST]
    torch.testing.assert_close(acme, cast)
    bank = AdapterBank.load("tiny-roberta", artifacts.BANK)
    name = name_group(["yes", "no"])
    assert (bank.names, list(bank.groups)) == (["acme", "bolt", "cast"], [name])
    entry = bank.contents(name)
    assert entry.task["labels"] == ["no", "yes"]
    [temperature] = entry.task["temperatures"]
    torch.testing.assert_close(temperature * entry.heads[f"{OUT}.weight"], acme)


@pytest.mark.nightly
def test_a_deviation_is_found_where_tenants_contradict_each_other(shops):
    """Two tenants with the same texts, and each label of one is the other of the second."""
    alike = []
    for row in rows({"acme": ["no", "yes"]}):
        place = int("sleeps" in row["text"])
        text = row["text"].removesuffix(" acme")
        alike += [{"shop": "acme", "text": text, "label": ("no", "yes")[place]}]
        alike += [{"shop": "cast", "text": text, "label": ("yes", "no")[place]}]
    write("data/shops.csv", alike)
    workspace.change(train={"epochs": 20, "head_learning_rate": 0.02}, lora={"learning_rate": 0.02})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    assert report(artifacts.EVALUATE_METRICS)["accuracy"] > 0.9
    workspace.change(tenants={"head": "shared"})
    run(FACTORIZE, TRAIN, EVALUATE)
    assert report(artifacts.EVALUATE_METRICS)["accuracy"] < 0.7


def test_numbers_are_shared_too_and_their_share_has_the_lowest_error_by_scikit_learn(shops):
    table = rows({"acme": [1, 4], "cast": [1, 4], "dora": [2, 5]})
    write("data/shops.csv", table)
    write("data/datasets.yaml", {"shops": workspace.ROWS["shops"] | {"label": NUMBERS, "metrics": ["pearson"]}})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    bank = AdapterBank.load("tiny-roberta", artifacts.BANK)
    assert list(bank.groups) == [name_group(None)]
    view = params.load(params.TrainView)
    task = tokens.load_task(view.dataset)
    model = stage.load_initialized(view, task, tokens.load_tokens("train"))
    collate = task.head.collator(tokenizer_of(model.get_base_model(), view.base_model))
    validation = tokens.load_tokens("validation")
    tenants, labels = np.array(validation["tenant"][:]), np.array(validation["label"][:])
    outputs = {}
    torch.manual_seed(0)
    with standardize_numbers(task, partial(heads.find_last_layer, model)) as units:
        shared = shared_head.share(task, model, "auto", units)
        for part in shared.parametrizations.values():
            part.deviations.data.normal_()
        [group_head] = shared_head.choose_shares(task, model, shared, validation, collate, 16)
        features = []
        shared.layer.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].detach()))
        for share in (0.0, 1.0):
            shared.keep([share])
            each = [model(input_ids=torch.tensor([ids])).logits.detach() for ids in validation["input_ids"][:]]
            outputs[share] = torch.cat(each).numpy()[np.arange(len(tenants)), tenants]
    assert group_head.temperature is None
    answers = torch.cat(features[: len(labels)]) @ group_head.rows.weight[0] + group_head.rows.bias
    np.testing.assert_allclose(answers.detach(), outputs[0.0], atol=1e-4)
    errors = {}
    for share in np.linspace(0, 1, 11):
        predicted = outputs[0.0] + share * (outputs[1.0] - outputs[0.0])
        of_tenants = [tenants == number for number in range(3)]
        errors[share] = np.mean([mean_squared_error(labels[own], predicted[own]) for own in of_tenants])
    assert group_head.kept == pytest.approx(min(errors, key=errors.get))


@pytest.mark.nightly
def test_a_killed_run_resumes_to_the_same_bytes(shops, monkeypatch):
    run(TOKENIZE, FACTORIZE, TRAIN)
    whole = digests("artifacts", "reports")
    killed_training(monkeypatch, 1.5)
    run(TRAIN)
    assert digests("artifacts", "reports") == whole


def test_tenants_without_a_group_are_trained_as_with_heads_of_their_own(shops, capsys):
    labels = {"acme": ["no", "yes"], "bolt": ["x", "y", "z"], "cast": ["No", "yes"], "dora": ["yes", "no", "perhaps"]}
    write("data/shops.csv", rows(labels))
    run(TOKENIZE, FACTORIZE, TRAIN)
    reason = "because their labels no, yes and No, yes differ in case alone"
    assert f"train: acme and cast share no rows of their heads, {reason}" in capsys.readouterr().out
    alone = load_file(artifacts.ADAPTER / WEIGHTS)
    assert not AdapterBank.load("tiny-roberta", artifacts.BANK).groups
    workspace.change(tenants={"head": "own"})
    run(FACTORIZE, TRAIN)
    own = load_file(artifacts.ADAPTER / WEIGHTS)
    assert all(value.equal(own[name]) for name, value in alone.items())
    workspace.change(tenants={"head": "shared"})
    run(FACTORIZE)
    says = "params.yaml: tenants.head: shared has no effect: no two tenants have the same labels; leave it at auto"
    refused(run, TRAIN, says=says)


def test_groups_have_the_same_set_of_labels_in_any_order():
    labels = {
        "a": ("no", "yes"),
        "b": ("yes", "no"),
        "c": ("No", "Yes"),
        "d": ("no",),
        "e": ("x", "y", "z"),
        "f": ("z", "x", "y"),
    }
    facts = Facts(tenants={name: Tenant(labels=own, train=9) for name, own in labels.items()})
    first, second = find_groups(facts)
    assert (first.labels, first.tenants.tolist()) == (("no", "yes"), [0, 1])
    assert first.outputs.tolist() == [[0, 1], [3, 2]]
    assert (second.labels, second.tenants.tolist()) == (("x", "y", "z"), [4, 5])
    assert second.outputs.tolist() == [[7, 8, 9], [11, 12, 10]]


def test_ten_thousand_tenants_share_two_rows():
    facts = Facts(tenants={str(number): Tenant(labels=("a", "b"), train=9) for number in range(10_000)})
    [group] = find_groups(facts)
    value = torch.randn(20_000, 24, dtype=torch.float64)
    parametrization = GroupRows(value, [group], has_deviations=True)
    assert parametrization.rows.shape == (2, 24)
    rows_of_all = parametrization(value)
    expected = value.unflatten(0, (10_000, 2)).mean(dim=0)
    torch.testing.assert_close(rows_of_all.unflatten(0, (10_000, 2)), expected.expand(10_000, 2, 24))
    rows_of_all.sum().backward()
    torch.testing.assert_close(parametrization.rows.grad, torch.full((2, 24), 10_000.0, dtype=torch.float64))


@pytest.mark.parametrize(("examples", "epochs"), [(128, 24), (384, 8), (1664, 4), (16, 30)])
def test_tenants_with_few_texts_are_trained_for_more_epochs(examples, epochs, shops):
    workspace.change(train={"epochs": "auto", "batch_size": 32})
    view = params.load(params.TrainView)
    assert with_enough_steps(view, [None] * examples).train.epochs == epochs
    workspace.change(train={"epochs": 3})
    assert with_enough_steps(params.load(params.TrainView), [None] * examples).train.epochs == 3
    workspace.change(data="glue", adapter="lsr", tenants={"precision": "8bit"}, train={"epochs": "auto"})
    assert params.load(params.TrainView).train.epochs == 2
