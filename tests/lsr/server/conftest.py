"""Servers for the session, and what plain transformers and PEFT say of the texts that they are asked."""

import pytest
from transformers import AutoTokenizer

from tests import helpers, reference
from tests.lsr.server import tenants
from tests.lsr.server.asking import started


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """A folder with a base model, adapters of all tenants and their banks, which nobody changes."""
    folder = tmp_path_factory.mktemp("served")
    tenants.save_base(folder / "base")
    tenants.save_alone(folder)
    tenants.save_sharing(folder)
    return folder


@pytest.fixture(scope="session")
def bank(there):
    """The bank of tenants who have an adapter each."""
    return tenants.save_bank(there, there / "0")


@pytest.fixture(scope="session")
def server(bank, there):
    """A server of the bank."""
    limits = {"--max-batch-size": 8, "--max-queue": 400, "--max-length": 30, "--client-connections": 512}
    words = [str(word) for option in limits.items() for word in option]
    with started(bank, there / "log", *words) as running:
        yield running


@pytest.fixture(scope="session")
def sharing(there):
    """A server of tenants who share an adapter and have a head each."""
    bank = tenants.save_bank(there, there / "sharing")
    with started(bank, there / "log of sharing") as running:
        yield running


@pytest.fixture(scope="session")
def tokenizer(there):
    return AutoTokenizer.from_pretrained(there / "base")


@pytest.fixture(scope="session")
def expected(there, tokenizer):
    """A function that returns what plain transformers and PEFT say of texts with a version of one adapter alone.

    As the server's answers are, it is probabilities by label, or a number, for each text.
    """
    loaded = {}

    def say(name, texts, version=0):
        folder = there / f"{version}/{name}"
        task = helpers.read_json(folder / "task.json")
        labels = task["labels"]
        if folder not in loaded:
            loaded[folder] = reference.load_alone(there / "base", folder, len(labels or "1"))
        logits = logits_of(loaded[folder], tokenizer, texts, task["max_length"])
        if labels is None:
            return logits[:, 0].tolist()
        chances = reference.probabilities_of(logits.numpy(), task.get("kind"))
        return [dict(zip(labels, row, strict=True)) for row in chances]

    return say


@pytest.fixture(scope="session")
def shared_logits(there, tokenizer):
    """A function that returns the logits of texts by the adapter that tenants share, for each tenant."""
    outputs = [len(labels or "1") for labels in tenants.SHARING.values()]
    model = reference.load_alone(there / "base", there / "sharing", sum(outputs))

    def say(texts):
        logits = logits_of(model, tokenizer, texts, 28)
        return dict(zip(tenants.SHARING, logits.split(outputs, dim=1), strict=True))

    return say


def logits_of(model, tokenizer, texts, max_length):
    """Return the logits of each text or pair alone."""
    parts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    return reference.logits_alone(model, tokenizer, parts, max_length)
