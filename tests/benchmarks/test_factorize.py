"""The cost of a start: a row for each size and rank, in a file beside the machine."""

import json

from benchmarks import factorize


def test_the_command_measures_each_size_and_rank(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(factorize, "RESULTS", tmp_path / "factorize.json")
    monkeypatch.setattr(factorize, "SIZES", ((3, 24),))
    factorize.main(["--threads", "1"])
    rows = json.loads((tmp_path / "factorize.json").read_text())["principal"]["figures"]
    assert [(row["layers"], row["width"], row["rank"]) for row in rows] == [(3, 24, 3), (3, 24, 12)]
    for row in rows:
        assert min(row["start_seconds"], row["report_seconds"], row["svd_seconds"]) > 0
    assert "principal, rows: layers | width | rank" in capsys.readouterr().out
