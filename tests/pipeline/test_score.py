"""The command that scores folders of adapters on a data set."""

import json

import pytest

from lsr import round_adapter
from pipeline import score
from pipeline.core import artifacts
from tests.kit import refused, said


def test_it_scores_as_the_stage_does_and_a_rounded_adapter_beside_it(after):
    folder = after()
    round_adapter(artifacts.ADAPTER, folder / "rounded", "8bit")
    _, trained, rounded = said(score.main, "glue", str(artifacts.ADAPTER), str(folder / "rounded")).splitlines()
    metrics = json.loads(artifacts.EVALUATE_METRICS.read_text())
    expected = [f"{metrics[name]:.4f}" for name in ("accuracy", "f1")]
    low, high = (f"{metrics[f'accuracy_{end}']:.4f}" for end in ("low", "high"))
    name, size, *scores, interval, examples = trained.strip().split(" | ")
    assert (name, scores, interval) == (str(artifacts.ADAPTER), expected, f"{low} to {high}")
    assert (size, examples) == (f"{metrics['adapter_bytes']:,}", str(metrics["examples"]))
    assert int(rounded.split(" | ")[1].replace(",", "")) < metrics["adapter_bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ratings", str(artifacts.ADAPTER)], "says not_equivalent equivalent of sentence1 and sentence2, but ratings"),
        (["glu", str(artifacts.ADAPTER)], "did you mean glue?"),
    ],
)
def test_what_cannot_be_scored_is_one_line(after, words, message):
    after()
    assert refused(score.main, words, says=message).startswith("python -m pipeline.score: ")
