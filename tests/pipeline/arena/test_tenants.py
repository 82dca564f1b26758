"""Tenants in the arena: how they share a head, tenants of whom no text is in training, and tuned numbers of epochs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pipeline.arena import measure as measuring
from pipeline.arena import task_tokens, unseen
from pipeline.arena.execution import check
from pipeline.arena.measure import measure
from pipeline.tasks.tenants import TenantsScoring
from pipeline.training import fit as fitting
from pipeline.training import shared_head
from tests.kit import refused, write
from tests.pipeline.arena import small

pytestmark = pytest.mark.nightly  # it takes long, and its subject is about to go

COLORS = ["blue", "green", "red"]  # in the order of their outputs
STRENGTHS = [1e-5, 1e-4, 0.001, 0.01, 0.1, 1.0, 10.0]
CALLED = {"bleu": "blue", "vert": "green", "rouge": "red"}  # the labels of the classes of a tenant added later
SOURCE = {"kind": "files", "files": {"train": "late.jsonl"}}
SPLIT = {"validation": 0.1, "test": 0.3}
SHOPS = {
    "source": {"kind": "files", "files": {"train": "shops.jsonl"}},
    "text": ["text"],
    "tenant": "who",
    "label": {"column": "kind"},
    "metrics": ["accuracy"],
    "split": {"validation": 0.2, "test": 0.2},
}
LATE = {
    "source": SOURCE,
    "text": ["text"],
    "label": {"column": "kind", "names": ["rouge", "vert", "bleu"]},
    "metrics": ["accuracy"],
    "split": SPLIT,
}
LORA = {"lora.r": 2, "lora.lora_alpha": 4, "lora.learning_rate": 0.05}
METHODS = {
    "one": {"adapter": "head_only", "features": "mean", "tasks": ["shops"], "params": {"tenants.head": "shared"}},
    "each": {"adapter": "head_only", "features": "mean", "tasks": ["shops"], "params": {"tenants.head": "own"}},
    "own": {"adapter": "lora", "tasks": ["shops"], "params": {**LORA, "tenants.head": "own"}},
    "ignored": {"adapter": "lora", "tasks": ["shops"], "params": {**LORA, "tenants.head": "shared"}},
    "deviating": {"adapter": "lora", "tasks": ["shops"], "params": {**LORA, "tenants.head": "auto"}},
}
UNSEEN = {"late": ["red", "green", "blue"]}
SAMPLE = {"train": 40, "validation": 10, "test": 18}


def texts(name, count):
    words = ["red", "green", "blue"]
    return [{"who": name, "text": f"{words[n % 3]} of {name} {n}", "kind": words[n % 3]} for n in range(count)]


def later(count):
    names = {label: called for called, label in CALLED.items()}
    return [{"text": row["text"], "kind": names[row["kind"]]} for row in texts("late", count)]


def use(**changes):
    task = {"row": "shops", "sample_sizes": SAMPLE, "unseen": UNSEEN}
    small.use(**{"tasks": {"shops": task}, "methods": METHODS, **changes})


@pytest.fixture
def tenants(arena):
    """The preset with a task of two tenants with the same labels, and a tenant of whom no text is in training."""
    write("shops.jsonl", [*texts("acme", 90), *texts("bolt", 90)])
    write("late.jsonl", later(150))
    write("data/datasets.yaml", {"shops": SHOPS, "late": LATE})
    use()


def training(method, seed=0, **setting):
    return small.training(f"shops: {method}", seed, **setting)


def pooled(splits):
    """The mean of the last states of each text, read alone by plain transformers."""
    encoder = AutoModel.from_pretrained("tiny-roberta").eval()
    features = {}
    for split, examples in splits.items():
        with torch.no_grad():
            states = [encoder(torch.tensor([ids])).last_hidden_state[0].mean(dim=0) for ids in examples["input_ids"]]
        features[split] = torch.stack(states).numpy()
    return features


def fit(features, labels, chosen):
    """Fit logistic regressions to some examples of train, and return the one with the lowest loss on validation.

    Examples of a class that train does not have choose nothing.
    """
    train, validation = chosen
    candidates = []
    for strength in STRENGTHS:
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        candidates.append(regression.fit(features["train"][train], labels["train"][train]))
    known = validation & np.isin(labels["validation"], labels["train"][train])
    held_out = features["validation"][known]
    wanted = labels["validation"][known]
    return min(candidates, key=lambda one: log_loss(wanted, one.predict_proba(held_out), labels=one.classes_))


def reference(method):
    """Return scikit-learn's regression for each tenant, and its predictions for the test split."""
    splits = task_tokens.splits(training(method))
    features = pooled(splits)
    labels = {split: np.array(examples["label"][:]) for split, examples in splits.items()}
    owners = {split: np.array(examples["tenant"][:]) for split, examples in splits.items()}
    predicted = np.empty(len(labels["test"]))
    fitted = []
    for tenant in (0, 1):
        everyone = method == "one"
        chosen = [everyone | (owners[split] == tenant) for split in ("train", "validation")]
        fitted.append(fit(features, labels, chosen))
        own = owners["test"] == tenant
        predicted[own] = fitted[-1].predict(features["test"][own])
    return fitted, predicted


@pytest.mark.parametrize("method", ["one", "each"])
def test_regressions_on_the_frozen_encoder_are_those_of_scikit_learn(method, tenants):
    found = measure(training(method))
    assert (found.status, found.reason) == ("finished", "")
    fitted, predicted = reference(method)
    assert list(found.predicted) == predicted.tolist()
    assert found.stored == (1 if method == "one" else 2) * 3 * 25  # three classes, of 24 states and a bias
    late = task_tokens.splits(unseen.training_of(training(method), "late"))
    features = pooled(late)
    labels = {split: as_tenants_call(late[split]["label"][:]) for split in ("train", "test")}
    logs = np.mean([one.predict_log_proba(features["test"]) for one in fitted], axis=0)
    assert found.unseen["late"][0] == pytest.approx(accuracy_score(labels["test"], logs.argmax(axis=1)), abs=1e-6)
    for count in (20, 60):
        drawn = np.random.default_rng(0).permutation(len(labels["train"]))[:count]
        own = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
        own.fit(features["train"][drawn], labels["train"][drawn])
        assert found.unseen["late"][count] == pytest.approx(own.score(features["test"], labels["test"]), abs=1e-6)


@pytest.mark.parametrize("method", ["one", "each"])
def test_with_a_refit_regressions_learn_from_validation_too_with_the_penalty_that_it_chose(method, tenants):
    few = {"shops": {"row": "shops", "sample_sizes": SAMPLE | {"train": 8, "validation": 30}}}
    use(tasks=few)
    once = measure(training(method))
    use(tasks=few, params={"train.refit": True})
    found = measure(training(method))
    assert (found.status, found.reason) == ("finished", "")
    assert found.validation == once.validation
    splits = task_tokens.splits(training(method))
    features = pooled(splits)
    both = np.concatenate([features["train"], features["validation"]])
    labels = np.concatenate([splits[split]["label"][:] for split in ("train", "validation")])
    owners = np.concatenate([splits[split]["tenant"][:] for split in ("train", "validation")])
    fitted, _ = reference(method)
    expected = np.empty(len(features["test"]))
    for tenant, chosen in enumerate(fitted):
        rows = (method == "one") | (owners == tenant)
        own = np.array(splits["test"]["tenant"][:]) == tenant
        again = clone(chosen).fit(both[rows], labels[rows])
        expected[own] = again.predict(features["test"][own])
    assert list(found.predicted) == expected.tolist()
    assert found.predicted != once.predicted


@pytest.mark.parametrize("method", ["one", "each"])
@pytest.mark.parametrize("features", ["mean", "words"])
def test_a_class_that_no_training_text_has_is_not_predicted_and_chooses_no_penalty(method, features, tenants):
    """Of one text per tenant, each tenant alone has one class, and both together have two of three."""
    few = {"row": "shops", "sample_sizes": SAMPLE | {"train": 1}, "unseen": UNSEEN}
    use(tasks={"shops": few}, methods={name: METHODS[name] | {"features": features} for name in ("one", "each")})
    found = measure(training(method))
    assert (found.status, found.reason) == ("finished", "")
    splits = task_tokens.splits(training(method))
    owners = splits["test"]["tenant"][:]
    labels = splits["train"]["label"][:]
    if method == "each":
        by_tenant = dict(zip(splits["train"]["tenant"][:], labels, strict=True))
        assert list(found.predicted) == [by_tenant[owner] for owner in owners]
    else:
        assert {*found.predicted} <= {*labels}
        assert len({*labels}) == 2
    if (method, features) == ("one", "mean"):
        _, predicted = reference(method)
        assert list(found.predicted) == predicted.tolist()


def test_a_tenant_without_texts_in_validation_has_the_usual_penalty(tenants):
    files = {}
    for split, names in {"train": ("acme", "bolt"), "validation": ("acme",), "test": ("bolt",)}.items():
        rows = [row | {"text": f"{row['text']} {split}"} for name in names for row in texts(name, 40)]
        files[split] = f"{split}.jsonl"
        write(files[split], rows)
    write("data/datasets.yaml", {"shops": {**SHOPS, "source": {"kind": "files", "files": files}, "split": {}}})
    use(tasks={"shops": {"row": "shops", "sample_sizes": SAMPLE}})
    found = measure(training("each"))
    assert (found.status, found.reason) == ("finished", "")
    splits = task_tokens.splits(training("each"))
    read = pooled(splits)
    own = np.array(splits["train"]["tenant"][:]) == 1
    usual = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    usual.fit(read["train"][own], np.array(splits["train"]["label"][:])[own])
    assert list(found.predicted) == usual.predict(read["test"]).tolist()


def as_tenants_call(classes):
    """Return the outputs of tenants for classes of a tenant added later."""
    names = LATE["label"]["names"]
    return np.array([COLORS.index(CALLED[names[number]]) for number in classes])


def trained(method, monkeypatch):
    """Return the record of a training run, and its model after the last epoch."""
    models = []
    usual = measuring.sizes_of
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "sizes_of", lambda model, *rest: models.append(model) or usual(model, *rest))
        found = measure(training(method))
    assert (found.status, found.reason) == ("finished", "")
    return found, models[0].eval()


@pytest.mark.parametrize("method", ["own", "ignored"])
def test_a_tenant_without_labels_is_answered_by_its_group_or_the_mean_of_own_heads(method, tenants, monkeypatch):
    found, model = trained(method, monkeypatch)
    test = task_tokens.splits(unseen.training_of(training(method), "late"))["test"]
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([ids])).logits for ids in test["input_ids"]])
    of_group = (logits[:, :3] + logits[:, 3:]) / 2
    expected = accuracy_score(as_tenants_call(test["label"][:]), of_group.argmax(dim=1))
    assert found.unseen["late"][0] == pytest.approx(expected, abs=1e-6)
    assert found.unseen["late"][60] > found.unseen["late"][0]  # a word in the text tells the label


def test_a_tenant_added_later_is_scored_with_as_many_labels_as_it_has(tenants):
    write("few.jsonl", later(60))
    few = LATE | {"source": {"kind": "files", "files": {"train": "few.jsonl"}}}
    write("data/datasets.yaml", {"shops": SHOPS, "late": few})
    assert len(task_tokens.splits(unseen.training_of(training("one"), "late"))["train"]) < 60
    for method in ("one", "own"):
        assert [*measure(training(method)).unseen["late"]] == [0, 20]


@pytest.fixture
def still(tenants):
    """The preset with a base model without dropout, trained on all texts at once, so that no step depends on a draw."""
    shutil.copytree("tiny-roberta", "still-roberta", dirs_exist_ok=True)
    config = json.loads(Path("still-roberta/config.json").read_text())
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    write("still-roberta/config.json", json.dumps(config | dropouts))
    source = {"kind": "hub", "path": "still-roberta"}
    entry = {"source": source, "target_modules": ["query", "value"], "head": ["classifier"]}
    write("models/models.yaml", {"still": entry})
    yield {"model": "still", "params": {"train.batch_size": 100, "train.epochs": 4, "train.weight_decay": 0.0}}
    Path("models/models.yaml").unlink()


def start_with_one_head(model):
    """Return plain PEFT's model with three classes and the initial weights of a model of two tenants."""
    base = AutoModelForSequenceClassification.from_pretrained("still-roberta", num_labels=3)
    config = LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    plain = get_peft_model(base, config)
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        initial = state[name].reshape(2, *value.shape).mean(dim=0) if "out_proj" in name else state[name]
        value.copy_(initial)
    return plain


def train_plainly(plain, examples, epochs=4):
    """Train with AdamW on all texts at once, with linearly decreasing rates."""
    in_head = [value for name, value in plain.named_parameters() if value.requires_grad and "classifier" in name]
    others = [value for name, value in plain.named_parameters() if value.requires_grad and "classifier" not in name]
    head_rate = training("ignored").head_rate
    groups = [{"params": others, "lr": 0.05}, {"params": in_head, "lr": head_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    batch = AutoTokenizer.from_pretrained("still-roberta").pad(
        {"input_ids": examples["input_ids"][:]}, return_tensors="pt"
    )
    labels = torch.tensor(examples["label"][:])
    plain.train()
    for epoch in range(epochs):
        for group, rate in zip(optimizer.param_groups, (0.05, head_rate), strict=True):
            group["lr"] = rate * (1 - epoch / epochs)
        optimizer.zero_grad()
        functional.cross_entropy(plain(**batch).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_([*others, *in_head], 1.0)
        optimizer.step()


def test_ignoring_tenants_is_a_plain_loop_with_one_head(still, monkeypatch):
    use(**still)
    splits = task_tokens.splits(training("own"))
    fresh = measuring.build_model(training("own"), task_tokens.task_of(training("own")), splits["train"])
    plain = start_with_one_head(fresh)
    train_plainly(plain, splits["train"])
    found, model = trained("ignored", monkeypatch)
    plain.eval()
    with torch.no_grad():
        expected = torch.cat([plain(torch.tensor([ids])).logits for ids in splits["test"]["input_ids"]])
        logits = torch.cat([model(torch.tensor([ids])).logits for ids in splits["test"]["input_ids"]])
    torch.testing.assert_close(logits, expected.repeat(1, 2), rtol=1e-3, atol=1e-4)
    assert list(found.predicted) == expected.argmax(dim=1).tolist()


def test_where_the_number_of_epochs_is_tuned_the_last_one_alone_is_scored(tenants):
    each = measure(training("own"))
    use(tuning={"epochs": [2.0]})
    tuned = measure(training("own"))
    assert (each.epochs, tuned.epochs) == (None, 2)
    assert len(each.test) == 2
    assert tuned.test == each.test[-1:]
    assert tuned.validation == each.validation[-1:]
    assert tuned.key != each.key
    longer = measure(training("own", epochs_multiplier=2.0))
    assert (longer.epochs, len(longer.test)) == (4, 1)
    plain = measure(training("each"))
    assert plain.epochs is None  # nothing is trained


def test_a_refit_keeps_the_share_of_deviations_that_the_best_epoch_had(tenants, monkeypatch):
    choose = shared_head.choose_shares
    refit = fitting.refit
    shares = iter([0.1, 0.2, 0.3, 0.4])  # of each epoch, and those of the last one again
    accuracies = iter(2 * [0.5] + 2 * [0.7] + 2 * [0.6] + [0.4, 0.4])  # of validation and test by epoch
    kept = []

    def choose_next(*args):
        return [head._replace(kept=share) for head, share in zip(choose(*args), shares, strict=False)]

    def recording(*args):
        trainer, group_heads = refit(*args)
        kept.append([head.kept for head in group_heads])
        return trainer, group_heads

    monkeypatch.setattr(shared_head, "choose_shares", choose_next)
    monkeypatch.setattr(fitting, "refit", recording)
    monkeypatch.setattr(TenantsScoring, "scores", lambda *_: {"accuracy": next(accuracies)})
    use(params={"train.epochs": 3, "train.refit": True}, tasks={"shops": {"row": "shops", "sample_sizes": SAMPLE}})
    found = measure(training("deviating"))
    assert (found.status, found.validation) == ("finished", (0.5, 0.7, 0.6))
    assert kept == [[0.2]]


def test_each_way_to_share_a_head_is_a_method_of_its_own(tenants):
    heads = {method: training(method).key for method in ("own", "ignored", "deviating")}
    assert len({*heads.values()}) == 3
    alone = {"adapter": "head_only", "features": "mean", "tasks": ["shops"]}
    use(methods=METHODS | {"alone": alone})  # whose head is `auto`: regressions have no deviations
    assert training("alone").key == training("each").key != training("one").key


BROKEN = [
    ({"unseen": {"late": ["red", "green"]}}, "tasks: shops: unseen: late: must be 3 different labels, for rouge, vert"),
    ({"unseen": {"late": ["red", "red", "blue"]}}, "unseen: late: must be 3 different labels, for rouge, vert, bleu"),
    ({"unseen": {"shops": ["red", "green", "blue"]}}, "unseen: shops: an entry with named classes and without tenants"),
    ({"unseen": {"nobody": ["red", "green", "blue"]}}, "no entry 'nobody'"),
    ({"unseen": {"late": ["red", "green", "gray"]}}, "shops: unseen: late: no tenant has the labels"),
    ({"row": "glue", "unseen": UNSEEN}, "tasks: shops: unseen has no effect: the data have no column of tenants"),
]


@pytest.mark.parametrize(("changes", "says"), BROKEN)
def test_a_tenant_added_later_must_have_the_labels_of_others(changes, says, tenants):
    task = {"row": "shops", "sample_sizes": SAMPLE, **changes}

    def checked():
        each = {"adapter": "head_only", "features": "mean", "tasks": ["shops"]}
        small.use(tasks={"shops": task}, methods={"each": each})
        check([small.cell("shops: each")])

    refused(checked, says=says)


IDLE = [
    (
        {"train.patience": 1, "train.epochs": 4},
        [2.0],
        "on shops, train.patience: 1 has no effect: the number of epochs",
    ),
    ({"train.extend_epochs": "auto"}, [2.0], "on shops, train.extend_epochs: auto has no effect: the number of epochs"),
    ({"train.epochs": 1}, [0.5], "tuning.epochs: two factors give the same number of epochs on shops, where train.ep"),
]


@pytest.mark.parametrize(("params", "epochs", "says"), IDLE)
def test_what_has_no_effect_where_epochs_are_tuned_is_refused(params, epochs, says, tenants):
    use(params=params, tuning={"epochs": epochs})
    refused(check, [small.cell("shops: own")], says=says)
