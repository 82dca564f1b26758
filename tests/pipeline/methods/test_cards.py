"""What the pipeline publishes has a card: with the validation score in the adapter's folder, else with the test's."""

import re

import pytest
from huggingface_hub import ModelCard

from lsr.__main__ import main as lsr_command
from pipeline.core import artifacts
from tests.stages.running import report


@pytest.fixture(autouse=True)
def published(done, monkeypatch):
    """A folder after all stages, as the working folder; pairs, two labels."""
    monkeypatch.chdir(done())
    return done()


def card(folder):
    return ModelCard.load(folder if folder.is_file() else folder / "README.md")


def test_cards_say_how_it_was_trained_with_the_scores_of_validation_and_of_test():
    text, trained = card(artifacts.ADAPTER).text, report(artifacts.TRAIN_METRICS)
    assert f"accuracy {trained['best_score']:.4g} on the validation split" in text
    assert f"{report(artifacts.EVALUATE_METRICS)['adapter_trained']:,} of the adapter were trained" in text
    assert "dvc exp run -S data=glue -S model=tiny -S adapter=lsr -S seed=0" in text
    found, scores = card(artifacts.CARD), report(artifacts.EVALUATE_METRICS)
    low, high = (f"{scores[f'accuracy_{end}']:.4g}" for end in ("low", "high"))
    assert f"| accuracy | {scores['accuracy']:.4g} | {low} to {high} |" in found.text
    assert '"rank_shape": [2, 2]' in found.text
    assert found.data.metrics == ["accuracy", "f1"]
    assert {one.dataset_split for one in found.data.eval_results} == {"test"}
    assert found.data.eval_results[0].metric_value == pytest.approx(scores["accuracy"], abs=1e-6)


def test_a_lora_exported_by_hand_needs_no_lsr(published, tmp_path, monkeypatch, capsys):
    out = tmp_path / "lora"
    assert lsr_command(["export", str(artifacts.ADAPTER), "--to", "lora", "-o", str(out)]) == 0
    found = card(out)
    assert "lsr" not in found.data.tags
    assert "import lsr" not in found.text
    assert "# LoRA adapter of " in found.text
    assert "It equals an LSR adapter, and loads without `lsr`." in found.text
    (out / "tiny-roberta").symlink_to(published / "tiny-roberta")
    monkeypatch.chdir(out)
    capsys.readouterr()
    exec(compile(re.search(r"```python\n(.*?)```", found.text, re.DOTALL)[1], "README.md", "exec"), {})  # noqa: S102
    assert re.search(r"'label': '(not_)?equivalent'", capsys.readouterr().out)
