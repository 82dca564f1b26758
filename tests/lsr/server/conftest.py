"""One server for the session, and what plain transformers and PEFT say of the texts that they are asked."""

import pytest
from transformers import AutoTokenizer

from tests import helpers, reference
from tests.lsr.server import tenants
from tests.lsr.server.asking import started


@pytest.fixture(scope="session")
def there(tmp_path_factory):
    """A folder with a base model, adapters of all tenants and their bank, which nobody changes."""
    folder = tmp_path_factory.mktemp("served")
    tenants.save_base(folder / "base")
    tenants.save_adapters(folder)
    helpers.printed("lsr", "bank", "--from", folder / "0", "--base", folder / "base", "-o", folder / "bank")
    return folder


@pytest.fixture(scope="session")
def bank(there):
    return there / "bank"


@pytest.fixture(scope="session")
def server(bank, there):
    """A server of the bank."""
    limits = {"--max-batch-size": 8, "--max-queue": 400, "--max-length": 30, "--client-connections": 512}
    words = [str(word) for option in limits.items() for word in option]
    with started(bank, there / "log", *words) as running:
        yield running


@pytest.fixture(scope="session")
def expected(there):
    """A function that returns what plain transformers and PEFT say of texts with a version of one adapter alone.

    They are read by the tokenizer of `base`. As the server's answers are, it is probabilities by label, or a number,
    for each text.
    """
    loaded = {}

    def say(name, texts, version=0, base=there / "base"):
        tokenizer = AutoTokenizer.from_pretrained(base)
        folder = there / f"{version}/{name}"
        task = helpers.read_json(folder / "task.json")
        labels = task["labels"]
        if folder not in loaded:
            loaded[folder] = reference.load_alone(there / "base", folder, len(labels or "1"))
        parts = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        logits = reference.logits_alone(loaded[folder], tokenizer, parts, task["max_length"])
        if labels is None:
            return logits[:, 0].tolist()
        chances = reference.probabilities_of(logits.numpy(), task.get("kind"))
        return [dict(zip(labels, row, strict=True)) for row in chances]

    return say
