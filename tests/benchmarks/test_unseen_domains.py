"""The benchmark of unseen domains: its files have the texts it says, and its scores are those of the report."""

import pandas as pd
import pytest

from benchmarks import unseen_domains
from tests.kit import write

TEXTS = 300  # of each domain


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    domains = [name for pair in unseen_domains.PAIRS for name in pair]
    for split in ("train", "test"):
        rows = [
            {"label": "good", "text": f"{split} {k} {name}", "tenant": name} for k in range(TEXTS) for name in domains
        ]
        write(tmp_path / f"data/tenants/{split}.csv", rows)
    return tmp_path


def test_each_domain_has_the_texts_of_the_task_in_each_split(folder):
    unseen_domains.write_files()
    for split, first, last in (("train", 0, 207), ("validation", 208, 259), ("test", 0, 199)):
        table = pd.read_csv(folder / f"data/unseen/{split}.csv")
        assert table["tenant"].nunique() == 8
        source = "test" if split == "test" else "train"
        for name, own in table.groupby("tenant"):
            assert list(own["text"]) == [f"{source} {k} {name}" for k in range(first, last + 1)]


def test_scores_are_those_of_the_report():
    rows = [(0, "adapter, rows of the group or fitted", 0.8), (5, "adapter, rows of the group or fitted", 0.9)]
    rows.append((5, "own regression, frozen encoder", 0.6))
    found = unseen_domains.scores_of(pd.DataFrame(rows, columns=["labels", "method", "score"]))
    assert found == {"model": {"0": 0.8, "5": 0.9}, "regression": {"5": 0.6}}


def test_without_the_files_a_line_says_how_to_make_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        unseen_domains.main([])
    assert end.value.code
    says = "data/tenants/train.csv: no such file; docs/how-to/compare.md says how to make it"
    assert capsys.readouterr().err.strip() == says
