"""The benchmark of speed measures one part, writes its figures, and leaves those of other parts."""

from pathlib import Path

import pytest

from tests.helpers import in_new_process, read_json, write

RESULTS = Path("benchmarks/results/speed.json")


@pytest.mark.nightly
def test_the_benchmark_of_speed_writes_one_part_beside_the_others(tmp_path):
    results = write(tmp_path / RESULTS, {"lora": {"figures": []}})
    ended = in_new_process(tmp_path, "-m", "benchmarks.speed", "load", "--threads", "1")
    measured = read_json(results)
    assert measured["lora"] == {"figures": []}
    assert measured["load"]["machine"]["threads"] == 1
    figures = measured["load"]["figures"]
    assert len(figures) == 2
    for row in figures:
        assert row["method"] in ended.stdout
        assert row["load_seconds"] > row["checksum_seconds"] > 0
