"""The example that trains a tenant's adapter for each tenant of a file."""

import json
import sys

import pandas as pd
import pytest
from peft import AutoPeftModelForSequenceClassification

from examples import tenants
from tests.workspace import save_tiny_roberta, sentences

WORDS = ["tenants.py", "file.csv", "-o", "out", "--base", "./base"]
LABELS = {"anna": ["None", "good"], "ben": ["1", "2", "3"]}


@pytest.fixture
def trained(tmp_path, monkeypatch, capsys):
    """The folder of adapters, and what was printed."""
    save_tiny_roberta(tmp_path / "base")
    texts = [text for text, *_ in sentences(60)]
    rows = [
        {"tenant": name, "text": text, "label": labels[at % len(labels)]}
        for name, labels in LABELS.items()
        for at, text in enumerate(texts)
    ]
    pd.DataFrame(rows).assign(comment="").to_csv(tmp_path / "file.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*WORDS, "--epochs", "2", "--rank", "2"])
    tenants.main()
    return tmp_path / "out", capsys.readouterr().out


def test_each_tenant_gets_a_lora_with_its_own_labels(trained):
    folder, printed = trained
    for name, labels in LABELS.items():
        config = json.loads((folder / name / "adapter_config.json").read_text())
        assert (config["peft_type"], config["r"]) == ("LORA", 2)
        assert json.loads((folder / name / "task.json").read_text())["labels"] == labels
        AutoPeftModelForSequenceClassification.from_pretrained(folder / name, num_labels=len(labels))
        assert f"{name}: " in printed
        assert f"of 12 held-out texts, labels {', '.join(labels)}" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tenant,text\nanna,a\n", "no column label; there are tenant, text"),
        ("tenant,text,label\nanna,a,good\nanna,b,bad\n", "tenant anna: 2 texts with 2 labels; needed: 5 with 2"),
        ("tenant,text,label\n../anna,a,good\n", "tenant '../anna': its folder cannot have this name"),
        (None, "No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(content, message, tmp_path, monkeypatch, capsys):
    save_tiny_roberta(tmp_path / "base")
    if content is not None:
        (tmp_path / "file.csv").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", WORDS)
    with pytest.raises(SystemExit, match="2"):
        tenants.main()
    assert message in capsys.readouterr().err.splitlines()[-1]
