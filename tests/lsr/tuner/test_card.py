"""A saved adapter explains itself: a card with the hub's header, whose snippet runs as it is printed."""

import re

import pytest
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

from lsr import LsrConfig
from tests import workspace

NAMES = ("bad", "fair", "good")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of an adapter for three classes, which plain PEFT has saved twice, and its logits."""
    root = tmp_path_factory.mktemp("card")
    workspace.save_tiny_roberta(root / "base")
    base = AutoModelForSequenceClassification.from_pretrained(root / "base", id2label=dict(enumerate(NAMES)))
    config = LsrConfig(task_type="SEQ_CLS", rank_shape=(2,), target_modules=["query"])
    model = get_peft_model(base, config)
    model.save_pretrained(root / "adapter", save_embedding_layers=False)
    first = (root / "adapter/README.md").read_bytes()
    model.save_pretrained(root / "adapter", save_embedding_layers=False)
    assert (root / "adapter/README.md").read_bytes() == first
    return root / "adapter", model


def test_the_header_says_what_the_hub_asks_for(saved):
    folder, _ = saved
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.base_model) == ("peft", str(folder.parent / "base"))
    assert "lsr" in data.tags
    assert data.license == "other"


def test_the_snippet_runs_as_it_is_printed_with_the_labels(saved, monkeypatch, capsys):
    folder, _ = saved
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 what the card says is asked for
    assert re.search(rf"'label': '({'|'.join(NAMES)})'", capsys.readouterr().out)


def test_a_card_that_somebody_wrote_is_kept(saved):
    folder, model = saved
    path = folder / "README.md"
    before = path.read_text()
    path.write_text("---\nlicense: mit\n---\n\nMine.\n")
    model.save_pretrained(folder, save_embedding_layers=False)
    assert "Mine." in path.read_text()
    assert ModelCard.load(path).data.license == "mit"
    path.write_text(before)
